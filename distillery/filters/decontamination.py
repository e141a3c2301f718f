"""Prompts that give a test or selection row away."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from distillery.data.chat import load_messages
from distillery.filters.base import Drop, Row, RowFilter
from distillery.task_types import TaskType
from schemas.filters import DropReason
from schemas.prompt_filters import DecontaminationFilter

_WORDS = re.compile(r"\w+")

# A run in more held-out rows than this tells none of them apart: it comes from a template. So
# decided by Brown et al. 2020 (GPT-3), arXiv:2005.14165, appendix C.
_TEMPLATE_ROWS = 10

_EXACT = {"test": DropReason.FOUND_IN_TEST, "selection": DropReason.FOUND_IN_SELECTION}
_OVERLAP = {"test": DropReason.OVERLAPS_TEST, "selection": DropReason.OVERLAPS_SELECTION}


class Decontamination(RowFilter[DecontaminationFilter]):
    """Drops prompts that equal a held-out row once normalised, or share runs of words with it."""

    reads_gold = True

    def __init__(self, spec: DecontaminationFilter) -> None:
        super().__init__(spec)
        self._held_out: list[tuple[str, str]] = []
        self._num_runs: list[int] = []
        self._whole: dict[str, int] = {}
        self._rows_with: dict[str, list[int]] = {}
        self._template: set[str] = set()

    def prepare(self, held_out: Iterable[Row]) -> None:
        """Index the held-out rows: whole, and by the runs of words in them."""
        rows_with: defaultdict[str, list[int]] = defaultdict(list)
        for number, row in enumerate(held_out):
            words = asked_words(row["messages"])
            self._held_out.append((row["split"], row["prompt_id"]))
            self._whole.setdefault(" ".join(words), number)
            runs = set(_runs(words, self.spec.ngram_words))
            self._num_runs.append(len(runs))
            for run in runs:
                rows_with[run].append(number)
        for run, numbers in rows_with.items():
            if _is_of_a_template(len(numbers), len(self._held_out)):
                self._template.add(run)
                for number in numbers:
                    self._num_runs[number] -= 1
        self._rows_with = {
            run: numbers for run, numbers in rows_with.items() if run not in self._template
        }

    def row(self, row: Row, task: TaskType) -> Drop | None:
        """Drop a prompt for the held-out row that it has most in common with."""
        words = asked_words(row["messages"])
        number = self._whole.get(" ".join(words))
        if number is not None:
            split, prompt_id = self._held_out[number]
            detail = f"the same words as {split} row {prompt_id!r}"
            return Drop(_EXACT[split], detail, 1.0)
        runs = dict.fromkeys(_runs(words, self.spec.ngram_words))
        shared = Counter(number for run in runs for number in self._rows_with.get(run, ()))
        if not shared:
            return None
        num_runs = sum(run not in self._template for run in runs)
        shares = {n: count / min(num_runs, self._num_runs[n]) for n, count in shared.items()}
        number = max(shares, key=lambda n: (shares[n], -n))
        if shares[number] <= self.spec.max_overlap:
            return None
        split, prompt_id = self._held_out[number]
        first = next(run for run in runs if number in self._rows_with.get(run, ()))
        detail = (
            f"shares {shared[number]} runs of {self.spec.ngram_words} words with {split} row "
            f"{prompt_id!r}, {shares[number]:.0%} of the shorter one's: {first!r}"
        )
        return Drop(_OVERLAP[split], detail, shares[number])


def asked_words(messages: str) -> list[str]:
    """Return the words of a prompt in one spelling; system turns do not count.

    >>> asked_words('[{"content": "Is  ½ a HALF?", "role": "user"}]')
    ['is', '1', '2', 'a', 'half']
    """
    turns = (turn["content"] for turn in load_messages(messages) if turn["role"] != "system")
    return _WORDS.findall(unicodedata.normalize("NFKC", "\n".join(turns)).casefold())


def _runs(words: Sequence[str], length: int) -> Iterator[str]:
    return (" ".join(words[i : i + length]) for i in range(len(words) - length + 1))


def _is_of_a_template(num_rows: int, of: int) -> bool:
    """Return whether a run that stands in ``num_rows`` held-out rows tells none of them apart."""
    return num_rows > _TEMPLATE_ROWS or (num_rows > 1 and 2 * num_rows > of)
