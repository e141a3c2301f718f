"""A registry: for whom each alias stands, and the append-only history of how it came to that.

An alias is the newest entry of its history. What can be said about it is a question to its
entries, so the two backends only keep entries: :class:`Registry` knows the rules.
"""

import abc
import getpass
import itertools
import os
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Self

from schemas.base import nearest
from schemas.errors import RegistryError
from schemas.promotion import HistoryEntry
from schemas.refs import ModelRef

Decide = Callable[[Sequence[HistoryEntry]], HistoryEntry | None]
"""Given an alias's entries, oldest first, return the next one; None: nothing is to be added."""


class Registry(abc.ABC):
    """Aliases and their history. Close it after use; it is a context manager."""

    name: str
    """What messages call it."""

    @abc.abstractmethod
    def check(self) -> None:
        """Return when the registry can be read and written.

        Raises:
            StoreError: It cannot.
        """

    @abc.abstractmethod
    def aliases(self) -> list[tuple[str, str]]:
        """Return task and alias of all that have a history, sorted."""

    @abc.abstractmethod
    def history(self, task: str, alias: str) -> list[HistoryEntry]:
        """Return the entries of an alias, oldest first; none when nothing was ever promoted."""

    @abc.abstractmethod
    def append(self, task: str, alias: str, decide: Decide) -> HistoryEntry:
        """Return the newest entry after adding what ``decide`` returns, all in one transaction.

        ``decide`` may be called more than once. What it raises leaves everything as it was.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the connection."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def champion(self, task: str, alias: str) -> HistoryEntry | None:
        """Return the entry that an alias points to, or None when nothing was ever promoted."""
        entries = self.history(task, alias)
        return entries[-1] if entries else None

    def promote(self, entry: HistoryEntry, *, expected: str | None) -> HistoryEntry:
        """Return the entry that the alias points to once ``entry`` is promoted.

        The student that the alias points to already adds an entry only when it passed on another
        comparison or with other forms. The same ``entry`` twice is the same as once.

        Args:
            entry: The student, with the figures on which it passed.
            expected: Uri of the champion that it was compared with. None: there was none.

        Raises:
            RegistryError: The alias points to another student than ``expected`` by now, or
                ``entry.student`` was rolled back and passed the gate anew: only a person brings
                it back.
        """

        def decide(entries: Sequence[HistoryEntry]) -> HistoryEntry | None:
            if any(known.id == entry.id for known in entries):
                return None
            current = entries[-1] if entries else None
            if entry.kind == "promotion":
                if current is not None and current.student.uri == entry.student.uri:
                    is_news = (current.compared, current.forms) != (entry.compared, entry.forms)
                    return entry if is_news else None
                if refusal := comes_back(entry.student, entries):
                    raise RegistryError(refusal)
            if expected != (current.student.uri if current else None):
                raise _has_moved(entry.task, entry.alias, current)
            return entry

        return self.append(entry.task, entry.alias, decide)

    def rollback(
        self,
        task: str,
        alias: str,
        reason: str,
        *,
        is_there: Callable[[ModelRef], bool] = lambda _: True,
    ) -> HistoryEntry:
        """Return the entry by which the alias goes back to the student before the current one.

        Args:
            task: Name of the task.
            alias: Name of the alias.
            reason: Why.
            is_there: Whether a student still has its files.

        Raises:
            RegistryError: There is no such alias, nothing before its student, that student's
                files are gone, or somebody else has moved the alias meanwhile.
        """
        entries = self.known_history(task, alias)
        current, *before = standing(entries)
        if not before:
            raise RegistryError(
                f"{task}/{alias} has pointed to one student only, {current.student.uri!r}, so "
                "there is nothing to go back to. Promote another one by hand: `distillery registry "
                f"promote {task} FINGERPRINT --reason ...`."
            )
        target = before[0]
        if not is_there(target.student):
            raise RegistryError(
                f"the student before, {target.student.uri!r}, is gone from the store, so "
                f"{task}/{alias} cannot go back to it. Promote another one by hand: `distillery "
                f"registry promote {task} FINGERPRINT --reason ...`."
            )
        entry = renewed(target, kind="rollback", reason=reason, restores=target.id)

        def decide(now: Sequence[HistoryEntry]) -> HistoryEntry | None:
            if any(known.id == entry.id for known in now):
                return None
            if now[-1].id != entries[-1].id:
                raise _has_moved(task, alias, now[-1])
            return entry

        return self.append(task, alias, decide)

    def known_history(self, task: str, alias: str) -> list[HistoryEntry]:
        """Return the entries of an alias that exists, oldest first.

        Raises:
            RegistryError: Nothing was ever promoted to it; the nearest that exists is named.
        """
        entries = self.history(task, alias)
        if entries:
            return entries
        known = [f"{task}/{alias}" for task, alias in self.aliases()]
        asked = f"{task}/{alias}"
        if not known:
            raise RegistryError(
                f"registry {self.name!r} is empty: no student was ever promoted. Name the store "
                "with --root, --ledger-url or --recipe if it is another one."
            )
        raise RegistryError(
            f"registry {self.name!r} knows no {asked!r}.{nearest(asked, known)} "
            f"It has: {', '.join(known)}."
        )

    def needed(self) -> list[ModelRef]:
        """Return every model that an alias points to or can go back to, with its forms."""
        entries = [e for alias in self.aliases() for e in standing(self.history(*alias))]
        return [model for e in entries for model in (e.student, *e.forms.values())]


def standing(entries: Sequence[HistoryEntry]) -> list[HistoryEntry]:
    """Return the entry that the alias points to and those that a rollback reaches, newest first.

    A rollback takes the newest away, so that the next one goes further back and not forth again.
    """
    stack: list[HistoryEntry] = []
    for entry in entries:
        if entry.kind == "rollback":
            while stack and stack[-1].id != entry.restores:
                stack.pop()
        if stack and stack[-1].student.uri == entry.student.uri:
            stack.pop()
        stack.append(entry)
    return stack[::-1]


def comes_back(student: ModelRef, entries: Sequence[HistoryEntry]) -> str | None:
    """Return why the gate may not promote ``student``, or None: it was rolled back.

    An unchanged run makes the same student again, and it passes again. Only a person brings it
    back.
    """
    taken_back = None
    for before, entry in itertools.pairwise(entries):
        if entry.kind == "rollback" and before.student.fingerprint == student.fingerprint:
            taken_back = entry
        elif entry.student.fingerprint == student.fingerprint:
            taken_back = None
    if taken_back is None:
        return None
    shown = student.fingerprint[:12]
    return (
        f"student {shown!r} was taken back on {taken_back.at:%Y-%m-%d} by {taken_back.by} "
        f"({taken_back.reason}), and the gate does not bring it back. Change the recipe, or "
        f"`distillery registry promote {taken_back.task} {shown} --reason ...`"
    )


def rival_of(student: ModelRef, entries: Sequence[HistoryEntry]) -> ModelRef | None:
    """Return the champion that ``student`` has to stand up to, or None when there is none.

    A student that is the champion already is held against the one before it, so that an unchanged
    run compares the same models again.
    """
    others = (entry.student for entry in standing(entries))
    return next((other for other in others if other.uri != student.uri), None)


def renewed(entry: HistoryEntry, **changes: Any) -> HistoryEntry:
    """Return ``entry`` as a new event of here and now, with these changes."""
    return entry.model_copy(update={**here_and_now(), **changes})


def here_and_now() -> dict[str, Any]:
    """Return the fields of an entry that say when it happened and who did it."""
    return {"id": uuid.uuid4().hex, "at": datetime.now(UTC), "by": _who()}


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"user {os.getuid()}"


def _has_moved(task: str, alias: str, current: HistoryEntry | None) -> RegistryError:
    to = f"{current.student.uri!r} ({current.kind} by {current.by})" if current else "nobody"
    return RegistryError(
        f"{task}/{alias} was moved to {to} meanwhile, with which this was not compared. Run again"
    )
