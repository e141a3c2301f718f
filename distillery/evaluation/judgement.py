"""What a judge's verdicts say: win rates, and what they are worth beside people's."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from distillery.evaluation.statistics import Bootstrap, MetricSums, Scores, mean_sums, ratio
from schemas.comparison import Interval, JudgedPair, Judgement
from schemas.evaluation import EvaluationSpec
from schemas.judge import JudgeSpec

_POINTS = {"win": 1.0, "tie": 0.0, "loss": -1.0}


def read_judgement(
    verdicts: pd.DataFrame,
    judge: JudgeSpec,
    clusters: Mapping[str, Hashable],
    evaluation: EvaluationSpec,
) -> Judgement:
    """Return win rates of the student and, where people were asked too, what they would be then.

    Args:
        verdicts: A VerdictFrame.
        judge: Who judged, and how.
        clusters: The cluster of each test row, by prompt id.
        evaluation: Number of resamples, level and seed.
    """
    is_preference = verdicts["against"].isna()
    people, rows = verdicts[is_preference], verdicts[~is_preference]
    people = people[people["verdict"].notna()]
    said, preferred = _points(people["verdict"]), _points(people["preferred"])
    spec = judge.preferences
    student_first = spec is not None and spec.student_first
    agrees: Scores = (said == preferred).astype(np.float64)
    agreement = Bootstrap(range(len(agrees)), evaluation).interval(mean_sums(agrees))
    pairs = []
    for against, theirs in rows.groupby("against", sort=False):
        counts = theirs["verdict"].value_counts()
        of_rows = [clusters[prompt_id] for prompt_id in theirs["prompt_id"]]
        points = _points(theirs["verdict"])
        win_rate = Bootstrap(of_rows, evaluation).interval(mean_sums((points + 1) / 2))
        corrected = corrected_win_rate(
            points, of_rows, said, preferred, student_first=student_first, evaluation=evaluation
        )
        pairs.append(
            JudgedPair(
                against=str(against),
                wins=int(counts.get("win", 0)),
                ties=int(counts.get("tie", 0)),
                losses=int(counts.get("loss", 0)),
                unscored=int(theirs["verdict"].isna().sum()),
                win_rate=win_rate,
                corrected=_only_as_sure(corrected, win_rate, agreement),
            )
        )
    return Judgement(
        model=judge.model.model,
        rubric=judge.rubric,
        pairs=tuple(pairs),
        order_decided=_order_decided(rows),
        agreement=agreement,
    )


def _points(verdicts: pd.Series) -> Scores:
    """Return 1 for a win, 0 for a tie, -1 for a loss, NaN where there is no verdict."""
    points: Scores = verdicts.map(_POINTS).to_numpy().astype(np.float64)
    return points


def _only_as_sure(found: Interval | None, *others: Interval | None) -> Interval | None:
    """Return ``found``, without ends where too few rows leave one of ``others`` without them."""
    if found is None or all(other and other.low is not None for other in others):
        return found
    return found.model_copy(update={"low": None, "high": None})


def _order_decided(verdicts: pd.DataFrame) -> float | None:
    both = verdicts[verdicts["shown_first"].notna() & verdicts["shown_second"].notna()]
    return float((both["shown_first"] != both["shown_second"]).mean()) if len(both) else None


def corrected_win_rate(
    said_N: Scores,
    clusters_N: Sequence[Hashable],
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
        said_N: The judge's verdicts on N test rows, NaN where there is none.
        clusters_N: The cluster of each.
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
    num_rows, num_people = len(said_N), len(said_M)
    statistics = np.zeros((num_rows + num_people, 7))
    statistics[:num_rows, 0] = np.nan_to_num(said_N)
    statistics[:num_rows, 1] = 1.0
    statistics[num_rows:, 2:] = np.column_stack(
        [said_M, preferred_M, said_M * preferred_M, preferred_M**2, np.ones(num_people)]
    )

    def corrected(sums_R7: Scores) -> Scores:
        mean = ratio(sums_R7[:, 0], sums_R7[:, 1])
        said, preferred, product, square, count = sums_R7[:, 2:].T
        if student_first:
            slope = ratio(count * product - said * preferred, count * square - preferred**2)
            mean = mean - ratio(said - slope * preferred, count)
        else:
            slope = ratio(product, square)
        found: Scores = (np.clip(ratio(mean, np.where(slope > 0, slope, np.nan)), -1, 1) + 1) / 2
        return found

    is_scored = np.concatenate([~np.isnan(said_N), np.ones(num_people, dtype=bool)])
    sums = MetricSums(statistics, is_scored, corrected)
    clusters = [f"test {cluster}" for cluster in clusters_N]
    clusters += [f"preference {number}" for number in range(num_people)]
    return Bootstrap(clusters, evaluation).interval(sums)
