"""Question answering: a short answer, from a context or from what the model knows."""

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import regex

from distillery.task_types.answer_formats import Answer, Violation
from distillery.task_types.base import TaskType
from distillery.task_types.labels import INVISIBLE, unfenced
from distillery.task_types.overlap import texts
from distillery.task_types.prompt_templates import as_text, render_prompt
from distillery.task_types.thoughts import split_thoughts
from distillery.task_types.words import with_spaces, words
from schemas.filters import DropReason

UNANSWERABLE = "unanswerable"
"""What stands for the lack of an answer: in references, and in what a student learns to write."""

_ARTICLES = ("a", "an", "the")
_punctuation = regex.compile(r"[\p{P}$+<=>^`|~]")  # Unicode's, and what ASCII has besides
_emphasis = regex.compile(r"(\*{1,3})([^*]+)\1")
_introduction = regex.compile(
    r"\**(?:(?:the|my|final|correct|short)\s+)*answer"
    r"(?:(?:\s+is)?\**\s*[:\uff1a=][*\s]*|\s+is\s+)(.+)",
    regex.IGNORECASE | regex.DOTALL,
)

# Sentences that say only that there is no answer, as normalised.
_source = r"(?:(?:this|given|provided) )*(?:context|text|passage|paragraph|document|article)"
_no_answer = regex.compile(
    "|".join(
        (
            rf"(?:(?:(?:this )?question|it|this) is )?(?:un|not )answerable(?: from {_source})?",
            rf"(?:there is )?no answer(?: to (?:this )?question)?(?: (?:in|from) {_source})?",
            r"(?:(?:(?:this )?question|it|this) )?(?:cannot|can not|cant) be answered"
            rf"(?: (?:from|by|with|using|given|based on) {_source})?",
            rf"(?:answer (?:is )?)?not (?:(?:given|stated|mentioned|found|provided) )?in {_source}",
            rf"{_source} (?:does not|doesnt) (?:contain|give|provide|state|mention) (?:an )?answer",
            rf"{_source} (?:does not|doesnt) say",
            "cannotanswer",
        )
    )
)


