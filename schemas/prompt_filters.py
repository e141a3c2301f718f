"""Filters over prompts: they run before a teacher is asked."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Branch


class _PromptFilter(Branch):
    """Keeps, drops or rewrites a prompt."""


class DecontaminationFilter(_PromptFilter):
    """Drops training, validation and gold prompts that a test or selection row gives away.

    A prompt goes when it equals such a row but for case, white space, punctuation and the ways in
    which Unicode writes one character (NFKC), or when the two share too many runs of words.
    """

    kind: Literal["decontamination"] = "decontamination"
    """Drop prompts that overlap with test or selection rows."""

    ngram_words: int = Field(8, ge=1)
    """Length of a shared run, words. 8, as open-r1 has it: shorter runs are met by chance, longer
    ones miss rows that were reworded. Rows with fewer words are only compared as a whole."""

    max_overlap: float = Field(0.5, ge=0, lt=1)
    """Highest share of runs in common with one held-out row, as a fraction of those that the
    shorter of the two has. Above a half the two differ in a clause; below it they share a phrase,
    as every fifth pair of support tickets does. 0: one shared run is enough, as in open-r1."""


PromptFilter = Annotated[DecontaminationFilter, Field(discriminator="kind")]
