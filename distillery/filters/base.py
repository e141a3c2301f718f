"""What a filter is: it keeps a row, drops it with a reason, or rewrites its response."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from distillery.task_types import TaskType
from schemas.filters import DropReason, RewriteReason

SpecT = TypeVar("SpecT")
Row = Mapping[str, Any]
"""A row of a ResponseFrame, as the filters before have left it."""


@dataclass(frozen=True)
class Drop:
    """The row goes to the rejected ones."""

    reason: DropReason
    detail: str
    """What was seen, with values."""

    score: float | None = None
    """What was compared with a bound, where there is one: a length, an agreement."""


@dataclass(frozen=True)
class Rewrite:
    """The row stays, with another response."""

    response: str
    reason: RewriteReason


class _Filter(Generic[SpecT]):
    when: ClassVar[Literal["before_teacher", "after_teacher"]] = "after_teacher"
    """Whether it judges prompts before a token is paid for, or responses. No filter does the
    former yet; :mod:`distillery.filters.stage` refuses one."""

    def __init__(self, spec: SpecT) -> None:
        self.spec = spec


class RowFilter(_Filter[SpecT], ABC):
    """Decides about one row at a time."""

    @abstractmethod
    def row(self, row: Row, task: TaskType) -> Drop | Rewrite | None:
        """Return what is to be done with a row; None keeps it as it is."""


class SetFilter(_Filter[SpecT], ABC):
    """Decides about rows together, such as near-duplicates."""

    reason: ClassVar[DropReason]

    @abstractmethod
    def rows(self, sql: Any) -> Any:
        """Return a relation with `position`, `detail` and `score` of the rows to drop.

        Args:
            sql: A DuckDB connection with the table `rows`: all that are left, in order; a row's
                `rowid` is its position.
        """
