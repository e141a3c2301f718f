"""Prompts that give a test or selection row away."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from distillery.data.words import asked_text, runs, words_of
from distillery.filters.base import Drop, Row, RowFilter
from distillery.task_types import TaskType
from schemas.filters import DropReason
from schemas.prompt_filters import DecontaminationFilter

# A run in more held-out rows than this tells none of them apart: it comes from a template. The
# bound is that of Brown et al. 2020 (GPT-3), arXiv:2005.14165, appendix C.
_TEMPLATE_CLUSTERS = 10

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
        clusters: list[str] = []
        for number, row in enumerate(held_out):
            words = words_of(asked_text(row["messages"]))
            self._held_out.append((row["split"], row["prompt_id"]))
            clusters.append(row["cluster"])
            self._whole.setdefault(" ".join(words), number)
            found = set(runs(words, self.spec.ngram_words))
            self._num_runs.append(len(found))
            for run in found:
                rows_with[run].append(number)
        num_clusters = len(set(clusters))
        for run, numbers in rows_with.items():
            if len(numbers) > 1 and _is_of_a_template([clusters[n] for n in numbers], num_clusters):
                self._template.add(run)
                for number in numbers:
                    self._num_runs[number] -= 1
        self._rows_with = {
            run: numbers for run, numbers in rows_with.items() if run not in self._template
        }

    def row(self, row: Row, task: TaskType) -> Drop | None:
        """Drop a prompt for the held-out row that it has most in common with."""
        words = words_of(asked_text(row["messages"]))
        number = self._whole.get(" ".join(words))
        if number is not None:
            split, prompt_id = self._held_out[number]
            detail = f"the same words as {split} row {prompt_id!r}"
            return Drop(_EXACT[split], detail, 1.0)
        found = dict.fromkeys(runs(words, self.spec.ngram_words))
        shared = Counter(number for run in found for number in self._rows_with.get(run, ()))
        if not shared:
            return None
        num_runs = sum(run not in self._template for run in found)
        shares = {n: count / min(num_runs, self._num_runs[n]) for n, count in shared.items()}
        number = max(shares, key=lambda n: (shares[n], -n))
        if shares[number] <= self.spec.max_overlap:
            return None
        split, prompt_id = self._held_out[number]
        first = next(run for run in found if number in self._rows_with.get(run, ()))
        detail = (
            f"shares {shared[number]} runs of {self.spec.ngram_words} words with {split} row "
            f"{prompt_id!r}, {shares[number]:.0%} of the shorter one's: {first!r}"
        )
        return Drop(_OVERLAP[split], detail, shares[number])


def _is_of_a_template(clusters: Collection[str], num_clusters: int) -> bool:
    """Return whether a run that stands in rows of these ``clusters`` tells none of them apart.

    The turns of one conversation are one cluster, however often they repeat what came before.
    """
    found = len(set(clusters))
    return found > _TEMPLATE_CLUSTERS or (found > 1 and 2 * found > num_clusters)