class Qa(TaskType):
    """An answer has a share of a reference's words: token F1 and exact match, as SQuAD has them.

    F1 decides. Exact match takes a span that is longer by one word for as wrong as another one,
    so it needs more rows to tell two models apart.

    A response that was cut is scored as it is, which is what a user sees: what is missing or too
    much counts in F1 by itself. One that was cut before it said anything is wrong.

    >>> from schemas.task import TaskSpec
    >>> kind = Qa(TaskSpec(name="t", type="qa"))
    >>> kind.score("in the year 1998", ["1998"], prompt="It opened in 1998. When?")
    {'F1': 0.5, 'exact match': 0.0, 'in context': 0.0}
    >>> kind.score("No answer.", kind.references([]))
    {'F1': 1.0, 'exact match': 1.0, 'in context': None}
    """

    fields = ("question",)
    optional_fields = ("context",)
    metrics = ("F1", "exact match", "in context")

    def prompt(self, values: Mapping[str, Any]) -> str:
        """Return the context, if there is one, and the question; "" without a question."""
        if not as_text(values.get("question")).strip():
            return ""
        if not as_text(values.get("context")).strip():
            return render_prompt("{question}", values)
        return render_prompt("Context: {context}\n\nQuestion: {question}", values)

    def instructions(self) -> str:
        """Return the request for an answer without a sentence around it."""
        return (
            "Answer the question with as few words as possible and nothing else. If there is a "
            "context, copy the answer from it; if it does not hold the answer, write "
            f"{UNANSWERABLE}."
        )

    def references(self, value: Any) -> tuple[str, ...]:
        """Return the right answers in a value; `unanswerable` where it holds none.

        It may be a text, a list of texts, or either under `text` as in SQuAD's files, as JSON text
        too.

        Raises:
            ValueError: It is something else; the text says what.

        >>> from schemas.task import TaskSpec
        >>> kind = Qa(TaskSpec(name="t", type="qa"))
        >>> kind.references({"text": ["308", ""], "answer_start": [34, 0]}), kind.references(None)
        (('308',), ('unanswerable',))
        """
        if isinstance(value, str) and regex.match(r"\s*\{\s*['\"]text['\"]", value):
            try:
                value = json.loads(value)
            except ValueError:
                raise ValueError(
                    f"{value!r:.80} is not JSON: write the column as JSON text or as Parquet"
                ) from None
        if isinstance(value, dict):
            if "text" not in value:
                raise ValueError(f"{as_text(value)!r:.80} is an object without 'text'")
            value = value["text"]
        return tuple(text for text in texts(value) if text.strip()) or (UNANSWERABLE,)

    def read(self, response: str) -> Answer | Violation:
        """Return the answer, without emphasis and an introduction such as "The answer is: ".

        Its value is normalised, "" where it says that there is none.
        """
        thoughts, text = split_thoughts(response)
        text = unfenced(text).strip()
        if not text:
            found = "nothing follows the thoughts" if thoughts else "the response has no text"
            return DropReason.EMPTY, found
        if emphasised := _emphasis.fullmatch(text):
            text = emphasised[2].strip()
        if introduced := _introduction.fullmatch(text):
            text = introduced[1]
        value = " ".join(tokens(text))
        if _no_answer.fullmatch(value):
            return Answer(UNANSWERABLE, "")
        return Answer(text, value)

    def score(
        self,
        response: str | None,
        references: Sequence[str],
        *,
        truncated: bool = False,
        prompt: str = "",
    ) -> dict[str, float | None]:
        """Return F1 and exact match, each with the reference that suits best.

        An empty response is no answer, as in SQuAD 2. `in context` is whether the answer stands in
        the prompt; None where there is no answer or no prompt.
        """
        right = [answer for text in references if (answer := self.parse(text))]
        if response is None or not right:
            return dict.fromkeys(self.metrics)
        answer = self.parse(response)
        if answer is None and truncated:
            return {"F1": 0.0, "exact match": 0.0, "in context": None}
        value = answer.value if answer else ""
        return {
            "F1": max(token_f1(value.split(), reference.value.split()) for reference in right),
            "exact match": float(any(value == reference.value for reference in right)),
            "in context": float(stands_in(answer.text, prompt))
            if answer and value and prompt
            else None,
        }


def tokens(text: str) -> list[str]:
    """Return the words of a text as SQuAD counts them, in any script.

    Case, punctuation, also inside words, and the English articles are gone; where words are not
    parted by spaces every letter counts as one, as in MLQA. SQuAD's own rules leave nothing of "A"
    or "+", and take it for no answer; here it stays.

    Source: Rajpurkar et al. 2018, arXiv:1806.03822; Lewis et al. 2019, arXiv:1910.07475.

    >>> tokens("The U.S. well-known  1,000"), tokens("\u6771\u4eac\u3002Tokyo"), tokens("A")
    (['us', 'wellknown', '1000'], ['東', '京', 'tokyo'], ['a'])
    """
    plain = unicodedata.normalize("NFKC", text.translate(INVISIBLE)).casefold()
    found = with_spaces(_punctuation.sub("", plain)).split()
    return [word for word in found if word not in _ARTICLES] or found or plain.split()


def stands_in(text: str, prompt: str) -> bool:
    """Return whether the words of a text stand in a prompt in a row.

    Words are counted as for F1 and, as an answer may be a part of a word, between punctuation too.

    >>> [stands_in(text, "The U.S. lost Rollo's six-year war.") for text in ("US", "Rollo", "rs")]
    [True, True, False]
    """
    return any(
        f" {' '.join(parted(text))} " in f" {' '.join(parted(prompt))} "
        for parted in (tokens, words)
    )


def token_f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Return the harmonic mean of the share of words that are right and of those that are there.

    Two empty ones are equal, and one empty one has nothing in common with anything.

    >>> token_f1(["in", "1998"], ["1998"]), token_f1([], []), token_f1(["1998"], [])
    (0.6666666666666666, 1.0, 0.0)
    """
    if not answer or not reference:
        return float(not answer and not reference)
    common = (Counter(answer) & Counter(reference)).total()
    return 2 * common / (len(answer) + len(reference))
