"""The gate and the pointer: a student is published only when every condition holds."""

import logging
import math
import operator
from collections.abc import Callable
from datetime import UTC, datetime

from distillery.storage.store import Store
from schemas.comparison import Comparison, ModelFigures
from schemas.errors import StageError
from schemas.evaluation import GateSpec
from schemas.promotion import ChampionPointer, GateCheck, PromotedStudent, Promotion
from schemas.refs import ModelRef
from schemas.task import TaskSpec

logger = logging.getLogger(__name__)


def check_gate(comparison: Comparison, gate: GateSpec) -> list[GateCheck]:
    """Return every condition that the gate asks for, with what was measured.

    A figure that is missing or not finite fails its condition.
    """
    student, teacher = comparison.model("student"), comparison.model("teacher")
    retention = student.retention.estimate if student and student.retention else None
    gain = comparison.gain.low if comparison.gain else None
    checks = [_check("min_retention", "retention", retention, "at least", gate.min_retention)]
    if gate.min_gain is not None:
        name = "lower end of the interval of student minus baseline"
        checks.append(_check("min_gain", name, gain, "above", gate.min_gain))
    unscored = max(row.num_unscored for row in comparison.models) / max(1, comparison.num_rows)
    if unscored:
        name, most = "share of unscored rows", gate.max_unscored_fraction
        checks.append(_check("max_unscored_fraction", name, unscored, "at most", most))
    if gate.max_latency_ratio is not None:
        ratio = _ratio(_latency(student), _latency(teacher))
        name = "p50 latency relative to the teacher's"
        checks.append(_check("max_latency_ratio", name, ratio, "at most", gate.max_latency_ratio))
    if gate.max_memory_ratio is not None:
        ratio = _ratio(_memory(student), _memory(teacher))
        name = "memory relative to the teacher's"
        checks.append(_check("max_memory_ratio", name, ratio, "at most", gate.max_memory_ratio))
    return checks


def _latency(row: ModelFigures | None) -> float | None:
    return row.performance.latency_p50_s if row else None


def _memory(row: ModelFigures | None) -> float | None:
    return row.memory_bytes if row else None


def _ratio(value: float | None, teacher_value: float | None) -> float | None:
    return value / teacher_value if value is not None and teacher_value else None


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


def promote_student(
    comparison: Comparison, student: ModelRef, task: TaskSpec, gate: GateSpec, store: Store
) -> Promotion:
    """Return the gate's verdict; where all conditions hold, the alias now names ``student``.

    The pointer `aliases/<task>/<alias>.json` keeps the students before it. The same student
    passing again replaces its own entry and adds none.

    Raises:
        StageError: The comparison is of another student: its figures say nothing about this one.
    """
    measured = comparison.model("student")
    if measured is None or measured.identity != student.fingerprint:
        raise StageError(
            f"student {student.fingerprint[:12]!r} is up for promotion, but the comparison "
            f"measured {measured.identity[:12] if measured else None!r}. Run evaluate_models and "
            "compare_models on the student that is to be promoted."
        )
    checks = tuple(check_gate(comparison, gate))
    uri = f"aliases/{task.name}/{gate.alias}.json"
    pointer = read_champion(task, gate.alias, store)
    promotion = Promotion(
        promoted=all(check.passed for check in checks),
        checks=checks,
        alias_uri=uri,
        student=student,
        previous=pointer.current.student if pointer else None,
    )
    if promotion.promoted:
        entry = _entry(comparison, measured, promotion)
        updated = _succeed(pointer, entry, task, gate.alias)
        store.write_bytes(uri, updated.model_dump_json(indent=1).encode())
    logger.info("%s: %s", task.name, promotion.sentence)
    return promotion


def read_champion(task: TaskSpec, alias: str, store: Store) -> ChampionPointer | None:
    """Return whom the alias stands for, or None when no student was promoted yet."""
    raw = store.read_json(f"aliases/{task.name}/{alias}.json")
    return ChampionPointer.model_validate(raw) if raw is not None else None


def _entry(comparison: Comparison, measured: ModelFigures, promotion: Promotion) -> PromotedStudent:
    return PromotedStudent(
        student=promotion.student,
        promoted_at=datetime.now(UTC),
        scores_fingerprint=comparison.fingerprints["evaluate_models"],
        num_rows=comparison.num_rows,
        accuracy=measured.accuracy,
        retention=measured.retention,
        gain=comparison.gain,
        checks=promotion.checks,
    )


def _succeed(
    pointer: ChampionPointer | None, entry: PromotedStudent, task: TaskSpec, alias: str
) -> ChampionPointer:
    """Return the pointer with ``entry`` on top of those before it."""
    before = (pointer.current, *pointer.previous) if pointer else ()
    if before and before[0].student.fingerprint == entry.student.fingerprint:
        before = before[1:]
    return ChampionPointer(task=task.name, alias=alias, current=entry, previous=before)
