import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.stats import beta, bootstrap
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from distillery.evaluation.significance import holm
from distillery.evaluation.statistics import (
    Bootstrap,
    MetricSums,
    PairedFigures,
    mean_sums,
    minus,
    ratio,
    set_sums,
)
from distillery.task_types import ScoredRow, task_type
from schemas.comparison import Interval
from schemas.evaluation import EvaluationSpec
from schemas.task import TaskSpec

Array = NDArray[np.float64]

EVALUATION = EvaluationSpec(bootstrap_samples=400)
NAN = float("nan")


def of_rows(
    *samples: Array,
    of_values: Callable[..., Array] = np.asarray,
    clusters: Sequence[Hashable] | None = None,
    evaluation: EvaluationSpec = EVALUATION,
) -> Interval | None:
    rows = Bootstrap(clusters or range(len(samples[0])), evaluation)
    return rows.interval(*map(mean_sums, samples), of_values=of_values)


def compare(
    one: Array,
    other: Array,
    clusters: Sequence[Hashable] | None = None,
    evaluation: EvaluationSpec = EVALUATION,
) -> PairedFigures:
    rows = Bootstrap(clusters or range(len(one)), evaluation)
    return rows.compare(mean_sums(one), mean_sums(other))


def ends(interval: Interval | None) -> tuple[float, float]:
    assert interval and interval.low is not None and interval.high is not None
    return interval.low, interval.high


def width(interval: Interval | None) -> float:
    low, high = ends(interval)
    return high - low


def test_estimates_are_the_hand_computed_ones() -> None:
    teacher = np.array([1.0, 1.0, 1.0, 1.0, 0.0])
    student = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
    mean, found = of_rows(teacher), compare(student, teacher)
    assert mean and found.difference and found.ratio
    assert mean.estimate == pytest.approx(0.8)
    assert found.difference.estimate == pytest.approx(-0.2)
    assert found.ratio.estimate == pytest.approx(0.75)


def test_interval_of_a_proportion_is_about_the_normal_one() -> None:
    half = 1.96 * math.sqrt(0.9 * 0.1 / 1000)
    interval = of_rows(np.repeat([1.0, 0.0], [900, 100]), evaluation=EvaluationSpec())
    assert ends(interval) == pytest.approx((0.9 - half, 0.9 + half), abs=0.004)


@pytest.mark.parametrize("statistic", [minus, ratio])
def test_intervals_of_independent_rows_are_those_of_scipy(
    statistic: Callable[[Array, Array], Array],
) -> None:
    draw = np.random.default_rng(0)
    teacher = draw.beta(4, 2, 300)
    student = np.clip(teacher + draw.normal(-0.05, 0.1, 300), 0, 1)
    theirs = bootstrap(
        (student, teacher),
        lambda a, b, axis=-1: statistic(a.mean(axis=axis), b.mean(axis=axis)),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    samples = EvaluationSpec(bootstrap_samples=4000)
    ours = of_rows(student, teacher, of_values=statistic, evaluation=samples)
    assert ends(ours) == pytest.approx((theirs.low, theirs.high), abs=0.0015)


def test_intervals_of_clusters_are_those_of_a_slow_bootstrap() -> None:
    draw = np.random.default_rng(0)
    sizes = draw.integers(1, 9, 60)
    clusters = np.repeat(np.arange(60), sizes)
    hard = np.repeat(draw.normal(0, 0.2, 60), sizes)
    teacher = np.clip(0.7 + hard + draw.normal(0, 0.1, len(hard)), 0, 1)
    student = np.clip(0.6 + 1.5 * hard + draw.normal(0, 0.1, len(hard)), 0, 1)
    teacher[::17] = NAN
    slow = []
    for _ in range(3000):
        rows = np.concatenate([np.flatnonzero(clusters == c) for c in draw.integers(0, 60, 60)])
        slow.append(np.nanmean((student - teacher)[rows]))
    found = of_rows(
        student,
        teacher,
        of_values=minus,
        clusters=clusters.tolist(),
        evaluation=EvaluationSpec(bootstrap_samples=3000),
    )
    assert found and found.estimate == pytest.approx(np.nanmean(student - teacher))
    assert ends(found) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.004)


