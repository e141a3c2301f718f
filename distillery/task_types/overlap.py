"""How much a text has in common with reference texts: ROUGE, BLEU, chrF, length."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np

from distillery.task_types.base import Floats, ScoredRow, SetMetric, TaskType
from distillery.task_types.words import Writing, words, writing

_N_GRAMS = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2"}
# What sacrebleu takes for Chinese; for Japanese it would take a tokenizer that is an extra.
_BLEU_TOKENIZERS = {Writing.SPACED: "13a", Writing.CHINESE: "zh", Writing.UNSPACED: "char"}


class TextOverlap(TaskType):
    """A response is as good as what it has in common with the best of its references.

    A response that was cut is scored as it is, which is what a user sees.
    """

    metrics: ClassVar[tuple[str, ...]]
    """Of ROUGE-1, ROUGE-2 and ROUGE-L."""

    @property
    def of_the_set(self) -> Mapping[str, SetMetric]:
        """Return BLEU and chrF as papers report them, and the length."""
        return {"BLEU": Bleu(self), "chrF": ChrF(self), "length ratio": LengthRatio(self)}

    def references(self, value: Any) -> tuple[str, ...]:
        """Return the texts in a value: one, or a list of several."""
        return tuple(text for text in texts(value) if text.strip())

    def score(
        self,
        response: str | None,
        references: Sequence[str],
        *,
        truncated: bool = False,
        prompt: str = "",
    ) -> dict[str, float | None]:
        """Return the F-measures of ROUGE, each against the reference that suits it best."""
        if response is None or not references:
            return dict.fromkeys(self.metrics)
        answer = self.parse(response)
        return rouge(answer.text if answer else "", references, self.metrics)


def rouge(text: str, references: Sequence[str], metrics: Sequence[str]) -> dict[str, float | None]:
    """Return F-measures between a text and the best of the references, by the name of the metric.

    Those of `rouge_score`, over the words of any script; no stemmer. None is *unscored*: where no
    reference has two words, nothing can have their pairs.

    Source: Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries.

    >>> rouge("the cat sat", ["a dog ran", "The cat sat down."], ["ROUGE-2", "ROUGE-L"])
    {'ROUGE-2': 0.8, 'ROUGE-L': 0.8571428571428571}
    """
    said, right = words(text), [words(one) for one in references]
    scores: dict[str, float | None] = {}
    for name in metrics:
        if name == "ROUGE-2" and all(len(one) < 2 for one in right):
            scores[name] = None
        elif name == "ROUGE-L":
            scores[name] = max(_rouge_l(said, one) for one in right)
        else:
            key = _N_GRAMS[name]
            scores[name] = float(_scorer(key).score_multi(references, text)[key].fmeasure)
    return scores


def _rouge_l(said: list[str], right: list[str]) -> float:
    """Return the F-measure of the longest common subsequence.

    `rouge_score` fills a table of all pairs of words, which takes 0.1 s for two texts of 500 words
    and 4 s for one of 1,000 against one of 10,000; this takes 2 and 70 ms.
    """
    common = _num_common(said, right)
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(right)
    return 2 * precision * recall / (precision + recall)


def _num_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    A row of the usual table is one integer, whose bits are 0 where the length grows.

    Source: Hyyro 2004, Bit-parallel LCS-length computation revisited.

    >>> _num_common("the cat sat down".split(), "down the cat".split())
    2
    """
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    all_places = row = (1 << len(one)) - 1
    for word in other:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & all_places
    return len(one) - row.bit_count()


