"""Responses without an answer of the task, and the ones whose answer is dressed up."""

from distillery.filters.base import Drop, Rewrite, Row, RowFilter
from distillery.task_types import Answer, TaskType
from schemas.filters import FormatFilter, RewriteReason


class Format(RowFilter[FormatFilter]):
    """Keeps the bare answer, so that the student learns one way of writing it."""

    def row(self, row: Row, task: TaskType) -> Drop | Rewrite | None:
        """Drop a response without an answer, rewrite one that is more than its answer."""
        answer = task.read(row["response"])
        if not isinstance(answer, Answer):
            return Drop(*answer)
        if answer.text == row["response"]:
            return None
        reason = RewriteReason.CANONICAL_LABEL if task.labels else RewriteReason.BARE_ANSWER
        return Rewrite({"response": answer.text}, reason)
