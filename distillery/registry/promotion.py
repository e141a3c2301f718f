"""From the gate's verdict to the alias: a student that passes is promoted in one transaction."""

import logging

from distillery.registry import alias_files, open_registry
from distillery.registry.base import Registry, comes_back, here_and_now, rival_of
from distillery.registry.conditions import Trial
from distillery.registry.gate import check_forms, check_gate
from distillery.storage.store import Store
from schemas.comparison import Comparison
from schemas.contestants import CHAMPION, STUDENT
from schemas.errors import RegistryError, StageError
from schemas.execution import StoreSpec
from schemas.gate import GateSpec
from schemas.promotion import Approval, GateCheck, HistoryEntry, Promotion, Verdict
from schemas.refs import Lineage, ModelRef
from schemas.task import TaskSpec

logger = logging.getLogger(__name__)


def find_rival(
    student: ModelRef, task: TaskSpec, gate: GateSpec, store: StoreSpec
) -> ModelRef | None:
    """Return the champion that ``student`` has to stand up to, or None when there is none.

    The alias's file is put right if a killed run has left an old one.
    """
    with open_registry(store) as registry:
        alias_files.refresh(registry, Store(store.root), task.name, gate.alias)
        return rival_of(student, registry.history(task.name, gate.alias))


def check_student(
    comparison: Comparison, lineage: Lineage, task: TaskSpec, gate: GateSpec, store: StoreSpec
) -> Verdict:
    """Return what the gate says of a student and its exported forms; nothing is published.

    A student that the alias points to already was approved, with the forms that it had then, so
    nobody is asked again about those.

    Raises:
        StageError: The comparison is of another student: its figures say nothing about this one.
        StoreError: The registry cannot be reached.
    """
    with open_registry(store) as registry:
        entries = registry.history(task.name, gate.alias)
    return _verdict(comparison, lineage, gate, Store(store.root), entries)


def promote_student(
    comparison: Comparison,
    lineage: Lineage,
    task: TaskSpec,
    gate: GateSpec,
    store: StoreSpec,
    approval: Approval | None = None,
) -> Promotion:
    """Return the gate's verdict; where all conditions hold, the alias now names the student.

    The conditions are checked here, whatever was said before: a champion may have been promoted
    while a person was asked. The registry then promotes only if the alias still points to the
    champion that took part in the comparison.

    Args:
        comparison: The figures.
        lineage: The student and its exported forms.
        task: What it is for.
        gate: The conditions. One that asks a person promotes nobody without an approval.
        store: Where registry and files are.
        approval: What a person said.

    Raises:
        StageError: As for :func:`check_student`.
        StoreError: The registry cannot be reached. Nothing is promoted.
    """
    files = Store(store.root)
    with open_registry(store) as registry:
        entries = registry.history(task.name, gate.alias)
        verdict = _verdict(comparison, lineage, gate, files, entries)
        approval = approval or verdict.approval
        is_approved = approval.approved if approval else gate.approval_timeout_s is None
        promotion = Promotion(
            promoted=verdict.passed and is_approved,
            checks=verdict.checks,
            forms=verdict.forms,
            approval=approval,
            previous=entries[-1].student if entries else None,
        )
        if promotion.promoted:
            promotion = _carry_out(promotion, comparison, lineage, task, gate, registry)
            alias_files.refresh(registry, files, task.name, gate.alias)
    logger.info("%s: %s", task.name, promotion.sentence)
    return promotion


def _verdict(
    comparison: Comparison,
    lineage: Lineage,
    gate: GateSpec,
    files: Store,
    entries: list[HistoryEntry],
) -> Verdict:
    """Return what the gate says, given the alias's entries."""
    student, measured = lineage.student, comparison.contestant(STUDENT)
    # One training made twice on a GPU has one fingerprint, and may have other weights.
    if measured is None or measured.model != student.uri:
        raise StageError(
            f"student {student.uri!r} is up for promotion, but the comparison measured "
            f"{measured.model if measured else None!r}. Run compare_models on the student that is "
            "to be promoted."
        )
    rival = rival_of(student, entries)
    is_lost = rival is not None and not files.holds(rival)
    trial = Trial(comparison, rival, is_lost=is_lost, forms=tuple(lineage.exported))
    stands = bool(entries) and entries[-1].student.uri == student.uri
    checks = tuple(check_gate(trial, gate))
    # Said here already, so that no person is asked about it.
    if not stands and (refusal := comes_back(student, entries)):
        checks += (_refused(refusal),)
    verdict = Verdict(checks=checks, forms=check_forms(trial, gate))
    if stands and _published(verdict, lineage).items() <= entries[-1].forms.items():
        verdict = verdict.model_copy(update={"approval": entries[-1].approval})
    return verdict


def _published(verdict: Verdict, lineage: Lineage) -> dict[str, ModelRef]:
    """Return the exported forms that pass."""
    return {name: lineage.exported[name] for name in verdict.passed_forms}


def _carry_out(
    promotion: Promotion,
    comparison: Comparison,
    lineage: Lineage,
    task: TaskSpec,
    gate: GateSpec,
    registry: Registry,
) -> Promotion:
    """Return ``promotion`` with its entry; not promoted, with the reason, if that is refused."""
    student, champion = comparison.contestant(STUDENT), comparison.contestant(CHAMPION)
    approval = promotion.approval
    entry = HistoryEntry(
        **here_and_now(),
        kind="promotion",
        task=task.name,
        alias=gate.alias,
        student=lineage.student,
        forms=_published(promotion, lineage),
        reason=(approval.comment if approval else "") or "passed the gate",
        compared=comparison.fingerprints["compare_models"],
        num_rows=comparison.num_rows,
        metrics=student.metrics if student else {},
        differences=tuple(d for d in comparison.differences if d.name == STUDENT),
        checks=promotion.checks,
        approval=approval,
    )
    try:
        done = registry.promote(entry, expected=champion.model if champion else None)
    except RegistryError as error:
        changes = {"promoted": False, "checks": (*promotion.checks, _refused(str(error)))}
        return promotion.model_copy(update=changes)
    return promotion.model_copy(update={"entry": done.id})


def _refused(why: str) -> GateCheck:
    """Return the condition that the registry adds to those of the gate, failed."""
    return GateCheck(condition="alias", required=None, measured=None, passed=False, sentence=why)
