"""The one sentence above everything else, on which somebody can act."""

from collections.abc import Sequence
from typing import NamedTuple

from distillery.evaluation.findings import (
    TARGET_COST_REDUCTION,
    TARGET_LATENCY_REDUCTION,
    TARGET_MEMORY_REDUCTION,
    TARGET_RETENTION,
    interval_text,
    more_or_less,
)
from schemas.comparison import Comparison
from schemas.contestants import STUDENT, TEACHER


class _Aim(NamedTuple):
    """A figure and its target."""

    name: str
    value: float | None
    target: float
    words: str


def verdict(comparison: Comparison) -> str:
    """Return what the student keeps and saves, and whether that is what the project aims at.

    Whether it is promoted is the gate's business, which has conditions of its own.
    """
    found = comparison.between(STUDENT, TEACHER)
    if found is None or found.ratio is None:
        return "The student could not be scored against the teacher."
    metric, kept = comparison.metric, found.ratio
    savings = [
        _Aim("time", found.latency_reduction, TARGET_LATENCY_REDUCTION, "answers in {} time"),
        _Aim("memory", found.memory_reduction, TARGET_MEMORY_REDUCTION, "needs {} memory"),
        _Aim("cost", found.cost_reduction, TARGET_COST_REDUCTION, "costs {}"),
    ]
    said = [f"keeps {interval_text(kept)} of the teacher's {metric}"]
    said += [a.words.format(more_or_less(a.value)) for a in savings if a.value is not None]
    judged = _judged([_Aim(metric, kept.estimate, TARGET_RETENTION, ""), *savings])
    if kept.low is not None and kept.low < TARGET_RETENTION <= kept.estimate:
        aim = f"{TARGET_RETENTION * 100:.0f} %"
        judged += f", though the interval of the {metric} kept reaches below {aim}"
    if unknown := [aim.name for aim in savings if aim.value is None]:
        judged += f"; there is no figure for {_and(unknown)}"
    return f"The student {_and(said)}: {judged}."


def _judged(aims: Sequence[_Aim]) -> str:
    """Return which targets are missed, if any."""
    missed = [
        f"{aim.name} ({aim.target * 100:.0f} % {'less' if aim.words else 'of it'})"
        for aim in aims
        if aim.value is not None and aim.value < aim.target
    ]
    if missed:
        return f"it misses the target for {_and(missed)}"
    return f"every target {'' if None not in (a.value for a in aims) else 'with a figure '}is met"


def _and(parts: Sequence[str]) -> str:
    """Return parts as one enumeration.

    >>> _and(["a", "b", "c"]), _and(["a"])
    ('a, b and c', 'a')
    """
    head, last = ", ".join(parts[:-1]), parts[-1]
    return f"{head} and {last}" if head else last
