"""Several responses to one prompt: which of them the student learns from."""

import dataclasses
import re
from collections import Counter
from collections.abc import Hashable, Sequence

from distillery.storage.fingerprint import canonical_json
from distillery.task_types.answer_formats import format_violation, parse_json
from distillery.task_types.classification import normalise_label
from distillery.task_types.numbers import last_number, numbers_equal
from schemas.errors import RecipeError
from schemas.samples import (
    Choice,
    JsonChoice,
    LabelChoice,
    MajorityChoice,
    NumberChoice,
    RegexChoice,
)
from schemas.task import JsonFormat, LabelSet, TaskSpec
from schemas.teacher import TeacherSpec


@dataclasses.dataclass(frozen=True)
class Sample:
    """One of several responses to a prompt."""

    state: str
    """State of the response; only `ok` ones vote or pass."""

    text: str
    """The response."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Which response was chosen."""

    index: int
    """Its place among the samples."""

    agreement: float | None
    """Samples that gave its answer (majority) or passed the verifier, as a fraction of all that
    were asked. 0: none did, and the response may not be learnt from. None: there is one only."""


def choose(
    responses: Sequence[Sample], choice: Choice, *, task: TaskSpec, reference: str | None
) -> Chosen:
    """Return which of ``responses`` the student learns from, and how many bear it out.

    With majority the first response with the most common answer, and of answers equally common
    the one that came first; with a verifier the first that passes. When there is none, the first
    `ok` response (the first of all, when none is `ok`), with an agreement of 0.

    Args:
        responses: All samples that were asked for, by sample index; failed ones too, as they count
            in the agreement.
        choice: `teacher.samples.choice`.
        task: Its answer format is what verifiers check.
        reference: The prompt's right answer, where it has one.

    Raises:
        ValueError: There is no response.

    >>> task = TaskSpec(name="t", type="math")
    >>> texts = ["It is 12.", "13", "So 12.0 remain."]
    >>> samples = [Sample("ok", text) for text in texts]
    >>> choose(samples, MajorityChoice(answer="number"), task=task, reference=None)
    Chosen(index=0, agreement=0.6666666666666666)
    >>> choose(samples, NumberChoice(), task=task, reference="13")
    Chosen(index=1, agreement=0.3333333333333333)
    """
    if not responses:
        raise ValueError("no response to choose from. Pass all samples of the prompt.")
    if len(responses) == 1:
        return Chosen(0, None)
    good = [index for index, response in enumerate(responses) if response.state == "ok"]
    if isinstance(choice, MajorityChoice):
        answers = {index: _answer(responses[index].text, choice) for index in good}
        borne_out = _most_common(answers)
    else:
        borne_out = [i for i in good if _passes(responses[i].text, choice, task, reference)]
    if not borne_out:
        return Chosen(good[0] if good else 0, 0.0)
    return Chosen(borne_out[0], len(borne_out) / len(responses))


def _most_common(answers: dict[int, Hashable | None]) -> list[int]:
    """Return the indices that share the most common answer; None is no answer.

    >>> _most_common({0: "a", 1: "b", 3: None, 4: None, 5: "b"})
    [1, 5]
    """
    votes = Counter(answer for answer in answers.values() if answer is not None)
    if not votes:
        return []
    winner = max(votes, key=votes.__getitem__)  # of equals the first, as a dict keeps its order
    return [index for index, answer in answers.items() if answer == winner]


def _answer(text: str, choice: MajorityChoice) -> Hashable | None:
    """Return what is compared of a response, equal for equal answers; None when it has none."""
    match choice.answer:
        case "text":
            return " ".join(text.casefold().split()) or None
        case "number":
            return last_number(text)
        case "json":
            return _json_answer(text)


def _json_answer(text: str) -> str | None:
    """Return canonical JSON of the value; None when there is no value.

    >>> _json_answer('{"b": 1.0, "a": true}') == _json_answer('{"a":true, "b":1}')
    True
    """
    try:
        return canonical_json(_plain_numbers(parse_json(text)))
    except (ValueError, RecursionError):  # such as 1e999, which Python reads as infinite
        return None


def _plain_numbers(value: object) -> object:
    """Return ``value`` with 1.0 as 1: JSON knows one kind of number."""
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _passes(
    text: str,
    choice: LabelChoice | RegexChoice | NumberChoice | JsonChoice,
    task: TaskSpec,
    reference: str | None,
) -> bool:
    """Return whether the verifier lets a response through."""
    match choice:
        case LabelChoice():
            return _is_right_label(text, task, reference)
        case RegexChoice(pattern=pattern):
            return re.fullmatch(pattern, text.strip()) is not None
        case NumberChoice(relative_tolerance=tolerance):
            if reference is None:
                return False
            return numbers_equal(last_number(text), last_number(reference), tolerance)
        case JsonChoice():
            return format_violation(text, task) is None


def _is_right_label(text: str, task: TaskSpec, reference: str | None) -> bool:
    """Return whether a response is a label, and the reference's where there is one.

    The response has to be the label as it is written in the recipe, as the filter `format` asks
    for; the reference is the user's, and counts as metrics read it.
    """
    if not isinstance(task.answer_format, LabelSet) or format_violation(text, task):
        return False
    if reference is None or not reference.strip():
        return True
    labels = task.answer_format.labels
    if reference.strip() in labels:
        return text.strip() == reference.strip()
    alike = [label for label in labels if normalise_label(label) == normalise_label(reference)]
    return alike == [text.strip()]


def check_samples(teacher: TeacherSpec, task: TaskSpec) -> None:
    """Raise when `teacher.samples` asks for a choice that no response could pass.

    Raises:
        RecipeError: The verifier needs an answer format that the task does not have, or its
            regular expression is none.

    >>> from schemas.teacher import TransformersTeacher
    >>> check_samples(TransformersTeacher(model="m"), TaskSpec(name="t", type="math"))
    """
    samples = teacher.samples
    if samples.num_samples == 1:
        return  # nothing is chosen, so the choice is not read
    match samples.choice:
        case LabelChoice() if not isinstance(task.answer_format, LabelSet):
            _refuse("kind='label'", "labels", task)
        case JsonChoice() if not isinstance(task.answer_format, JsonFormat):
            _refuse("kind='json'", "json", task)
        case MajorityChoice(answer="json") if not isinstance(task.answer_format, JsonFormat):
            _refuse("answer='json'", "json", task)
        case RegexChoice(pattern=pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                raise RecipeError(
                    f"teacher.samples.choice.pattern {pattern!r} is no regular expression: "
                    f"{error}. Correct it."
                ) from None


def _refuse(asked: str, kind: str, task: TaskSpec) -> None:
    """Raise the error for a choice that needs another answer format."""
    found = "missing" if task.answer_format is None else f"of kind {task.answer_format.kind!r}"
    raise RecipeError(
        f"teacher.samples.choice has {asked} but task.answer_format is {found}, so no response "
        f"could be chosen. Set task.answer_format to kind {kind!r}, or choose otherwise."
    )
