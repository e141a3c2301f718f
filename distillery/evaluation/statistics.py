"""Statistics: intervals, tests and power over the scores of many answers.

A score of None means *unscored*: there was no answer to judge. It is never counted as 0.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distillery.evaluation.significance import EQUAL, mcnemar, mean_by_cluster, t_test
from distillery.task_types import ScoredRow, SetMetric
from schemas.comparison import Interval
from schemas.evaluation import EvaluationSpec

if TYPE_CHECKING:
    from scipy.sparse import csr_array


Scores = NDArray[np.float64]
"""Scores by row, NaN where unscored."""

MIN_CLUSTERS = 10  # of fewer a 95 % percentile interval holds the truth in under 90 % of cases
_BATCH_VALUES = 200_000  # resampled counts that are floats at one time: 1.6 MB, in a cache
_KEPT_VALUES = 256_000_000  # resampled counts that are kept as bytes for the next statistic
_POWER = 0.8


@dataclass(frozen=True, eq=False)
class MetricSums:
    """One metric of one contestant: what is summed over its rows, and what the sums make.

    N = rows of the test set, S = figures of each row, R = sets of rows.
    """

    statistics_NS: "Scores | csr_array"
    """What is summed. Rows that are unscored are never summed."""

    is_scored_N: NDArray[np.bool_]
    """Which rows count."""

    value: Callable[[Scores], Scores]
    """The metric of each of R sets from the sums over its rows, (R, S) to (R,); NaN: undefined."""

    scores_N: Scores | None = None
    """The scores themselves, from 0 to 1, where the metric is their mean."""


def mean_sums(scores: Scores) -> MetricSums:
    """Return the mean of ``scores``, which lie from 0 to 1, NaN where unscored."""
    scores = np.asarray(scores, dtype=np.float64)
    is_scored = ~np.isnan(scores)
    statistics = np.stack([np.where(is_scored, scores, 0.0), np.ones(len(scores))], axis=1)

    def mean(sums_RS: Scores) -> Scores:
        return ratio(sums_RS[:, 0], sums_RS[:, 1])

    return MetricSums(statistics, is_scored, mean, scores)


def set_sums(
    metric: SetMetric, rows: Sequence[ScoredRow | None], is_scored: NDArray[np.bool_]
) -> MetricSums:
    """Return a metric of a set of answers.

    Args:
        metric: Which.
        rows: All rows, None where there are no references.
        is_scored: Which of them count. Those that do not still say what could have been answered,
            so that two contestants' sums have the same columns.
    """
    from scipy.sparse import csr_array

    places = [at for at, row in enumerate(rows) if row is not None]
    if not places:
        return MetricSums(
            np.zeros((len(rows), 1)), is_scored, lambda sums: np.full(len(sums), np.nan)
        )
    statistics = metric.statistics([row for row in rows if row is not None])
    at_place = csr_array(
        (np.ones(len(places)), (places, range(len(places)))), shape=(len(rows), len(places))
    )
    statistics_NS: Any = at_place @ statistics
    return MetricSums(statistics_NS, is_scored, metric.value)


def minus(a: Scores, b: Scores) -> Scores:
    """Return a - b."""
    return a - b


def ratio(a: Scores, b: Scores) -> Scores:
    """Return a / b, NaN where b is 0."""
    found: Scores = np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b != 0)
    return found


@dataclass(frozen=True)
class PairedFigures:
    """One contestant beside another in one metric."""

    difference: Interval | None
    """Its value minus the other's. None: no row is scored for both."""

    ratio: Interval | None
    """Its value / the other's. None: as above, or the other's is 0."""

    p_value: float | None
    """Of the hypothesis that the two are equally good. None: no row is scored for both."""


