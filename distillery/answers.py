"""Whether an answer is in the format that the task asks for."""

import json
import re
from functools import lru_cache
from typing import Any

import jsonschema

from schemas.errors import RecipeError
from schemas.filters import DropReason
from schemas.task import JsonFormat, LabelSet, RegexFormat, TaskSpec


def format_violation(answer: str, task: TaskSpec) -> tuple[DropReason, str] | None:
    """Return why ``answer`` is not in ``task.answer_format``, or None when it is.

    >>> task = TaskSpec(name="t", type="classification",
    ...                 answer_format=LabelSet(labels=("yes", "no")))
    >>> format_violation("yes", task)
    >>> format_violation("maybe", task)
    (<DropReason.NOT_A_LABEL: 'not_a_label'>, "'maybe' is none of the 2 labels")
    """
    match task.answer_format:
        case LabelSet(labels=labels):
            if answer.strip() not in labels:
                return DropReason.NOT_A_LABEL, f"{answer!r:.80} is none of the {len(labels)} labels"
        case RegexFormat(pattern=pattern):
            if not re.fullmatch(pattern, answer.strip()):
                return DropReason.NO_REGEX_MATCH, f"{answer!r:.80} does not match {pattern!r}"
        case JsonFormat(json_schema=schema):
            return _json_violation(answer, json.dumps(schema, sort_keys=True))
    return None


def check_answer_format(task: TaskSpec) -> None:
    """Raise RecipeError when the task's answer format itself cannot be used."""
    match task.answer_format:
        case RegexFormat(pattern=pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                raise RecipeError(
                    f"task.answer_format.pattern {pattern!r} is no regular expression: {error}. "
                    "Correct it."
                ) from None
        case JsonFormat(json_schema=schema):
            try:
                jsonschema.Draft202012Validator.check_schema(schema)
            except jsonschema.SchemaError as error:
                raise RecipeError(
                    f"task.answer_format.json_schema is no JSON schema: {error.message}. Correct "
                    "it."
                ) from None


def _json_violation(answer: str, schema_text: str) -> tuple[DropReason, str] | None:
    try:
        value = json.loads(answer)
    except ValueError as error:
        return DropReason.NOT_JSON, f"{answer!r:.80} is not JSON: {error}"
    violation = next(iter(_validator(schema_text).iter_errors(value)), None)
    if violation is None:
        return None
    return DropReason.JSON_SCHEMA_VIOLATION, f"at {violation.json_path}: {violation.message}"[:200]


@lru_cache(maxsize=8)
def _validator(schema_text: str) -> Any:
    return jsonschema.Draft202012Validator(json.loads(schema_text))
