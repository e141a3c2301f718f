"""Statistics: intervals over the scores of many answers.

A score of None means *unscored*: there was no answer to judge. It is never counted as 0.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from distillery.task_types import ScoredRow, SetMetric
from schemas.comparison import Interval
from schemas.evaluation import EvaluationSpec

Scores = NDArray[np.float64]
"""Scores by row, NaN where unscored."""

_RESAMPLED_VALUES = 4_000_000  # values per batch of resamples: 32 MB of float64 per model


def mean_interval(scores: Scores, evaluation: EvaluationSpec) -> Interval | None:
    """Return the mean over the scored rows; None when no row is scored."""
    return paired_bootstrap([scores], lambda a: a, evaluation)


def difference_interval(a: Scores, b: Scores, evaluation: EvaluationSpec) -> Interval | None:
    """Return mean(a) - mean(b) over the rows scored for both; None when there are none."""
    return paired_bootstrap([a, b], lambda mean_a, mean_b: mean_a - mean_b, evaluation)


def ratio_interval(a: Scores, b: Scores, evaluation: EvaluationSpec) -> Interval | None:
    """Return mean(a) / mean(b) over the rows scored for both; None when mean(b) is 0."""
    return paired_bootstrap([a, b], _ratio, evaluation)


def _ratio(a: Scores, b: Scores) -> Scores:
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b != 0)


def paired_bootstrap(
    samples: Sequence[Scores], of_means: Callable[..., Scores], evaluation: EvaluationSpec
) -> Interval | None:
    """Return a statistic of the means of ``samples`` with its percentile bootstrap interval.

    Rows are resampled together over all samples, so what makes a row hard for every model drops
    out of a difference. A row that is unscored in any sample counts in none.

    Args:
        samples: Scores by row, the same rows in the same order; NaN where unscored.
        of_means: The statistic, from the mean of each sample (arrays, one value per resample).
        evaluation: Number of resamples, level and seed.

    Returns:
        None when no row is scored in all samples, or the statistic is undefined. The ends are
        None when it is undefined in some resample, or there is one row only.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.

    >>> teacher = np.array([1.0, 1.0, 1.0, 0.0]); student = np.array([1.0, 1.0, 0.0, np.nan])
    >>> interval = ratio_interval(student, teacher, EvaluationSpec())
    >>> round(interval.estimate, 3), interval.num_rows
    (0.667, 3)
    """
    stacked = np.stack([np.asarray(sample, dtype=np.float64) for sample in samples])
    rows = stacked[:, ~np.isnan(stacked).any(axis=0)]
    num_rows = rows.shape[1]
    if num_rows == 0:
        return None
    estimate = float(of_means(*(np.atleast_1d(row.mean()) for row in rows))[0])
    if not math.isfinite(estimate):
        return None
    # One row says nothing about its spread.
    values = of_means(*_resampled_means(rows, evaluation)) if num_rows > 1 else np.empty(0)
    return _interval(estimate, values, num_rows, evaluation)


def set_interval(
    metric: SetMetric, rows: Sequence[ScoredRow], evaluation: EvaluationSpec
) -> Interval | None:
    """Return a metric of a set of answers with its percentile bootstrap interval.

    Rows are resampled, and the metric made anew from the sums over each resample.

    Returns:
        None when there are no rows or the metric is undefined. The ends are None as for
        :func:`paired_bootstrap`.
    """
    if not rows:
        return None
    statistics, num_rows = metric.statistics(rows), len(rows)
    estimate = float(metric.value(np.asarray(statistics.sum(axis=0)).reshape(1, -1))[0])
    if not math.isfinite(estimate):
        return None
    draw = np.random.default_rng(evaluation.seed)
    at_once = max(1, _RESAMPLED_VALUES // max(statistics.shape))
    values: list[float] = []
    while num_rows > 1 and len(values) < evaluation.bootstrap_samples:
        size = min(at_once, evaluation.bootstrap_samples - len(values))
        times_RN = draw.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=size)
        values.extend(metric.value(np.asarray(times_RN @ statistics, dtype=np.float64)))
    return _interval(estimate, np.array(values), num_rows, evaluation)


def _interval(
    estimate: float, values: Scores, num_rows: int, evaluation: EvaluationSpec
) -> Interval:
    """Return an estimate between the percentiles of its resampled values, if there are any."""
    if not values.size or not np.isfinite(values).all():
        return Interval(estimate=estimate, low=None, high=None, num_rows=num_rows)
    tail = (1 - evaluation.confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(estimate=estimate, low=float(low), high=float(high), num_rows=num_rows)


def _resampled_means(rows_MN: Scores, evaluation: EvaluationSpec) -> Scores:
    """Return the mean of each sample in each resample, shape (M, bootstrap_samples).

    M = samples, N = rows. The means and not the statistic are asked of scipy, as it warns when a
    statistic is undefined in a resample.
    """
    from scipy.stats import bootstrap

    def means(*resampled: Scores, axis: int = -1) -> Scores:
        return np.stack([sample.mean(axis=axis) for sample in resampled])

    result = bootstrap(
        tuple(rows_MN),
        means,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=evaluation.bootstrap_samples,
        batch=max(1, _RESAMPLED_VALUES // rows_MN.shape[1]),
        rng=np.random.default_rng(evaluation.seed),
    )
    distribution: Scores = result.bootstrap_distribution
    return distribution
