"""Classification: one label per text.

A score of None means *unscored*: there was no answer to judge. It is never counted as 0.
"""

import json
from typing import Any

from schemas.errors import RecipeError
from schemas.task import JsonFormat, LabelSet, RegexFormat, TaskSpec, TaskType

_SUPPORTED = (TaskType.CLASSIFICATION,)


_LABEL_DRESS = " \t\r\n\"'`.\u201c\u201d\u2018\u2019"  # the last four: curly quotes


def refuse_unsupported_task(task: TaskSpec) -> None:
    """Raise a RecipeError when there is no metric yet for this kind of task.

    >>> refuse_unsupported_task(TaskSpec(name="tickets", type="classification"))
    """
    if task.type not in _SUPPORTED:
        known = ", ".join(repr(str(kind)) for kind in _SUPPORTED)
        raise RecipeError(
            f"task.type={str(task.type)!r} is not yet supported: without metrics of its "
            f"own no student could be compared with its teacher. Set task.type to one of: {known}."
        )


def score_answer(
    task: TaskSpec, answer: str | None, reference: str, *, truncated: bool = False
) -> float | None:
    """Return 1.0 for a right answer, 0.0 for a wrong one, None where there is no answer to judge.

    Args:
        task: Its type decides the metric, its answer format how answers are compared: JSON by
            value, labels (and free text) without regard to case, quotes and a closing full stop,
            text of a regular expression as it is.
        answer: The model's answer; None when it could not be obtained (the endpoint failed).
        reference: The right answer.
        truncated: The answer was cut at the token limit: wrong, as a user would have it.

    Raises:
        RecipeError: There is no metric yet for this kind of task.

    >>> task = TaskSpec(name="t", type="classification", answer_format={
    ...     "kind": "labels", "labels": ["refund", "repair"]})
    >>> score_answer(task, ' "Refund". ', "refund"), score_answer(task, None, "refund")
    (1.0, None)
    """
    refuse_unsupported_task(task)
    if answer is None:
        return None
    if truncated:
        return 0.0
    return float(_same_answer(task, answer, reference))


def _same_answer(task: TaskSpec, answer: str, reference: str) -> bool:
    match task.answer_format:
        case JsonFormat():
            return _same_json(answer, reference)
        case RegexFormat():
            return answer.strip() == reference.strip()
        case LabelSet(labels=labels) if len(set(map(normalise_label, labels))) < len(labels):
            return answer.strip() == reference.strip()  # labels that differ in case alone
        case _:
            return normalise_label(answer) == normalise_label(reference)


def normalise_label(text: str) -> str:
    """Return ``text`` case-folded, without outer white space, quotes and closing full stops.

    >>> normalise_label(' "Refund." ')
    'refund'
    """
    return text.strip(_LABEL_DRESS).casefold()


def _same_json(answer: str, reference: str) -> bool:
    """Return whether both are JSON texts of equal value; an answer that is no JSON is not."""
    try:
        return bool(_typed(json.loads(answer)) == _typed(json.loads(reference)))
    except (ValueError, RecursionError):
        return False


def _typed(value: Any) -> Any:
    """Return ``value`` so that true differs from 1 (in JSON it does, in Python it does not)."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return (isinstance(value, bool), value)
