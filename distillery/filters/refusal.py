"""Responses in which the teacher declines."""

import re

from distillery.filters.base import Drop, Row, RowFilter
from distillery.task_types import TaskType
from distillery.task_types.thoughts import split_thoughts
from schemas.filters import DropReason, RefusalFilter


class Refusal(RowFilter[RefusalFilter]):
    """Drops what matches a pattern."""

    def row(self, row: Row, task: TaskType) -> Drop | None:
        """Drop a response in which a pattern is found, thoughts aside."""
        if task.labels and task.parse(row["response"]):
            return None  # a label is an answer, however it reads
        text = split_thoughts(row["response"])[1].strip()
        for pattern in self.spec.patterns:
            if match := re.search(pattern, text, re.IGNORECASE):
                return Drop(DropReason.REFUSAL, f"{match.group()!r:.80} matches {pattern!r}")
        return None
