"""Aliases: which student a task's alias stands for, and those before it."""

import logging
from datetime import UTC, datetime

from distillery.registry.gate import check_gate
from distillery.storage.store import Store
from schemas.comparison import Comparison
from schemas.contestants import STUDENT
from schemas.errors import StageError
from schemas.gate import GateSpec
from schemas.promotion import ChampionPointer, PromotedStudent, Promotion
from schemas.refs import Lineage, ModelRef
from schemas.task import TaskSpec

logger = logging.getLogger(__name__)


def read_champion(task: TaskSpec, alias: str, store: Store) -> ChampionPointer | None:
    """Return whom the alias stands for, or None when no student was promoted yet."""
    raw = store.read_json(_uri(task, alias))
    return ChampionPointer.model_validate(raw) if raw is not None else None


def find_rival(student: ModelRef, task: TaskSpec, alias: str, store: Store) -> ModelRef | None:
    """Return the champion that ``student`` has to stand up to, or None when there is none.

    A student that is the champion already is held against the one before it, so that an unchanged
    run compares the same models again.
    """
    pointer = read_champion(task, alias, store)
    promoted = (pointer.current, *pointer.previous) if pointer else ()
    others = (entry.student for entry in promoted)
    return next((other for other in others if other.uri != student.uri), None)


def promote_student(
    comparison: Comparison, lineage: Lineage, task: TaskSpec, gate: GateSpec, store: Store
) -> Promotion:
    """Return the gate's verdict; where all conditions hold, the alias now names ``student``.

    The pointer `aliases/<task>/<alias>.json` keeps the students before it. The same student
    passing again replaces its own entry and adds none.

    Raises:
        StageError: The comparison is of another student: its figures say nothing about this one.
    """
    student, measured = lineage.student, comparison.contestant(STUDENT)
    if measured is None or measured.identity != student.fingerprint:
        raise StageError(
            f"student {student.fingerprint[:12]!r} is up for promotion, but the comparison "
            f"measured {measured.identity[:12] if measured else None!r}. Run compare_models on the "
            "student that is to be promoted."
        )
    pointer = read_champion(task, gate.alias, store)
    rival = find_rival(student, task, gate.alias, store)
    is_lost = rival is not None and not store.holds(rival)
    checks = tuple(check_gate(comparison, gate, rival, is_lost=is_lost))
    before = (pointer.current, *pointer.previous) if pointer else ()
    promotion = Promotion(
        promoted=all(check.passed for check in checks),
        checks=checks,
        previous=before[0].student if before else None,
    )
    if promotion.promoted:
        entry = PromotedStudent(
            student=student,
            promoted_at=datetime.now(UTC),
            compared=comparison.fingerprints["compare_models"],
            num_rows=comparison.num_rows,
            metrics=measured.metrics,
            differences=tuple(d for d in comparison.differences if d.name == STUDENT),
            checks=checks,
        )
        if before and before[0].student.uri == student.uri:
            before = before[1:]
        updated = ChampionPointer(task=task.name, alias=gate.alias, current=entry, previous=before)
        store.write_bytes(_uri(task, gate.alias), updated.model_dump_json(indent=1).encode())
    logger.info("%s: %s", task.name, promotion.sentence)
    return promotion


def _uri(task: TaskSpec, alias: str) -> str:
    return f"aliases/{task.name}/{alias}.json"
