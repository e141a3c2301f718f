"""What a filter is: it keeps a row, drops it with a reason, or rewrites it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from distillery.task_types import TaskType
from schemas.filters import DropReason, RewriteReason

SpecT = TypeVar("SpecT")
Row = Mapping[str, Any]
"""A row of a PromptFrame or a ResponseFrame, as the filters before have left it."""


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
    """The row stays, but changed."""

    columns: Mapping[str, str]
    """What is new, by column: `response` or `messages`."""

    reason: RewriteReason


class _Filter(ABC, Generic[SpecT]):
    """What the two kinds of filters have in common."""

    reads_gold: ClassVar[bool] = False
    """Of a filter over prompts: whether it is for the gold rows too, of which a baseline learns."""

    def __init__(self, spec: SpecT) -> None:
        self.spec = spec

    def check(self) -> None:
        """Return when the filter can run here; before anything is read or asked.

        Raises:
            RecipeError: A library or a model that it needs is not there.
        """

    def identity(self) -> str | None:
        """Return what tells the model that the filter goes by from others; None: it needs none."""
        return None

    def prepare(self, held_out: Iterable[Row]) -> None:
        """Look at the selection and test rows; of a filter over prompts, before its first row."""


class RowFilter(_Filter[SpecT]):
    """Decides about one row at a time."""

    @abstractmethod
    def row(self, row: Row, task: TaskType) -> Drop | Rewrite | None:
        """Return what is to be done with a row; None keeps it as it is."""


class SetFilter(_Filter[SpecT]):
    """Decides about rows together, such as near-duplicates."""

    reason: ClassVar[DropReason]

    @abstractmethod
    def rows(self, sql: Any) -> Any:
        """Return a relation with `position`, `detail` and `score` of the rows to drop.

        Args:
            sql: A DuckDB connection with the table `rows`: all that are left, in order; a row's
                `rowid` is its position.
        """
