"""Empty responses."""

from distillery.filters.base import Drop, Row, RowFilter
from distillery.task_types import TaskType
from schemas.filters import DropReason, EmptyFilter


class Empty(RowFilter[EmptyFilter]):
    """Drops white space."""

    def row(self, row: Row, task: TaskType) -> Drop | None:
        """Drop a response without text."""
        if row["response"].strip():
            return None
        return Drop(DropReason.EMPTY, "the response has no text")
