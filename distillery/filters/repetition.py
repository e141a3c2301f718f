"""Responses that say the same thing again and again."""

import re
from collections import Counter

from distillery.data.words import looping_runs, words_of
from distillery.filters.base import Drop, Row, RowFilter
from distillery.task_types import TaskType
from distillery.task_types.thoughts import split_thoughts
from schemas.filters import DropReason, RepetitionFilter

# Gopher's bounds, as shares: Rae et al. 2021, arXiv:2112.11446, table A1. Those on the most
# frequent 2-, 3- and 4-gram are left out: made for web pages, they drop a tenth of GSM8K's
# solutions, in which "the total number" stands three times for good reason.
_LINES = 0.30
_CHARS_OF_LINES = 0.20
_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}

_LINE_WORDS = 4
"""Shorter lines, such as closing braces, "return None" or rows of a table, may repeat."""

_item = re.compile(r"^([-*+•]|\d+[.)])\s+")
_fence = re.compile(r"^(```|~~~).*?(^\1|\Z)", re.DOTALL | re.MULTILINE)
_code = re.compile(r"[{};]$|^\s*(def|class|return|import|from|if|for|while|else|elif|#include)\b")


class Repetition(RowFilter[RepetitionFilter]):
    """Drops prose in which lines or runs of words stand again and again.

    Code, labels and answers in a format pass: there things repeat for good reason.
    """

    def row(self, row: Row, task: TaskType) -> Drop | None:
        """Drop a response with more repetition than a bound allows."""
        if task.labels or task.task.answer_format is not None:
            return None
        text = _fence.sub("", split_thoughts(row["response"])[1])
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if 2 * sum(bool(_code.search(line)) for line in lines) > len(lines):
            return None
        found = words_of(text)
        if len(found) < self.spec.min_words:
            return None
        if 2 * sum(bool(_item.match(line)) or line.startswith("|") for line in lines) > len(lines):
            return self._of_lines(lines)  # items of a list may be alike, but not the same
        return self._of_lines(lines) or self._of_runs(found)

    def _of_lines(self, lines: list[str]) -> Drop | None:
        told = Counter(_item.sub("", line) for line in lines if _counts(line))
        again = {line: n - 1 for line, n in told.items() if n >= self.spec.min_repeats}
        if not again:
            return None
        most = max(again, key=again.__getitem__)
        chars = sum(len(line) * n for line, n in again.items()) / sum(map(len, lines))
        for what, share, bound in (
            ("lines", sum(again.values()) / len(lines), _LINES),
            ("characters", chars, _CHARS_OF_LINES),
        ):
            if share > bound:
                seen = f"{share:.0%} of the {what} are lines that came before, above {bound:.0%}"
                return Drop(DropReason.REPETITION, f"{seen}: {most!r:.80}", share)
        return None

    def _of_runs(self, found: list[str]) -> Drop | None:
        for n, bound in _NGRAMS.items():
            share, first = looping_runs(found, n, least=self.spec.min_repeats)
            if share > bound:
                seen = f"{share:.0%} of the characters are in runs of {n} words that stand "
                seen += f"{self.spec.min_repeats} times or more, above {bound:.0%}"
                return Drop(DropReason.REPETITION, f"{seen}: {first!r:.80}", share)
        return None


def _counts(line: str) -> bool:
    """Return whether it says something when a line stands again."""
    return bool(_item.match(line)) or len(words_of(line)) >= _LINE_WORDS
