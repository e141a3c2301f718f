"""What a policy sees of a row, and what it says comes next.

A policy is a pure function of the row and of the responses that are there. So a run that was killed
takes the same course again, and everything that was paid for is found in the ledger.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from distillery.task_types import Answer, TaskType, task_type
from distillery.teacher.pair import Verdict
from distillery.teacher.requests import Said
from schemas.panel import PanelTeacher
from schemas.task import TaskSpec

SpecT = TypeVar("SpecT")


@dataclasses.dataclass
class Known:
    """What is there of a row by now."""

    said: dict[str, Said] = dataclasses.field(default_factory=dict)
    """By member, of those that have answered."""

    verdicts: dict[tuple[str, str], Verdict | None] = dataclasses.field(default_factory=dict)
    """What the judge says of the responses of two members, from the side of the first."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """These members have to answer before anything can be said."""

    members: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Compare:
    """The judge has to say which of two members' responses is better."""

    first: str
    second: str


@dataclasses.dataclass(frozen=True)
class Taken:
    """The row gets this member's response."""

    member: str

    because: str
    """One of `schemas.panel.REASONS`, with values behind a colon."""

    agreement: float | None = None
    """Share of the members, or of the member's own samples, that bear it out; 0: none does."""


Step = Ask | Compare | Taken


class Policy(abc.ABC, Generic[SpecT]):
    """Says whose response a row gets."""

    def __init__(self, panel: PanelTeacher, spec: SpecT, task: TaskSpec) -> None:
        """Take over the panel, and its ``policy`` as ``spec``."""
        self.spec, self.members = spec, panel.teachers
        self.names = tuple(each.name for each in panel.teachers)
        self.kind: TaskType = task_type(task)

    @abc.abstractmethod
    def step(self, row: Mapping[str, Any], known: Known) -> Step:
        """Return what comes next for a row of a PromptFrame, given what is known of it."""

    def missing(self, known: Known) -> tuple[str, ...]:
        """Return the members that have not answered."""
        return tuple(name for name in self.names if name not in known.said)

    def answers(self, known: Known) -> dict[str, Answer]:
        """Return the answers of the members that gave one, in the panel's order."""
        texts = {name: known.said[name].text for name in self.names if name in known.said}
        return {
            name: answer
            for name, text in texts.items()
            if text is not None and (answer := self.kind.parse(text)) is not None
        }