def _coverage(num_sets: int, *, by_cluster: bool) -> float:
    """Return how often the interval holds the truth, 0.5, where clusters of 8 rows agree."""
    draw, num_held = np.random.default_rng(0), 0
    clusters = np.repeat(np.arange(40), 8).tolist()
    for _ in range(num_sets):
        chances = np.repeat(draw.beta(1, 1, 40), 8)
        scores = (draw.random(320) < chances).astype(float)
        low, high = ends(of_rows(scores, clusters=clusters if by_cluster else None))
        num_held += low <= 0.5 <= high
    return num_held / num_sets


def test_intervals_hold_the_truth_where_rows_are_clustered_and_not_if_that_is_ignored() -> None:
    assert _coverage(300, by_cluster=True) > 0.91
    assert _coverage(300, by_cluster=False) < 0.75


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 4))
def test_rows_repeated_within_their_cluster_are_no_further_evidence(seed: int, times: int) -> None:
    draw = np.random.default_rng(seed)
    one, other = draw.random((2, 40))
    clusters = draw.integers(0, 15, 40).tolist()
    once = compare(one, other, clusters)
    again = np.repeat(clusters, times).tolist()
    often = compare(np.repeat(one, times), np.repeat(other, times), again)
    assert often.p_value == pytest.approx(once.p_value)
    assert ends(often.difference) == pytest.approx(ends(once.difference))
    assert ends(often.ratio) == pytest.approx(ends(once.ratio))


def test_pairing_beats_unpaired_width_on_correlated_rows() -> None:
    rng = np.random.default_rng(0)
    teacher = (rng.random(500) < 0.7).astype(float)
    student = np.where(rng.random(500) < 0.05, 1 - teacher, teacher)
    paired, unpaired = compare(student, teacher), compare(rng.permutation(student), teacher)
    assert width(paired.difference) < 0.5 * width(unpaired.difference)


def test_unscored_rows_are_left_out_in_pairs() -> None:
    found = compare(np.array([1.0, NAN, 0.0, 1.0]), np.array([1.0, 1.0, NAN, 0.0])).difference
    assert found and (found.num_rows, found.estimate) == (2, 0.5)


def test_nothing_scored_gives_none_not_zero() -> None:
    assert of_rows(np.array([NAN, NAN])) is None
    assert compare(np.array([1.0, NAN]), np.array([NAN, 1.0])) == PairedFigures(None, None, None)


def test_scores_that_are_all_alike_leave_the_room_that_so_few_rows_leave() -> None:
    def least(num_rows: int) -> float:  # of a proportion, when all rows are right
        return float(beta.ppf(0.025, num_rows, 1))

    for num_rows in (10, 50, 1000):
        ones = np.ones(num_rows)
        assert ends(of_rows(ones)) == pytest.approx((least(num_rows), 1.0))
        room = 1 - least(num_rows)
        assert ends(compare(ones, ones).difference) == pytest.approx((-room, room))
        won = of_rows(ones, 0 * ones, of_values=minus)
        assert ends(won) == pytest.approx((1 - 2 * room, 1.0))


def test_a_metric_of_the_set_on_which_all_resamples_agree_has_no_ends() -> None:
    kind = task_type(TaskSpec.model_validate({"name": "t", "type": "classification"}))
    rows = [ScoredRow("a", ("a",)), ScoredRow("b", ("b",))] * 20
    sums = set_sums(kind.of_the_set["macro F1"], rows, np.ones(40, dtype=bool))
    found = Bootstrap(range(40), EVALUATION).interval(sums)
    assert found and (found.estimate, found.low, found.high) == (1.0, None, None)


def test_fewer_than_ten_clusters_say_nothing_about_their_spread() -> None:
    one, other = np.random.default_rng(0).random((2, 40))
    found = compare(one, other, [row % 9 for row in range(40)])
    assert found.difference and found.difference.estimate == pytest.approx((one - other).mean())
    assert (found.difference.low, found.difference.high) == (None, None)
    assert compare(one[:9], other[:9]).difference.low is None  # type: ignore[union-attr]
    assert compare(one[:10], other[:10]).difference.low is not None  # type: ignore[union-attr]


def test_ratio_over_a_teacher_that_knows_nothing_is_undefined() -> None:
    assert compare(np.ones(50), np.zeros(50)).ratio is None


def test_ratio_that_is_undefined_in_some_resample_has_no_ends() -> None:
    scores = np.array([1.0] + [0.0] * 19)
    found = compare(scores, scores).ratio
    assert found and (found.estimate, found.low, found.high) == (1.0, None, None)


def test_same_seed_gives_the_same_interval() -> None:
    scores = np.random.default_rng(1).random(100)
    other = EVALUATION.model_copy(update={"seed": 1})
    assert of_rows(scores) == of_rows(scores)
    assert of_rows(scores) != of_rows(scores, evaluation=other)


