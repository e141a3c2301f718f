"""Rows on which people have said which of two responses is better."""

from dataclasses import dataclass
from typing import Any

from distillery.data.chat import Message, load_messages
from distillery.data.loading import load_rows
from distillery.data.sources import SourceRow, check_source, read_source
from distillery.task_types import TaskType
from schemas.data import DataSpec
from schemas.errors import InputDataError
from schemas.judge import PreferencesSpec

_SEED = 0
_PLACE = "evaluation.judge.preferences"


@dataclass(frozen=True)
class Preference:
    """A prompt, two responses to it, and which of them people prefer."""

    prompt_id: str
    conversation: list[Message]
    first: str
    second: str

    verdict: str
    """win: the first; loss: the second; tie."""


def read_preferences(spec: PreferencesSpec, kind: TaskType) -> list[Preference]:
    """Return the rows of ``spec``, whose prompts are made as those of `data` are.

    Raises:
        InputDataError: The source is missing or empty, lacks a column, or has a row that cannot be
            used, which is named.
    """
    columns = spec.source.columns
    asked = (columns.messages,) if columns.messages else tuple(map(columns.of, kind.fields))
    try:
        check_source(spec.source, (*asked, spec.first, spec.second, spec.preferred))
    except InputDataError as error:
        raise InputDataError(f"{_PLACE}: {error}") from None
    rows = [_preference(row, spec, kind) for row in read_source(spec.source, seed=_SEED)]
    if spec.student_first and len({row.verdict for row in rows}) == 1:
        raise InputDataError(
            f"{_PLACE}: people say {rows[0].verdict!r} of the student on every row, so a judge's "
            "liking for one side looks like being right. Add rows on which they do not, or set "
            "student_first to false."
        )
    return rows


def _preference(row: SourceRow, spec: PreferencesSpec, kind: TaskType) -> Preference:
    # As a training prompt: a reference is not read, and only the last turn is asked.
    (loaded, *_) = load_rows(row, "train", spec.source, kind, DataSpec())
    if "reason" in loaded:
        raise _unusable(row, f"{loaded['detail']}. Correct or remove it.")
    verdicts = {"first": "win", "second": "loss", spec.first: "win", spec.second: "loss"}
    verdicts["tie"] = "tie"
    said = row.values.get(spec.preferred)
    if not isinstance(said, str) or said not in verdicts:
        raise _unusable(
            row,
            f"{spec.preferred!r} is {said!r:.80}, which prefers none of the two. Write first, "
            "second or tie.",
        )
    return Preference(
        prompt_id=f"preference-{row.number}",
        conversation=load_messages(loaded["messages"]),
        first=_response(row, spec.first),
        second=_response(row, spec.second),
        verdict=verdicts[said],
    )


def _response(row: SourceRow, column: str) -> str:
    text: Any = row.values.get(column)
    if not isinstance(text, str) or not text.strip():
        raise _unusable(row, f"{column!r} is {text!r:.80}, not a response. Remove the row.")
    return text


def _unusable(row: SourceRow, why: str) -> InputDataError:
    return InputDataError(f"row {row.number} of {_PLACE}: {why}")
