"""Several responses to one prompt: which of them the student learns from."""

import dataclasses
import re
from collections.abc import Sequence

from distillery.task_types import Answer, TaskType, task_type
from schemas.errors import RecipeError
from schemas.samples import Choice, JsonChoice, LabelChoice, MajorityChoice, RegexChoice
from schemas.task import JsonFormat, TaskSpec
from schemas.teacher import TeacherSpec


@dataclasses.dataclass(frozen=True)
class Sample:
    """One of several responses to a prompt."""

    state: str
    """State of the response; only `ok` ones vote or pass."""

    text: str
    """The response without its thoughts."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Which response was chosen."""

    index: int

    agreement: float | None
    """Samples that gave its answer (majority) or passed the verifier, as a fraction of all that
    were asked. 0: none did, and the response may not be learnt from. None: there is one only."""


def choose(responses: Sequence[Sample], choice: Choice, *, task: TaskSpec) -> Chosen:
    """Return which of ``responses`` the student learns from, and how many bear it out.

    With majority the first response with the most common answer, and of answers equally common
    the one that came first; with a verifier the first that passes. When there is none, the first
    `ok` response (the first of all, when none is `ok`), with an agreement of 0.

    Args:
        responses: All samples that were asked for, by sample index; failed ones too, as they count
            in the agreement.
        choice: `teacher.samples.choice`.
        task: Its type says what an answer is and when two are the same.

    >>> task = TaskSpec(name="t", type="math")
    >>> texts = ["It is 12.", "13", "So 12.0 remain."]
    >>> samples = [Sample("ok", text) for text in texts]
    >>> choose(samples, MajorityChoice(), task=task)
    Chosen(index=0, agreement=0.6666666666666666)
    >>> choose(samples, RegexChoice(pattern="[0-9]+"), task=task)
    Chosen(index=1, agreement=0.3333333333333333)
    """
    if len(responses) == 1:
        return Chosen(0, None)
    kind = task_type(task)
    texts = {
        index: response.text for index, response in enumerate(responses) if response.state == "ok"
    }
    if isinstance(choice, MajorityChoice):
        borne_out = _most_common(texts, kind)
    else:
        borne_out = [i for i, text in texts.items() if passes(text, choice, kind)]
    if not borne_out:
        return Chosen(next(iter(texts), 0), 0.0)
    return Chosen(borne_out[0], len(borne_out) / len(responses))


def _most_common(texts: dict[int, str], kind: TaskType) -> list[int]:
    """Return the indices of the texts that share the most common answer; no answer is no vote."""
    groups: list[tuple[Answer, list[int]]] = []
    for index, text in texts.items():
        if (answer := kind.parse(text)) is None:
            continue
        for first, indices in groups:
            if kind.same(answer, first):
                indices.append(index)
                break
        else:
            groups.append((answer, [index]))
    return max((indices for _, indices in groups), key=len, default=[])  # of equals the first


def passes(text: str, choice: LabelChoice | RegexChoice | JsonChoice, kind: TaskType) -> bool:
    """Return whether the verifier lets a response through."""
    if isinstance(choice, RegexChoice):
        return re.fullmatch(choice.pattern, text.strip()) is not None
    return kind.parse(text) is not None


def check_samples(teacher: TeacherSpec, task: TaskSpec) -> None:
    """Raise when `teacher.samples` asks for a choice that no response could pass.

    Raises:
        RecipeError: The verifier needs an answer format that the task does not have.

    >>> from schemas.teacher import TransformersTeacher
    >>> check_samples(TransformersTeacher(model="m"), TaskSpec(name="t", type="classification"))
    """
    if teacher.samples.num_samples > 1:  # otherwise nothing is chosen
        check_verifier(teacher.samples.choice, task, "teacher.samples.choice")


def check_verifier(choice: Choice, task: TaskSpec, place: str) -> None:
    """Raise when no response could pass ``choice``, which stands at ``place`` of the recipe.

    Raises:
        RecipeError: The verifier needs an answer format that the task does not have.
    """
    found = task.answer_format
    match choice:
        case LabelChoice() if not task_type(task).labels:
            wanted = "labels"
        case JsonChoice() if not isinstance(found, JsonFormat):
            wanted = "json"
        case _:
            return
    is_found = "missing" if found is None else f"of kind {found.kind!r}"
    raise RecipeError(
        f"{place} has kind={choice.kind!r} but task.answer_format is "
        f"{is_found}, so no response could be chosen. Set task.answer_format to kind {wanted!r}, "
        "or choose otherwise."
    )
