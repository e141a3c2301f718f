"""What a judge's verdicts say: win rates, and what they are worth beside people's."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distillery.evaluation.statistics import Scores
from schemas.comparison import Interval, JudgedPair, Judgement
from schemas.evaluation import EvaluationSpec
from schemas.judge import JudgeSpec

_POINTS = {"win": 1.0, "tie": 0.0, "loss": -1.0}
_RESAMPLED_VALUES = 4_000_000  # values per batch of resamples: 32 MB


def read_judgement(
    verdicts: pd.DataFrame, judge: JudgeSpec, evaluation: EvaluationSpec
) -> Judgement:
    """Return win rates of the student and, where people were asked too, what they would be then.

    Args:
        verdicts: A VerdictFrame.
        judge: Who judged, and how.
        evaluation: Number of resamples, level and seed.
    """
    is_preference = verdicts["against"].isna()
    people = verdicts[is_preference]
    people = people[people["verdict"].notna()]
    on_preferences = _points(people["verdict"]), _points(people["preferred"])
    pairs = []
    for against, rows in verdicts[~is_preference].groupby("against", sort=False):
        counts = rows["verdict"].value_counts()
        scored = rows[rows["verdict"].notna()]
        groups = np.arange(len(scored))
        said = _points(scored["verdict"])
        pairs.append(
            JudgedPair(
                against=str(against),
                wins=int(counts.get("win", 0)),
                ties=int(counts.get("tie", 0)),
                losses=int(counts.get("loss", 0)),
                unscored=len(rows) - len(scored),
                win_rate=win_rate(said, groups, evaluation),
                corrected=corrected_win_rate(
                    said,
                    groups,
                    *on_preferences,
                    student_first=judge.preferences is not None and judge.preferences.student_first,
                    evaluation=evaluation,
                ),
            )
        )
    agrees: Scores = (people["verdict"] == people["preferred"]).to_numpy().astype(np.float64)
    return Judgement(
        model=judge.model.model,
        rubric=judge.rubric,
        pairs=tuple(pairs),
        order_decided=_order_decided(verdicts[~is_preference]),
        agreement=_mean(agrees, np.arange(len(agrees)), evaluation),
    )


def _points(verdicts: pd.Series) -> Scores:
    points: Scores = verdicts.map(_POINTS).to_numpy().astype(np.float64)
    return points


def _order_decided(verdicts: pd.DataFrame) -> float | None:
    both = verdicts[verdicts["shown_first"].notna() & verdicts["shown_second"].notna()]
    return float((both["shown_first"] != both["shown_second"]).mean()) if len(both) else None


def win_rate(
    said_N: Scores, groups_N: NDArray[np.intp], evaluation: EvaluationSpec
) -> Interval | None:
    """Return (wins + ties / 2) / rows with its interval; None when there are no rows.

    Args:
        said_N: Verdicts, N rows: 1 where the student's is better, 0 a tie, -1 where the other's is.
        groups_N: Number of each row's group, from 0; groups are resampled whole.
        evaluation: Number of resamples, level and seed.
    """
    return _mean((said_N + 1) / 2, groups_N, evaluation)


def corrected_win_rate(
    said_N: Scores,
    groups_N: NDArray[np.intp],
    said_M: Scores,
    preferred_M: Scores,
    *,
    student_first: bool,
    evaluation: EvaluationSpec,
) -> Interval | None:
    """Return the win rate as people would have it, with an interval that holds the judge's error.

    With verdicts of 1, 0 and -1, a judge's is taken to be b + r x people's, plus chance: r = 1 is
    a judge who always agrees, r = 0 one who tosses a coin, b a liking for the student's side. Both
    are estimated on the human preferences by least squares, and the mean verdict on the test rows
    is turned back: (mean - b) / r, held between -1 and 1. That is Rogan and Gladen's correction of
    a prevalence by a test's sensitivity and specificity, with ties in the middle. It does not
    assume that the student wins as often as the first responses do in the preferences, as a
    correction by the share of right verdicts would. Test rows and preferences are both resampled.

    Args:
        said_N: The judge's verdicts on N test rows.
        groups_N: Number of each test row's group, from 0.
        said_M: The judge's verdicts on M human preferences.
        preferred_M: What people preferred there.
        student_first: Whether the first response of a preference is on the student's side. If
            not, b is 0: which one is first means nothing, and the judge sees both orders.
        evaluation: Number of resamples, level and seed.

    Returns:
        None when nobody has checked the judge, or it agrees with people no better than chance. The
        ends are None when some resample has a judge that does not.

    Source: Rogan and Gladen 1978, Am. J. Epidemiol. 107(1); with both errors in the interval, for
    judges that are models: Lee et al. 2025, arXiv:2511.21140.
    """
    if not len(said_N) or not len(said_M):
        return None
    sums_M5 = np.column_stack(
        [said_M, preferred_M, said_M * preferred_M, preferred_M**2, np.ones_like(said_M)]
    )

    def corrected(mean_R: Scores, sums_R5: Scores) -> Scores:
        said, preferred, product, square, num_rows = sums_R5.T
        if student_first:
            slope = _ratio(num_rows * product - said * preferred, num_rows * square - preferred**2)
            mean_R = mean_R - (said - slope * preferred) / num_rows
        else:
            slope = _ratio(product, square)
        slope = np.where(slope > 0, slope, np.nan)
        return (np.clip(mean_R / slope, -1, 1) + 1) / 2

    estimate = corrected(np.array([said_N.mean()]), sums_M5.sum(axis=0, keepdims=True))[0]
    if np.isnan(estimate):
        return None
    draw = np.random.default_rng(evaluation.seed)
    values = corrected(
        _resampled_means(said_N, groups_N, draw, evaluation),
        _resampled_sums(sums_M5, draw, evaluation),
    )
    return _interval(float(estimate), values, len(said_N), evaluation)


def _ratio(a: Scores, b: Scores) -> Scores:
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)


def _mean(
    values_N: Scores, groups_N: NDArray[np.intp], evaluation: EvaluationSpec
) -> Interval | None:
    if not len(values_N):
        return None
    draw = np.random.default_rng(evaluation.seed)
    means = _resampled_means(values_N, groups_N, draw, evaluation)
    return _interval(float(values_N.mean()), means, len(values_N), evaluation)


def _resampled_means(
    values_N: Scores,
    groups_N: NDArray[np.intp],
    draw: np.random.Generator,
    evaluation: EvaluationSpec,
) -> Scores:
    """Return the mean over each resample of whole groups."""
    sums_G2 = np.column_stack([np.bincount(groups_N, values_N), 1.0 * np.bincount(groups_N)])
    sums_R2 = _resampled_sums(sums_G2, draw, evaluation)
    return sums_R2[:, 0] / sums_R2[:, 1]


def _resampled_sums(
    rows_NS: Scores, draw: np.random.Generator, evaluation: EvaluationSpec
) -> Scores:
    """Return the sums over each resample of the rows, shape (R, S)."""
    num_rows, num_left = len(rows_NS), evaluation.bootstrap_samples
    parts = []
    while num_left > 0:
        size = min(num_left, max(1, _RESAMPLED_VALUES // num_rows))
        times_RN = draw.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=size)
        parts.append(times_RN @ rows_NS)
        num_left -= size
    return np.concatenate(parts)


def _interval(
    estimate: float, values_R: Scores, num_rows: int, evaluation: EvaluationSpec
) -> Interval:
    if num_rows == 1 or np.isnan(values_R).any():
        return Interval(estimate=estimate, low=None, high=None, num_rows=num_rows)
    tail = (1 - evaluation.confidence) / 2
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return Interval(estimate=estimate, low=float(low), high=float(high), num_rows=num_rows)