_binary = hnp.arrays(np.float64, st.integers(10, 60), elements=st.sampled_from([0.0, 1.0]))


@settings(deadline=None, max_examples=30)
@given(_binary)
def test_interval_contains_the_estimate(scores: Array) -> None:
    interval = of_rows(scores)
    low, high = ends(interval)
    assert interval and 0 <= low <= interval.estimate + 1e-12
    assert interval.estimate - 1e-12 <= high <= 1


@settings(deadline=None, max_examples=30)
@given(_binary, st.integers(0, 1000))
def test_difference_changes_its_sign_when_the_models_swap(a: Array, seed: int) -> None:
    b = np.random.default_rng(seed).permutation(a)
    forth, back = compare(a, b), compare(b, a)
    low, high = ends(forth.difference)
    assert ends(back.difference) == pytest.approx((-high, -low))
    assert forth.p_value == back.p_value


@settings(deadline=None, max_examples=50)
@given(_binary, st.integers(0, 1000))
def test_right_or_wrong_rows_are_tested_as_mcnemar_does(a: Array, seed: int) -> None:
    b = np.random.default_rng(seed).permutation(a)
    table = [[int(((a == i) & (b == j)).sum()) for j in (0, 1)] for i in (0, 1)]
    assert compare(a, b).p_value == pytest.approx(mcnemar(table, exact=True).pvalue)


def _exchanged(one: Array, other: Array, clusters: NDArray[np.intp]) -> float:
    """Return the share of all exchanges of clusters that leave so large a difference."""
    gaps = np.bincount(clusters, one - other)
    signs = np.array(list(itertools.product((-1, 1), repeat=len(gaps))))
    return float((abs(signs @ gaps) >= abs(gaps.sum()) - 1e-9).mean())


def _graded() -> tuple[Array, Array, NDArray[np.intp]]:
    """Return scores of two models on rows of twelve clusters."""
    draw = np.random.default_rng(3)
    clusters = np.repeat(np.arange(12), draw.integers(1, 5, 12))
    other = draw.random(len(clusters))
    return np.clip(other + draw.normal(0.06, 0.15, len(clusters)), 0, 1), other, clusters


def test_metrics_of_the_set_are_tested_by_exchanging_the_answers_to_whole_clusters() -> None:
    one, other, clusters = _graded()
    rows = Bootstrap(clusters.tolist(), EvaluationSpec(bootstrap_samples=20_000))
    as_sets = [replace(mean_sums(scores), scores_N=None) for scores in (one, other)]
    found = rows.compare(*as_sets).p_value
    assert found == pytest.approx(_exchanged(one, other, clusters), abs=0.005)


def test_graded_scores_are_tested_with_the_cluster_robust_error_of_statsmodels() -> None:
    one, other, clusters = _graded()
    fit = OLS(one - other, np.ones(len(one))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True
    )
    assert compare(one, other, clusters.tolist()).p_value == pytest.approx(fit.pvalues[0])


def test_rows_of_one_cluster_are_one_piece_of_evidence() -> None:
    # One that is right on a whole conversation of ten is not right on ten rows.
    one, other = np.ones(10), np.zeros(10)
    assert compare(one, other).p_value == pytest.approx(2 / 2**10)
    assert compare(one, other, ["a conversation"] * 10).p_value == 1.0


def _macro_f1(responses: Sequence[str], references: Sequence[str]) -> MetricSums:
    kind = task_type(TaskSpec.model_validate({"name": "t", "type": "classification"}))
    rows = [ScoredRow(*pair) for pair in zip(responses, ((r,) for r in references), strict=True)]
    return set_sums(kind.of_the_set["macro F1"], rows, np.ones(len(rows), dtype=bool))


def test_a_metric_of_the_set_is_compared_on_the_same_resamples() -> None:
    references = ["a", "b"] * 50
    rows = Bootstrap(range(100), EVALUATION)
    perfect = _macro_f1(references, references)
    same, worse = _macro_f1(references, references), _macro_f1(["a"] * 100, references)
    assert rows.compare(same, perfect).p_value == 1.0
    found = rows.compare(worse, perfect)
    assert found.difference and found.difference.estimate == pytest.approx(1 / 3 - 1)
    assert ends(found.difference)[1] < -0.5
    assert found.p_value == pytest.approx(1 / 401)  # no exchange is as far out


