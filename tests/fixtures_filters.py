"""Rows of responses for tests of filters."""

from typing import Any

from schemas.task import AnswerFormat, TaskKind, TaskSpec

Row = dict[str, Any]


def response_row(response: str = "fine", **columns: Any) -> Row:
    """Return a row of a ResponseFrame."""
    return {
        "prompt_id": "p",
        "split": "train",
        "messages": '[{"content":"q","role":"user"}]',
        "response": response,
        "reasoning": None,
        "state": "ok" if response.strip() else "empty",
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "request_hash": "0" * 64,
        "sample_index": 0,
        "agreement": None,
        "repaired": False,
    } | columns


def task_with(answer_format: AnswerFormat | None = None) -> TaskSpec:
    """Return a classification task."""
    return TaskSpec(name="t", type=TaskKind.CLASSIFICATION, answer_format=answer_format)
