"""What a filter is: it keeps a row, drops it with a reason, or rewrites it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from distillery.storage.store import Store
from distillery.task_types import TaskType
from schemas.execution import StoreSpec
from schemas.filters import DropReason, RewriteReason
from schemas.refs import DatasetRef

SpecT = TypeVar("SpecT")
Row = Mapping[str, Any]
"""A row of a PromptFrame or a ResponseFrame, as the filters before have left it."""
Rows = list[dict[str, Any]]


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


@dataclass(frozen=True)
class Context:
    """What a filter may look at besides the rows themselves."""

    task: TaskType

    prompts: DatasetRef
    """Rows of all splits: gold and selection rows have references."""

    store: Store
    store_spec: StoreSpec

    purpose: str
    """What money is spent for: the stage's fingerprint."""

    on_progress: Callable[[int], None] | None = None
    """Called with the rows that a model has looked at."""


class _Filter(ABC, Generic[SpecT]):
    """What the two kinds of filters have in common."""

    reads_gold: ClassVar[bool] = False
    """Of a filter over prompts: whether it is for the gold rows too, of which a baseline learns."""

    def __init__(self, spec: SpecT) -> None:
        self.spec = spec
        self.facts: dict[str, Any] = {}
        """What it has seen, for the manifest."""
        self.cost: float | None = None
        """Money spent on what it asked. None: nothing, or no price is known."""
        self.currency: str | None = None

    def inputs(self, prompts: DatasetRef) -> dict[str, Any]:
        """Return what a result depends on besides rows and settings: identities of models, rows."""
        return {}

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

    def open(self, context: Context) -> None:
        """Get ready for the first row."""

    def close(self) -> None:
        """Let go of what was opened."""


class RowFilter(_Filter[SpecT]):
    """Decides about one row at a time."""

    @abstractmethod
    def row(self, row: Row, task: TaskType) -> Drop | Rewrite | None:
        """Return what is to be done with a row; None keeps it as it is."""

    def batch(self, rows: Rows, task: TaskType) -> Iterable[Drop | Rewrite | None]:
        """Return what is to be done with each of ``rows``; for filters that ask a model."""
        return (self.row(row, task) for row in rows)


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
