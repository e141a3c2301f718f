"""The gate: a student is promoted only when every condition holds."""

import math
import operator
from collections.abc import Callable, Iterator

from schemas.comparison import MAJORITY, Comparison
from schemas.contestants import BASELINE, CHAMPION, STUDENT, TEACHER
from schemas.gate import GateSpec
from schemas.promotion import GateCheck
from schemas.refs import ModelRef


def check_gate(
    comparison: Comparison,
    gate: GateSpec,
    champion: ModelRef | None = None,
    *,
    is_lost: bool = False,
) -> Iterator[GateCheck]:
    """Yield every condition that the gate asks for, with what was measured.

    A figure that is missing or not finite fails its condition.

    Args:
        comparison: The figures.
        gate: The conditions.
        champion: Whom the student would replace; it has to be among the contestants.
        is_lost: Whether the champion's files are gone, so that it could not take part.
    """
    kept = comparison.between(STUDENT, TEACHER)
    retention = kept.ratio.estimate if kept and kept.ratio else None
    yield _check("min_retention", "retention", retention, "at least", gate.min_retention)
    if gate.min_gain is not None:
        learnt = comparison.between(STUDENT, BASELINE)
        gain = learnt.difference.low if learnt and learnt.difference else None
        name = "lower end of the interval of student minus baseline"
        yield _check("min_gain", name, gain, "above", gate.min_gain)
    if gate.min_lead_over_majority is not None and comparison.majority_answer is not None:
        for who in (TEACHER, STUDENT):
            name = f"{who} minus the most frequent answer {comparison.majority_answer!r:.80}"
            lead, required = _estimate(comparison, who, MAJORITY), gate.min_lead_over_majority
            yield _check("min_lead_over_majority", name, lead, "above", required)
    if gate.max_loss_to_champion is not None and champion is not None:
        yield _against_champion(comparison, gate.max_loss_to_champion, champion, is_lost)
    rows = comparison.contestants
    unscored = max(row.num_unscored for row in rows) / max(1, comparison.num_rows)
    if unscored:
        yield _check(
            "max_unscored_fraction",
            "share of unscored rows",
            unscored,
            "at most",
            gate.max_unscored_fraction,
        )
    speed, memory = (kept.latency_reduction, kept.memory_reduction) if kept else (None, None)
    for condition, most, reduction, name in (
        ("max_latency_ratio", gate.max_latency_ratio, speed, "p50 latency"),
        ("max_memory_ratio", gate.max_memory_ratio, memory, "memory"),
    ):
        if most is not None:
            ratio = None if reduction is None else 1 - reduction
            yield _check(condition, f"{name} relative to the teacher's", ratio, "at most", most)


def _against_champion(
    comparison: Comparison, most: float, champion: ModelRef, is_lost: bool
) -> GateCheck:
    """Return whether the student stands up to ``champion``, which has to have taken part."""
    measured = comparison.contestant(CHAMPION)
    if measured is None or measured.identity != champion.fingerprint:
        why = "was promoted while this run was under way. Run again"
        if is_lost:
            why = "is gone from the store. Restore its files, or delete the alias to start over"
        return GateCheck(
            condition="max_loss_to_champion",
            required=most,
            measured=None,
            passed=False,
            sentence=f"the student was not compared with the champion, so "
            f"gate.max_loss_to_champion={most:g} fails: {champion.uri!r} {why}",
        )
    lead = _estimate(comparison, STUDENT, CHAMPION)
    loss = None if lead is None else -lead
    return _check("max_loss_to_champion", "champion minus student", loss, "at most", most)


def _estimate(comparison: Comparison, name: str, against: str) -> float | None:
    found = comparison.between(name, against)
    return found.difference.estimate if found and found.difference else None


_RELATIONS: dict[str, tuple[Callable[[float, float], bool], str, str]] = {
    # how it is compared, what a value beyond the bound is, what one short of it is
    "at least": (operator.ge, "above", "below"),
    "above": (operator.gt, "above", "below"),
    "at most": (operator.le, "below", "above"),
}


def _check(
    condition: str, name: str, measured: float | None, relation: str, required: float
) -> GateCheck:
    """Return whether ``measured`` stands in ``relation`` to ``required``, and by how much."""
    holds, good, bad = _RELATIONS[relation]
    bound = f"gate.{condition}={required:g}"
    if measured is None or not math.isfinite(measured):
        return GateCheck(
            condition=condition,
            required=required,
            measured=None,
            passed=False,
            sentence=f"{name} could not be computed, so {bound} fails",
        )
    # Sums of floats: 0.437 / 0.475 has to reach 0.92, and 0.3 - 0.1 - 0.2 must not exceed 0.
    rounded = round(measured, 9)
    passed, margin = holds(rounded, required), abs(rounded - required)
    beyond = f"{margin:.4g} {good if passed else bad}" if margin else "exactly"
    return GateCheck(
        condition=condition,
        required=required,
        measured=measured,
        passed=passed,
        sentence=f"{name} {rounded:.4g} is {beyond} {bound}"
        + (", not above it" if not (passed or margin) else ""),
    )