@cache
def _scorer(rouge_type: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([rouge_type], tokenizer=_Words())


class _Words:
    """What `rouge_score` asks for words; its own tokenizer knows a-z and 0-9 alone."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


class _SumOfCounts(SetMetric):
    """A metric made of counts that are summed over the rows."""

    def __init__(self, kind: TaskType) -> None:
        self._kind = kind

    def statistics(self, rows: Sequence[ScoredRow]) -> Floats:
        """Return the counts of each row, shape (N, S)."""
        return np.array([self._counts(self._text(row), row.references) for row in rows], float)

    def _text(self, row: ScoredRow) -> str:
        answer = self._kind.parse(row.response)
        return answer.text if answer else ""

    @abstractmethod
    def _counts(self, text: str, references: tuple[str, ...]) -> list[int]:
        """Return the counts of one row."""


class Bleu(_SumOfCounts):
    """Corpus BLEU as sacrebleu has it, from 0 to 1.

    Its tokenizer is chosen by the references of a row: `zh` where they are Chinese, `char` where
    they are in another script without spaces, `13a` otherwise. The order is effective: a set whose
    responses are all shorter than four words is scored by the n-grams that they have, not 0.

    Source: Papineni et al. 2002; Post 2018, arXiv:1804.08771.

    >>> from schemas.task import TaskSpec
    >>> from distillery.task_types import task_type
    >>> metric = Bleu(task_type(TaskSpec(name="t", type="conversation")))
    >>> counts = metric.statistics([ScoredRow("Thank you", ("Thank you",))])
    >>> round(float(metric.value(counts)[0]), 6)
    1.0
    """

    def _counts(self, text: str, references: tuple[str, ...]) -> list[int]:
        counted = _bleu(_BLEU_TOKENIZERS[writing(" ".join(references))])
        found = counted.sentence_score(text, references)
        return [found.sys_len, found.ref_len, *found.counts, *found.totals]

    def value(self, sums_RS: Floats) -> Floats:
        """Return BLEU of each set."""
        from sacrebleu.metrics import BLEU

        scores = (
            BLEU.compute_bleu(
                correct=list(sums[2:6]),
                total=list(sums[6:]),
                sys_len=int(sums[0]),
                ref_len=int(sums[1]),
                smooth_method="exp",
                effective_order=True,
            ).score
            for sums in sums_RS
        )
        return np.fromiter(scores, float, len(sums_RS)) / 100


@cache
def _bleu(tokenizer: str) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokenizer, effective_order=True)


class ChrF(_SumOfCounts):
    """Corpus chrF as sacrebleu has it, from 0 to 1: character n-grams up to 6, recall twice.

    It needs no words, and so no tokenizer of any language.

    Source: Popovic 2015, chrF: character n-gram F-score for automatic MT evaluation.
    """

    def _counts(self, text: str, references: tuple[str, ...]) -> list[int]:
        (counts,) = _chrf()._extract_corpus_statistics([text], [[one] for one in references])
        return list(counts)

    def value(self, sums_RS: Floats) -> Floats:
        """Return chrF of each set."""
        scores = (_chrf()._compute_score_from_stats(list(sums)).score for sums in sums_RS)
        return np.fromiter(scores, float, len(sums_RS)) / 100


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


class LengthRatio(_SumOfCounts):
    """Words of the responses over words of the references; of several the closest in length.

    1 is as long as the references, neither more nor less.
    """

    more_is_better = False

    def _counts(self, text: str, references: tuple[str, ...]) -> list[int]:
        length = len(words(text))
        lengths = [len(words(one)) for one in references]
        return [length, min(lengths, key=lambda other: (abs(other - length), other))]

    def value(self, sums_RS: Floats) -> Floats:
        """Return the ratio of each set."""
        lengths, wanted = sums_RS.T
        return np.asarray(lengths / wanted)


def texts(value: Any) -> list[str]:
    """Return the texts in the value of a column: a text, a list of them, JSON text of a list.

    Raises:
        ValueError: It is something else; the text says what.

    >>> texts("one"), texts(["one", "two"]), texts('["one", "two"]'), texts(None)
    (['one'], ['one', 'two'], ['one', 'two'], [])
    """
    if value is None:
        return []
    if isinstance(value, str):
        try:
            listed = json.loads(value) if value.lstrip().startswith("[") else None
        except (ValueError, RecursionError):
            listed = None
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            return [value]
        value = listed
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.80} is {type(value).__name__}, not a text or a list of texts")
    for position, text in enumerate(value):
        if not isinstance(text, str):
            raise ValueError(f"text {position} of the list is {text!r:.80}, not a text")
    return value
