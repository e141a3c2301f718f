"""Whether two that differ on these rows may be equally good: tests, and their correction."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

EQUAL = 1e-9
"""Sums of floats that differ by less are equal."""


@functools.cache
def mcnemar(wins: int, losses: int) -> float:
    """Return McNemar's exact p-value of rows that only one of two models got right, and the other.

    >>> mcnemar(7, 1), mcnemar(0, 0)
    (0.0703125, 1.0)
    """
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def t_test(gaps: NDArray[np.float64], clusters: NDArray[np.intp]) -> float:
    """Return the p-value of a mean difference of 0, by clusters of rows."""
    from scipy.stats import t

    mean, error, num = mean_by_cluster(gaps, clusters)
    if abs(mean) < EQUAL or num < 2:
        return 1.0
    if error < EQUAL:  # all alike: as for as many coins that fell on one side
        return float(2.0 ** (1 - num))
    return float(2 * t.sf(abs(mean) / error, num - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for their number; None stays None and does not count.

    For claims of the kind "worse in some metric", where each further metric is another chance to
    be wrong. A gate in which all conditions have to hold needs no correction: to pass it in error,
    a student has to pass the condition that it does not meet (intersection-union test, Berger
    1982).

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, at) for at, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, at) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[at] = largest
    return adjusted


def mean_by_cluster(
    values: NDArray[np.float64], clusters: NDArray[np.intp]
) -> tuple[float, float, int]:
    """Return the mean, its cluster-robust standard error (NaN for one), and how many clusters."""
    _, codes = np.unique(clusters, return_inverse=True)
    mean, num = float(values.mean()), int(codes.max()) + 1
    # What a cluster adds to the sum beyond what its number of rows would.
    spread = np.bincount(codes, values - mean)
    if num < 2:
        return mean, math.nan, num
    return mean, math.sqrt(num / (num - 1) * float(spread @ spread)) / len(values), num
