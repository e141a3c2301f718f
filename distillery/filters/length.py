"""Responses outside length bounds."""

from distillery.filters.base import Drop, Row, RowFilter
from distillery.task_types import TaskType
from schemas.filters import DropReason, LengthFilter


class Length(RowFilter[LengthFilter]):
    """Drops what is too short or too long, in characters."""

    def row(self, row: Row, task: TaskType) -> Drop | None:
        """Drop a response by its length without outer white space."""
        length = len(row["response"].strip())
        shortest, longest = self.spec.min_chars, self.spec.max_chars
        if length < shortest:
            return Drop(DropReason.TOO_SHORT, f"{length} characters, below {shortest}", length)
        if length > longest:
            return Drop(DropReason.TOO_LONG, f"{length} characters, above {longest}", length)
        return None
