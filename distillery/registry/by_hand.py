"""What a person does past the gate: bring the student before back, or put one in place."""

import re

from distillery.registry import alias_files
from distillery.registry.base import Registry, here_and_now, renewed
from distillery.storage.store import Store
from schemas.errors import RegistryError
from schemas.execution import StageName
from schemas.gate import GateSpec
from schemas.promotion import HistoryEntry
from schemas.refs import ModelRef
from schemas.task import TaskSpec


def promote_by_hand(
    registry: Registry, store: Store, task: str, alias: str, fingerprint: str, reason: str
) -> HistoryEntry:
    """Return the entry by which a student of the store is promoted past the gate.

    Figures and forms are those with which it passed for this alias before, if it ever did.

    Args:
        registry: Where it is recorded.
        store: Where its files are.
        task: Name of the task.
        alias: Name of the alias.
        fingerprint: Of the student; its beginning is enough.
        reason: Why.

    Raises:
        RegistryError: Task or alias is a name that no recipe can have, the reason is blank, there
            is no such student, its files are gone, it is the champion already, or the alias was
            moved meanwhile.
    """
    _refuse_names(task, alias)
    _refuse_blank(reason)
    student = _stored_student(store, fingerprint)
    entries = registry.history(task, alias)
    current = entries[-1] if entries else None
    if current is not None and current.student.uri == student.uri:
        raise RegistryError(f"{task}/{alias} points to {student.uri!r} already.")
    known = [entry for entry in entries if entry.student.uri == student.uri]
    if known:
        entry = renewed(known[-1], kind="manual", reason=reason, restores=None, approval=None)
    else:
        entry = HistoryEntry(
            **here_and_now(), kind="manual", task=task, alias=alias, student=student, reason=reason
        )
    done = registry.promote(entry, expected=current.student.uri if current else None)
    alias_files.refresh(registry, store, task, alias)
    return done


def roll_back(registry: Registry, store: Store, task: str, alias: str, reason: str) -> HistoryEntry:
    """Return the entry by which the alias goes back to the student before the current one.

    Raises:
        RegistryError: See :meth:`~distillery.registry.base.Registry.rollback`.
    """
    _refuse_blank(reason)
    done = registry.rollback(task, alias, reason, is_there=store.holds)
    alias_files.refresh(registry, store, task, alias)
    return done


def _refuse_names(task: str, alias: str) -> None:
    """Return when a recipe can have both names: they also name a file in the store."""
    for what, value, spec, field in (
        ("task.name", task, TaskSpec, "name"),
        ("gate.alias", alias, GateSpec, "alias"),
    ):
        (pattern,) = (
            found.pattern
            for found in spec.model_fields[field].metadata
            if getattr(found, "pattern", None)
        )
        if not re.fullmatch(pattern, value):
            raise RegistryError(
                f"{value!r} cannot be a {what}, so no recipe could ever read that alias. Write it "
                "as the recipe has it."
            )


def _refuse_blank(reason: str) -> None:
    if not reason.strip():
        raise RegistryError(
            f"the reason is {reason!r}, and nobody could tell from the history why this was done. "
            "Say it in --reason."
        )


def _stored_student(store: Store, fingerprint: str) -> ModelRef:
    """Return the student whose fingerprint begins so."""
    stage = StageName.TRAIN_STUDENT
    found = [name for name in store.list_folders(stage) if name.startswith(fingerprint)]
    students = [
        ref
        for name in found
        if (manifest := store.find(stage, name))
        and isinstance(ref := manifest.outputs.get("model"), ModelRef)
        and store.holds(ref)
    ]
    if len(students) == 1:
        return students[0]
    if students:
        shown = ", ".join(ref.fingerprint[:16] for ref in students)
        raise RegistryError(
            f"{len(students)} students of store {store.root!r} begin with {fingerprint!r}: "
            f"{shown}. Write more of the one that you mean."
        )
    raise RegistryError(
        f"store {store.root!r} holds no trained student whose fingerprint begins with "
        f"{fingerprint!r}. Their folders are in {store.path(stage)!r}."
    )
