"""Who is compared with whom, and by how much they differ in every metric."""

from collections.abc import Collection, Iterator, Mapping

from distillery.evaluation.significance import holm
from distillery.evaluation.statistics import (
    Bootstrap,
    MetricSums,
    PairedFigures,
    Scores,
    ratio,
)
from schemas.comparison import ContestantFigures, Cost, Difference, Interval
from schemas.contestants import BASELINE, CHAMPION, STUDENT, TEACHER

Metrics = Mapping[str, MetricSums]
"""What a contestant's metrics are made of, by name, the primary one first."""


def pairs(names: Collection[str], exported: Collection[str] = ()) -> list[tuple[str, str]]:
    """Return who is compared with whom.

    Everybody with the teacher, the student with everybody, and its exported forms with those that
    they may replace or are made of.

    >>> pairs(["teacher", "champion", "student", "onnx int4"], ["onnx int4"])[-3:]
    [('onnx int4', 'teacher'), ('onnx int4', 'champion'), ('onnx int4', 'student')]
    """
    others = [name for name in names if name not in (TEACHER, STUDENT, *exported)]
    found = [(name, TEACHER) for name in others]
    found += [(STUDENT, name) for name in (TEACHER, *others)]
    rivals = [name for name in (TEACHER, BASELINE, CHAMPION, STUDENT) if name in names]
    return found + [(name, rival) for name in names if name in exported for rival in rivals]


def differences(
    row: ContestantFigures,
    other: ContestantFigures,
    metrics: Mapping[str, Metrics],
    bootstrap: Bootstrap,
) -> Iterator[Difference]:
    """Yield a contestant against another one in every metric, the primary one first.

    P-values are corrected for the number of metrics. Savings go with the primary metric.
    """
    own, others = metrics[row.name], metrics[other.name]
    found = {name: bootstrap.compare(own[name], others[name]) for name in own}
    corrected = holm([paired.p_value for paired in found.values()])
    reductions = savings(row, other)
    for (name, paired), adjusted in zip(found.items(), corrected, strict=True):
        yield difference(row.name, other.name, name, paired, adjusted).model_copy(update=reductions)
        reductions = {}


def difference(
    name: str, against: str, metric: str, paired: PairedFigures, adjusted: float | None
) -> Difference:
    """Return a contestant against another one in one metric, without what it saves."""
    return Difference(
        name=name,
        against=against,
        metric=metric,
        difference=paired.difference,
        ratio=paired.ratio,
        p_value=paired.p_value,
        adjusted_p_value=adjusted,
    )


def savings(row: ContestantFigures, other: ContestantFigures) -> dict[str, float | None]:
    """Return what a contestant needs less of than another one, by the fields of a difference."""
    times = row.performance.latency_p50_s, other.performance.latency_p50_s
    return {
        "latency_reduction": reduction(*times),
        "memory_reduction": reduction(row.memory_bytes, other.memory_bytes),
        "parameter_reduction": reduction(row.num_parameters, other.num_parameters),
        "cost_reduction": _cost_reduction(row.cost, other.cost),
    }


def reduction(value: float | None, other: float | None) -> float | None:
    """Return 1 - value / other; None when either is not known or the other is 0.

    >>> reduction(15.0, 100.0), reduction(15.0, None)
    (0.85, None)
    """
    if value is None or not other:
        return None
    return 1 - value / other


def _cost_reduction(cost: Cost | None, other: Cost | None) -> float | None:
    """Return the reduction of a price; None when one is not known or of another currency."""
    if cost is None or other is None or cost.currency != other.currency:
        return None
    return reduction(cost.per_1000, other.per_1000)


def gap_recovered(scores: Mapping[str, MetricSums], bootstrap: Bootstrap) -> Interval | None:
    """Return (student - baseline) / (teacher - baseline) on the rows scored for all three.

    None, not 0, when there is no baseline, or the teacher is not better than it: there is no gap
    to recover. The ends are None where that may be so, as some resamples have no gap.
    """
    if BASELINE not in scores:
        return None

    def share(teacher: Scores, baseline: Scores, student: Scores) -> Scores:
        gap = teacher - baseline
        return ratio(student - baseline, gap * (gap > 0))

    three = (scores[name] for name in (TEACHER, BASELINE, STUDENT))
    return bootstrap.interval(*three, of_values=share)
