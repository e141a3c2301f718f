"""Responses in which the teacher declines."""

import re

from distillery.filters.base import Drop, Row, RowFilter
from distillery.filters.refusal_patterns import PATTERNS
from distillery.task_types import TaskType
from distillery.task_types.thoughts import split_thoughts
from schemas.filters import DropReason, RefusalFilter


class Refusal(RowFilter[RefusalFilter]):
    """Drops what matches a pattern of a language, or of the recipe."""

    def __init__(self, spec: RefusalFilter) -> None:
        super().__init__(spec)
        self._patterns: list[tuple[str, re.Pattern[str]]] = [
            (language, re.compile(pattern, re.IGNORECASE))
            for language in spec.languages or PATTERNS
            for pattern in PATTERNS[language]
        ]
        own = (re.compile(pattern, re.IGNORECASE) for pattern in spec.patterns)
        self._patterns += [("filters.responses", pattern) for pattern in own]

    def row(self, row: Row, task: TaskType) -> Drop | None:
        """Drop a response in which a pattern is found, thoughts aside."""
        if task.labels and task.parse(row["response"]):
            return None  # a label is an answer, however it reads
        text = split_thoughts(row["response"])[1].strip()
        for origin, pattern in self._patterns:
            if match := pattern.search(text):
                return Drop(DropReason.REFUSAL, f"{match.group()!r:.80} declines ({origin})")
        return None
