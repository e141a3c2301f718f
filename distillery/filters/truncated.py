"""Responses that were cut at `teacher.max_new_tokens`."""

from distillery.filters.base import Drop, Row, RowFilter
from distillery.task_types import TaskType
from schemas.filters import DropReason, TruncatedFilter


class Truncated(RowFilter[TruncatedFilter]):
    """Drops what the teacher's endpoint says it has cut."""

    def row(self, row: Row, task: TaskType) -> Drop | None:
        """Drop a response that did not end by itself."""
        if row["state"] != "truncated":
            return None
        num_tokens = row["completion_tokens"]
        return Drop(DropReason.TRUNCATED, f"cut after {num_tokens} tokens", num_tokens)
