"""Aliases: which student a task's alias stands for, and those before it."""

import logging
from datetime import UTC, datetime

from distillery.registry.conditions import Trial
from distillery.registry.gate import check_forms, check_gate
from distillery.storage.store import Store
from schemas.comparison import Comparison
from schemas.contestants import STUDENT
from schemas.errors import StageError
from schemas.gate import GateSpec
from schemas.promotion import Approval, ChampionPointer, PromotedStudent, Promotion, Verdict
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


def check_student(
    comparison: Comparison, lineage: Lineage, task: TaskSpec, gate: GateSpec, store: Store
) -> Verdict:
    """Return what the gate says of a student and its exported forms; nothing is published.

    A student that the alias stands for already was approved, so nobody is asked again.

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
    rival = find_rival(student, task, gate.alias, store)
    is_lost = rival is not None and not store.holds(rival)
    trial = Trial(comparison, rival, is_lost=is_lost, forms=tuple(lineage.exported))
    pointer = read_champion(task, gate.alias, store)
    stands = pointer is not None and pointer.current.student.uri == student.uri
    return Verdict(
        checks=tuple(check_gate(trial, gate)),
        forms=check_forms(trial, gate),
        approval=pointer.current.approval if pointer and stands else None,
    )


def promote_student(
    comparison: Comparison,
    lineage: Lineage,
    task: TaskSpec,
    gate: GateSpec,
    store: Store,
    approval: Approval | None = None,
) -> Promotion:
    """Return the gate's verdict; where all conditions hold, the alias now names the student.

    The conditions are checked here, whatever was said before: a champion may have been promoted
    while a person was asked. The pointer `aliases/<task>/<alias>.json` keeps the students before
    it. The same student passing again replaces its own entry and adds none.

    Args:
        comparison: The figures.
        lineage: The student and its exported forms.
        task: What it is for.
        gate: The conditions. One that asks a person promotes nobody without an approval.
        store: Where everything is.
        approval: What a person said.

    Raises:
        StageError: As for :func:`check_student`.
    """
    student, measured = lineage.student, comparison.contestant(STUDENT)
    verdict = check_student(comparison, lineage, task, gate, store)
    approval = approval or verdict.approval
    is_approved = approval.approved if approval else gate.approval_timeout_s is None
    pointer = read_champion(task, gate.alias, store)
    before = (pointer.current, *pointer.previous) if pointer else ()
    promotion = Promotion(
        promoted=verdict.passed and is_approved,
        checks=verdict.checks,
        forms=verdict.forms,
        approval=approval,
        previous=before[0].student if before else None,
    )
    if promotion.promoted and measured is not None:
        entry = PromotedStudent(
            student=student,
            promoted_at=datetime.now(UTC),
            compared=comparison.fingerprints["compare_models"],
            num_rows=comparison.num_rows,
            metrics=measured.metrics,
            differences=tuple(d for d in comparison.differences if d.name == STUDENT),
            checks=promotion.checks,
            forms={name: lineage.exported[name] for name in promotion.passed_forms},
            approval=approval,
        )
        if before and before[0].student.uri == student.uri:
            before = before[1:]
        updated = ChampionPointer(task=task.name, alias=gate.alias, current=entry, previous=before)
        store.write_bytes(_uri(task, gate.alias), updated.model_dump_json(indent=1).encode())
    logger.info("%s: %s", task.name, promotion.sentence)
    return promotion


def _uri(task: TaskSpec, alias: str) -> str:
    return f"aliases/{task.name}/{alias}.json"
