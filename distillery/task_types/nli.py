"""NLI: whether a premise entails a hypothesis."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from distillery.task_types.answer_formats import Answer, Violation, read_answer
from distillery.task_types.classification import Classification
from distillery.task_types.labels import folded
from distillery.task_types.prompt_templates import as_text, render_prompt
from distillery.task_types.thoughts import split_thoughts
from schemas.errors import RecipeError
from schemas.filters import DropReason
from schemas.task import LabelSet

_SPELLINGS = {
    "entailment": ("entailment", "entail", "entails", "entailed", "e"),
    "neutral": ("neutral", "n"),
    "contradiction": (
        *("contradiction", "contradict", "contradicts", "contradicted", "contradictory", "c"),
    ),
    "not_entailment": (
        *("not entailment", "non entailment", "nonentailment", "no entailment"),
        *("not entailed", "does not entail", "doesn't entail"),
    ),
}
_MEANINGS = {text: meaning for meaning, texts in _SPELLINGS.items() for text in texts}
_BY_NUMBER = ("entailment", "neutral", "contradiction")
_THREE_WAY, _TWO_WAY = _BY_NUMBER, ("entailment", "not_entailment")

# "not_entailment", "Non-Entailment": one separator for all, hyphens of Unicode too.
_separator = re.compile("(?<=[a-zA-Z])[-_\u2010-\u2013](?=[a-zA-Z])")


class Nli(Classification):
    """The answer is entailment, neutral or contradiction; or entailment or not, in two-way sets.

    >>> from schemas.task import TaskSpec
    >>> pairs = Nli(TaskSpec(name="t", type="nli"))
    >>> pairs.score("Contradictory.", ["contradiction"]), pairs.references(1)
    ({'accuracy': 1.0}, ('neutral',))
    >>> two = Nli(TaskSpec(name="t", type="nli", answer_format={
    ...     "kind": "labels", "labels": ["entailment", "not_entailment"]}))
    >>> two.parse("neutral").text
    'not_entailment'
    """

    fields = ("premise", "hypothesis")
    answer_formats = (LabelSet,)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels as the recipe spells them; without it the three of SNLI."""
        return super().labels or _THREE_WAY

    def check(self) -> None:
        """Raise RecipeError for labels that mean something else than these three or two."""
        super().check()
        meanings = sorted(self._meanings.values())
        if meanings not in (sorted(_THREE_WAY), sorted(_TWO_WAY)):
            raise RecipeError(
                f"task.answer_format.labels {list(self.labels)!r} are not those of task.type "
                f"'nli'. Name {', '.join(_THREE_WAY)} or {', '.join(_TWO_WAY)}, in any usual "
                "spelling, or choose task.type 'classification'."
            )

    def prompt(self, values: Mapping[str, Any]) -> str:
        """Return premise and hypothesis, each after its name; "" when one of them is missing."""
        if not all(as_text(values.get(name)).strip() for name in self.fields):
            return ""
        return render_prompt("Premise: {premise}\nHypothesis: {hypothesis}", values)

    def instructions(self) -> str:
        """Return the question that a pair stands for, with the labels."""
        otherwise = "" if len(self.labels) == 2 else ", contradict it, or neither"
        listed = "\n".join(self.labels)
        return (
            f"Does the premise entail the hypothesis{otherwise}? Answer with one of these labels "
            f"and nothing else:\n{listed}"
        )

    def references(self, value: Any) -> tuple[str, ...]:
        """Return the label; numbers count as in SNLI, MNLI, RTE and QNLI.

        0 is entailment, 1 neutral, 2 contradiction; in two-way sets 1 is not_entailment, as
        neutral is. Sets that count otherwise (WNLI, CB) need a label map.

        Raises:
            ValueError: The annotators agreed on no label (-1, or "-"), or no label has the number.
        """
        text = as_text(value).strip()
        if text in ("-", "-1", "-1.0"):
            raise ValueError(f"the reference is {text!r}: the pair has no gold label")
        if not re.fullmatch(r"\d+(\.0)?", text):
            return super().references(value)
        number = int(float(text))
        if number >= len(_BY_NUMBER):
            numbers = ", ".join(f"{at} {label}" for at, label in enumerate(_BY_NUMBER))
            raise ValueError(f"the reference {text!r:.80} is none of {numbers}; give a label_map")
        return (_BY_NUMBER[number],)

    def read(self, response: str) -> Answer | Violation:
        """Return the label that a response names in one of its usual spellings."""
        text = _separator.sub(" ", response)
        found = read_answer(text, LabelSet(labels=tuple(self._label_of)))
        if isinstance(found, Answer):
            label = self._label_of[found.value]
            return Answer(label, label)
        reason, detail = found
        if reason is DropReason.NOT_A_LABEL:
            detail = f"{split_thoughts(response)[1]!r:.80} is none of {', '.join(self.labels)}"
        return reason, detail

    @cached_property
    def _meanings(self) -> dict[str, str]:
        """Return what the labels of the recipe mean; "" for one that is not known."""
        return {
            label: _MEANINGS.get(_separator.sub(" ", folded(label)), "") for label in self.labels
        }

    @cached_property
    def _label_of(self) -> dict[str, str]:
        """Return the label of the recipe that each spelling stands for."""
        label_of = {meaning: label for label, meaning in self._meanings.items()}
        if "not_entailment" in label_of:
            label_of |= dict.fromkeys(("neutral", "contradiction"), label_of["not_entailment"])
        return {text: label_of[m] for text, m in _MEANINGS.items() if m in label_of}
