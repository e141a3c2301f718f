"""The one sentence above everything else, on which somebody can act."""

from collections.abc import Sequence
from typing import NamedTuple

from distillery.evaluation.findings import (
    TARGET_COST_REDUCTION,
    TARGET_LATENCY_REDUCTION,
    TARGET_MEMORY_REDUCTION,
    TARGET_RETENTION,
    TARGET_USERS,
    interval_text,
    more_or_less,
)
from schemas.comparison import Comparison
from schemas.contestants import STUDENT, TEACHER


class _Aim(NamedTuple):
    """A figure, the least that it should be, and both in words."""

    name: str
    value: float | None
    target: float
    target_text: str
    text: str = ""


def verdict(comparison: Comparison) -> str:
    """Return what the student keeps and saves, and whether that is what the project aims at.

    Whether it is promoted is the gate's business, which has conditions of its own.
    """
    found = comparison.between(STUDENT, TEACHER)
    if found is None or found.ratio is None:
        return "The student could not be scored against the teacher."
    metric, kept = comparison.metric, found.ratio
    savings = [
        _saving("time", found.latency_reduction, TARGET_LATENCY_REDUCTION, "answers in {} time"),
        _saving("memory", found.memory_reduction, TARGET_MEMORY_REDUCTION, "needs {} memory"),
        _saving("cost", found.cost_reduction, TARGET_COST_REDUCTION, "costs {}"),
    ]
    said = [f"keeps {interval_text(kept)} of the teacher's {metric}"]
    said += [aim.text for aim in savings if aim.value is not None]
    quality = _Aim(metric, kept.estimate, TARGET_RETENTION, f"{TARGET_RETENTION * 100:.0f} % of it")
    judged = _judged([quality, *savings, _users(comparison)])
    if kept.low is not None and kept.low < TARGET_RETENTION <= kept.estimate:
        aim = f"{TARGET_RETENTION * 100:.0f} %"
        judged += f", though the interval of the {metric} kept reaches below {aim}"
    if unknown := [aim.name for aim in savings if aim.value is None]:
        judged += f"; there is no figure for {_and(unknown)}"
    return f"The student {_and(said)}: {judged}."


def _saving(name: str, reduction: float | None, target: float, text: str) -> _Aim:
    said = "" if reduction is None else text.format(more_or_less(reduction))
    return _Aim(name, reduction, target, f"{target * 100:.0f} % less", said)


def _users(comparison: Comparison) -> _Aim:
    """Return how many times the teacher's queries per hour the student answers."""
    student, teacher = comparison.contestant(STUDENT), comparison.contestant(TEACHER)
    rates = [row.performance.queries_per_hour if row else None for row in (student, teacher)]
    times = rates[0] / rates[1] if rates[0] and rates[1] else None
    return _Aim("users", times, TARGET_USERS, f"{TARGET_USERS} times as many")


def _judged(aims: Sequence[_Aim]) -> str:
    """Return which targets are missed, if any."""
    known = [aim for aim in aims if aim.value is not None]
    missed = [f"{aim.name} ({aim.target_text})" for aim in known if (aim.value or 0) < aim.target]
    if missed:
        return f"it misses the target for {_and(missed)}"
    return "every target is met" if known == aims else "every target with a figure is met"


def _and(parts: Sequence[str]) -> str:
    """Return parts as one enumeration.

    >>> _and(["a", "b", "c"]), _and(["a"])
    ('a, b and c', 'a')
    """
    head, last = ", ".join(parts[:-1]), parts[-1]
    return f"{head} and {last}" if head else last