class Bootstrap:
    """The paired bootstrap over clusters of rows.

    Rows that belong together (a conversation, a customer, one prompt asked twice) are resampled
    together, as they are not independent evidence. All statistics are of the same resamples, over
    all contestants, so what makes a row hard for every model drops out of a difference. A value of
    a resample is made of sums over its rows, so that clusters of unequal size weigh what they
    should. A row that is unscored in any of the samples that a statistic speaks of counts in none.

    An interval runs between percentiles, with two exceptions, where these would claim too much:

    - Fewer than ten clusters have no ends: nobody can tell.
    - Where all resamples agree, as they do when n clusters score alike, a share of up to
      1 - (alpha/2)^(1/n) of all clusters may still be otherwise (Clopper and Pearson 1934, for 0
      of n), and the ends are what the statistic would be with that share at 0 or at 1. A metric of
      the whole set has no ends then.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; Field and Welsh
    2007, Bootstrapping clustered data.

    Args:
        clusters: The cluster of each row, such as a customer's id.
        evaluation: Number of resamples, level and seed.

    >>> teacher = np.repeat([1.0, 1.0, 1.0, 0.0, 1.0], 8)
    >>> student = np.repeat([1.0, 1.0, 0.0, np.nan, 1.0], 8)
    >>> rows = Bootstrap(range(40), EvaluationSpec())
    >>> found = rows.compare(mean_sums(student), mean_sums(teacher))
    >>> found.ratio.estimate, found.ratio.num_rows, round(found.p_value, 4)
    (0.75, 32, 0.0078)
    """

    def __init__(self, clusters: Sequence[Hashable], evaluation: EvaluationSpec) -> None:
        import pandas as pd

        codes, names = pd.factorize(np.asarray(list(clusters)))
        self._cluster_of_N: NDArray[np.intp] = codes
        self.num_clusters = len(names)
        self._evaluation = evaluation
        self._kept: list[NDArray[np.uint8]] = []
        self._values: dict[tuple[MetricSums, bytes], Scores] = {}

    def interval(
        self, *samples: MetricSums, of_values: Callable[..., Scores] = np.asarray
    ) -> Interval | None:
        """Return a statistic of the values of ``samples`` with its interval.

        Args:
            samples: One metric each, over the same rows.
            of_values: The statistic, from the value of each sample (arrays, one value per
                resample). As it stands, the value of the only sample.

        Returns:
            None when no row is scored in all samples, or the statistic is undefined. The ends are
            None when it is undefined in some resample, or as the class says.
        """
        is_scored_N = _scored_for_all(samples)
        num_rows = int(is_scored_N.sum())
        if num_rows == 0:
            return None
        values = [self._value(sample, is_scored_N) for sample in samples]
        estimate = float(of_values(*values)[0])
        if not math.isfinite(estimate):
            return None
        low, high = None, None
        num_clusters = len(np.unique(self._cluster_of_N[is_scored_N]))
        if num_clusters >= MIN_CLUSTERS:
            resampled = of_values(*(self._resampled(sample, is_scored_N) for sample in samples))
            if not np.isfinite(resampled).all():
                pass
            elif np.ptp(resampled) > EQUAL:
                low, high = map(float, np.quantile(resampled, [self._tail, 1 - self._tail]))
            elif all(sample.scores_N is not None for sample in samples):
                low, high = room(values, of_values, num_clusters, self._tail)
        return Interval(estimate=estimate, low=low, high=high, num_rows=num_rows)

    def compare(self, one: MetricSums, other: MetricSums) -> PairedFigures:
        """Return ``one`` beside ``other``: difference, ratio, and whether they differ at all.

        Where the test does not tell them apart, the intervals are stretched to hold 0 and 1: the
        percentiles alone would call four rows won of a thousand, and none lost, a gain.
        """
        difference = self.interval(one, other, of_values=minus)
        found = self.interval(one, other, of_values=ratio)
        p_value = None if difference is None else self._p_value(one, other)
        if p_value is not None and p_value >= 2 * self._tail:
            difference, found = stretched(difference, 0.0), stretched(found, 1.0)
        return PairedFigures(difference, found, p_value)

    def detectable_loss(self, one: MetricSums, other: MetricSums) -> float | None:
        """Return the smallest loss of ``one`` that four of five test sets like this one show.

        Shown is a loss when the interval of the difference lies below 0. It is (z1 + z2) standard
        errors of the mean difference, z1 for the level and z2 for 80 % power, by the spread of the
        differences over clusters. Where answers are right or wrong, a loss of L changes L of the
        rows at least, which puts a floor under the spread however alike the two are.

        Returns:
            None for a metric of the whole set, for fewer than ten clusters, and where scores that
            are not right or wrong do not differ in any row: their spread is not known then.

        Source: Cohen 1988, Statistical Power Analysis, chapter 2; Miller 2024, Adding Error Bars to
        Evals, arXiv:2411.00640, section 5.
        """
        if one.scores_N is None or other.scores_N is None:
            return None
        is_scored_N = _scored_for_all((one, other))
        num_rows = int(is_scored_N.sum())
        clusters = self._cluster_of_N[is_scored_N]
        if len(np.unique(clusters)) < MIN_CLUSTERS:
            return None
        _, error, _ = mean_by_cluster((one.scores_N - other.scores_N)[is_scored_N], clusters)
        normal = NormalDist()
        z = normal.inv_cdf(1 - self._tail) + normal.inv_cdf(_POWER)
        loss = z * error
        if _is_right_or_wrong(one, other, is_scored_N):
            # L = z sqrt(L (1 - L) / N) is where only rows that are lost differ.
            loss = max(loss, z**2 / (num_rows + z**2))
        return loss if 0 < loss < 1 else None

    # -- resamples ---------------------------------------------------------------------------

    @property
    def _tail(self) -> float:
        """The probability beyond either end of an interval."""
        return (1 - self._evaluation.confidence) / 2

    def _value(self, sample: MetricSums, is_scored_N: NDArray[np.bool_]) -> Scores:
        """Return the metric over the rows as they are, an array of one value."""
        statistics = sample.statistics_NS[is_scored_N]
        return sample.value(np.asarray(statistics.sum(axis=0), dtype=np.float64).reshape(1, -1))

    def _cluster_sums(self, sample: MetricSums, is_scored_N: NDArray[np.bool_]) -> Any:
        """Return the sums over the rows of each cluster, (C, S): sparse if the statistics are."""
        from scipy.sparse import csr_array

        rows = np.flatnonzero(is_scored_N)
        member_CN = csr_array(
            (np.ones(len(rows)), (self._cluster_of_N[rows], rows)),
            shape=(self.num_clusters, len(is_scored_N)),
        )
        return member_CN @ sample.statistics_NS

    def _resampled(self, sample: MetricSums, is_scored_N: NDArray[np.bool_]) -> Scores:
        """Return the metric in each resample, shape (bootstrap_samples,)."""
        key = (sample, is_scored_N.tobytes())
        if key not in self._values:
            sums_CS = self._cluster_sums(sample, is_scored_N)
            resampled = [
                np.asarray(counts.astype(np.float64) @ sums_CS) for counts in self._counts()
            ]
            self._values[key] = sample.value(np.concatenate(resampled))
        return self._values[key]

    def _counts(self) -> Iterator[NDArray[np.uint8]]:
        """Yield how often each cluster is in each resample, some resamples at a time: (b, C).

        One byte each, as no cluster is drawn 256 times: the chance is below 1 in 10^500.
        """
        if self._kept:
            yield from self._kept
            return
        draw = np.random.default_rng(self._evaluation.seed)
        num_resamples, num_clusters = self._evaluation.bootstrap_samples, self.num_clusters
        batch = max(1, _BATCH_VALUES // num_clusters)
        is_kept = num_resamples * num_clusters <= _KEPT_VALUES
        made = []
        for start in range(0, num_resamples, batch):
            size = min(batch, num_resamples - start)
            counts = np.empty((size, num_clusters), np.uint8)
            for at, drawn in enumerate(draw.integers(num_clusters, size=(size, num_clusters))):
                counts[at] = np.bincount(drawn, minlength=num_clusters)
            if is_kept:
                made.append(counts)
            yield counts
        self._kept = made

    # -- tests -------------------------------------------------------------------------------

    def _p_value(self, one: MetricSums, other: MetricSums) -> float:
        """Return the probability of so large a difference, either way, between equals.

        Means: McNemar's exact test where answers are right or wrong and rows independent,
        otherwise a t-test with a cluster-robust error. Metrics of the whole set: were the two
        equal, their answers to a cluster could be exchanged, so the difference is held against
        those after exchanging them at random. That one ends at 1 in as many exchanges as there
        are resamples, which no correction for a hundred slices would leave small.

        Source: McNemar 1947; Cameron and Miller 2015, A Practitioner's Guide to Cluster-Robust
        Inference, section 2; Yeh 2000, More accurate tests for the statistical significance of
        result differences; Phipson and Smyth 2010 for the 1 that is added.
        """
        is_scored_N = _scored_for_all((one, other))
        if one.scores_N is None or other.scores_N is None:
            return self._exchanged(one, other, is_scored_N)
        clusters = self._cluster_of_N[is_scored_N]
        gaps = (one.scores_N - other.scores_N)[is_scored_N]
        are_independent = len(np.unique(clusters)) == len(clusters)
        if are_independent and _is_right_or_wrong(one, other, is_scored_N):
            return mcnemar(int((gaps > 0).sum()), int((gaps < 0).sum()))
        return t_test(gaps, clusters)

    def _exchanged(
        self, one: MetricSums, other: MetricSums, is_scored_N: NDArray[np.bool_]
    ) -> float:
        """Return the share of exchanges that leave a difference as large as the one found."""
        own, others = (self._cluster_sums(sample, is_scored_N) for sample in (one, other))
        change = others - own
        is_other = np.asarray(abs(change).sum(axis=1)).ravel() > 0
        change = change[is_other]
        if not change.shape[0]:
            return 1.0
        own_sum, others_sum = (
            np.asarray(sums.sum(axis=0)).reshape(1, -1) for sums in (own, others)
        )

        def gaps(moved: Scores) -> Scores:
            return np.abs(one.value(own_sum + moved) - other.value(others_sum - moved))

        found = gaps(np.zeros_like(own_sum))[0] - EQUAL
        draw = np.random.default_rng(self._evaluation.seed)
        num_resamples = self._evaluation.bootstrap_samples
        batch = max(1, _BATCH_VALUES // change.shape[0])
        num_large = 0
        for start in range(0, num_resamples, batch):
            shape = min(batch, num_resamples - start), change.shape[0]
            exchanged = draw.integers(2, size=shape, dtype=np.uint8).astype(np.float64)
            num_large += int((gaps(np.asarray(exchanged @ change)) >= found).sum())
        return (1 + num_large) / (1 + num_resamples)


def room(
    values: Sequence[Scores], of_values: Callable[..., Scores], num_clusters: int, tail: float
) -> tuple[float | None, float | None]:
    """Return how far a statistic may lie from one that all resamples agree on."""
    share = 1 - tail ** (1 / num_clusters)
    corners = np.array(list(product((0.0, 1.0), repeat=len(values)))).T
    moved = of_values(
        *((1 - share) * value + share * at for value, at in zip(values, corners, strict=True))
    )
    if not np.isfinite(moved).all():
        return None, None
    return float(moved.min()), float(moved.max())


def _scored_for_all(samples: Sequence[MetricSums]) -> NDArray[np.bool_]:
    """Return which rows are scored in every sample."""
    return np.asarray(np.logical_and.reduce([sample.is_scored_N for sample in samples]))


def _is_right_or_wrong(one: MetricSums, other: MetricSums, is_scored_N: NDArray[np.bool_]) -> bool:
    """Return whether all scores are 0 or 1."""
    if one.scores_N is None or other.scores_N is None:
        return False
    scores = np.concatenate([one.scores_N[is_scored_N], other.scores_N[is_scored_N]])
    return bool(np.isin(scores, (0.0, 1.0)).all())


def stretched(interval: Interval | None, to: float) -> Interval | None:
    """Return an interval that holds ``to``."""
    if interval is None or interval.low is None or interval.high is None:
        return interval
    ends = {"low": min(interval.low, to), "high": max(interval.high, to)}
    return interval.model_copy(update=ends)
