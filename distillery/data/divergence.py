"""How far two distributions of counts are apart, and how far chance alone would bring them."""

import math
from collections.abc import Mapping


def divergence(counts: Mapping[str, float], others: Mapping[str, float]) -> float:
    """Return the Jensen-Shannon divergence of two distributions, bits, from 0 to 1.

    Unlike the population stability index it is finite where a bin is empty in one of them.

    Source: Lin 1991, Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory 37.

    >>> divergence({"a": 1, "b": 1}, {"a": 10, "b": 10}), divergence({"a": 1}, {"b": 1})
    (0.0, 1.0)
    """
    sums = sum(counts.values()), sum(others.values())
    total = 0.0
    for name in {**counts, **others}:
        shares = counts.get(name, 0) / sums[0], others.get(name, 0) / sums[1]
        middle = sum(shares) / 2
        total += sum(share / 2 * math.log2(share / middle) for share in shares if share)
    return min(1.0, max(0.0, total))


def by_chance(counts: Mapping[str, float], others: Mapping[str, float]) -> float:
    """Return the mean divergence of two samples of these sizes from one distribution, bits.

    The first term of its expansion in 1/n: twice the samples, half the divergence.

    >>> round(by_chance({"a": 500, "b": 500}, {"a": 490, "b": 510}), 6)
    0.000361
    """
    num_bins = len([name for name in {**counts, **others} if counts.get(name) or others.get(name)])
    sizes = sum(counts.values()), sum(others.values())
    return min(1.0, (num_bins - 1) / (8 * math.log(2)) * sum(1 / size for size in sizes))