def test_what_no_test_tells_apart_is_not_called_a_gain() -> None:
    for wins, is_gain in ((5, False), (6, True)):  # 2 / 2^5 > 0.05 > 2 / 2^6
        other = np.zeros(1000)
        one = np.where(np.arange(1000) < wins, 1.0, 0.0)
        found = compare(one, other, evaluation=EvaluationSpec())
        assert found.p_value == pytest.approx(2 / 2**wins)
        assert (ends(found.difference)[0] > 0) == is_gain


def test_holm_s_correction_is_that_of_statsmodels() -> None:
    draw = np.random.default_rng(0)
    for size in (1, 2, 7):
        p_values = (draw.random(size) ** 3).tolist()
        theirs = multipletests(p_values, method="holm")[1]
        assert holm(p_values) == pytest.approx(theirs.tolist())
        assert holm([None, *p_values]) == [None, *holm(p_values)]
    assert holm([]) == []


def _share_shown(
    loss: float, num_sets: int, make: Callable[[np.random.Generator, float], tuple[Array, Array]]
) -> float:
    """Return how often the interval of the difference lies below 0 at this loss."""
    draw, num_shown = np.random.default_rng(1), 0
    for _ in range(num_sets):
        num_shown += ends(compare(*make(draw, loss)).difference)[1] < 0
    return num_shown / num_sets


def _right_or_wrong(draw: np.random.Generator, loss: float) -> tuple[Array, Array]:
    """Return a student that differs on 12 % of 400 rows, and its teacher."""
    kind = draw.choice(3, p=[0.88, 0.06 + loss / 2, 0.06 - loss / 2], size=400)
    teacher = np.where(kind == 0, draw.random(400) < 0.8, kind == 1).astype(float)
    return np.where(kind == 0, teacher, 1 - teacher), teacher


def _overlap(draw: np.random.Generator, loss: float) -> tuple[Array, Array]:
    """Return a student whose ROUGE strays by 15 points from its teacher's over 100 rows."""
    teacher = draw.uniform(0.4, 0.6, 100)
    return teacher - loss + draw.normal(0, 0.15, 100).clip(-0.35, 0.35), teacher


@pytest.mark.parametrize("make", [_right_or_wrong, _overlap])
def test_a_detectable_loss_is_shown_by_four_of_five_test_sets(
    make: Callable[[np.random.Generator, float], tuple[Array, Array]],
) -> None:
    draw, found = np.random.default_rng(0), []
    for _ in range(20):
        student, teacher = map(mean_sums, make(draw, 0.0))
        rows = Bootstrap(range(len(student.is_scored_N)), EVALUATION)
        found.append(rows.detectable_loss(student, teacher) or NAN)
    assert max(found) < 1.4 * min(found)
    assert _share_shown(float(np.mean(found)), 300, make) == pytest.approx(0.8, abs=0.07)


def test_a_detectable_loss_has_a_floor_where_nobody_differs() -> None:
    ones = np.ones(400)

    def lost_rows(draw: np.random.Generator, loss: float) -> tuple[Array, Array]:
        return (draw.random(400) >= loss).astype(float), ones

    loss = Bootstrap(range(400), EVALUATION).detectable_loss(mean_sums(ones), mean_sums(ones))
    assert loss and loss == pytest.approx(0.0192, abs=0.0001)
    assert _share_shown(loss, 300, lost_rows) == pytest.approx(0.8, abs=0.07)


def test_a_detectable_loss_grows_where_rows_belong_together() -> None:
    draw = np.random.default_rng(0)
    student, teacher = (
        np.repeat((draw.random(80) < chance).astype(float), 5) for chance in (0.7, 0.9)
    )
    alone = Bootstrap(range(400), EVALUATION)
    together = Bootstrap(np.repeat(range(80), 5).tolist(), EVALUATION)
    losses = [
        rows.detectable_loss(mean_sums(student), mean_sums(teacher)) for rows in (alone, together)
    ]
    assert losses[0] and losses[1] == pytest.approx(losses[0] * math.sqrt(5), rel=0.02)


def test_a_detectable_loss_is_not_known_where_nothing_tells_the_spread() -> None:
    scores = mean_sums(np.full(50, 0.5))
    assert Bootstrap(range(50), EVALUATION).detectable_loss(scores, scores) is None
    assert (
        Bootstrap([row % 9 for row in range(50)], EVALUATION).detectable_loss(
            mean_sums(np.ones(50)), mean_sums(np.zeros(50))
        )
        is None
    )
