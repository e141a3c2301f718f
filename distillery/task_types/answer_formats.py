"""Whether an answer is in the format that the task asks for."""

import json
import re
from functools import lru_cache
from typing import Any

import jsonschema
import referencing.exceptions
from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY

from distillery.storage.fingerprint import canonical_json
from schemas.errors import RecipeError
from schemas.filters import DropReason
from schemas.task import JsonFormat, LabelSet, RegexFormat, TaskSpec

_LONGEST_DETAIL = 200  # characters


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
            return json_violation(answer, canonical_json(schema))
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
            _check_schema(schema)


def json_violation(answer: str, schema_text: str) -> tuple[DropReason, str] | None:
    """Return why ``answer`` is no JSON text that satisfies a schema, or None when it is.

    Args:
        answer: White space around the value is no matter; a Markdown fence around it is.
        schema_text: The JSON schema (draft 2020-12), canonical JSON.

    >>> json_violation(  # doctest: +ELLIPSIS
    ...     '{"a": "x"}', '{"properties":{"a":{"type":"integer"}}}')
    (<DropReason.JSON_SCHEMA_VIOLATION: ...>, "at $.a: 'x' is not of type 'integer'")
    """
    try:
        value = parse_json(answer)
    except ValueError as error:
        return DropReason.NOT_JSON, f"{answer!r:.80} is not JSON: {error}"
    try:
        violation = next(iter(_validator(schema_text).iter_errors(value)), None)
    except RecursionError:
        return DropReason.JSON_SCHEMA_VIOLATION, "at $: nested too deeply to be checked"
    if violation is None:
        return None
    # A message begins with the value, which may be long, and ends with what is wrong with it.
    found = f"at {violation.json_path}: {violation.message}"
    return DropReason.JSON_SCHEMA_VIOLATION, _shortened(found, _LONGEST_DETAIL)


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is no JSON. Python's parser would take NaN and Infinity, which no other
            reader of JSON knows, and breaks off with another error where nesting is deep.

    >>> parse_json(" [1, null] ")
    [1, None]
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _shortened(text: str, longest: int) -> str:
    """Return ``text`` without its middle where it is too long.

    >>> _shortened("abcdefghijklm", 9)
    'abc...klm'
    """
    if len(text) <= longest:
        return text
    head, tail = (longest - 2) // 2, (longest - 3) // 2
    return f"{text[:head]}...{text[-tail:]}"


@lru_cache(maxsize=8)
def _validator(schema_text: str) -> Any:
    # With a registry of our own no reference is fetched over the network.
    return jsonschema.Draft202012Validator(json.loads(schema_text), registry=EMPTY_REGISTRY)


def _check_schema(schema: Any) -> None:
    """Raise RecipeError when ``schema`` is no JSON schema, or refers to what is not in it."""
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise RecipeError(
            f"task.answer_format.json_schema is no JSON schema: {error.message}. Correct it."
        ) from None
    resource = DRAFT202012.create_resource(schema)
    _check_references(resource, EMPTY_REGISTRY.resolver_with_root(resource))


def _check_references(resource: Any, resolver: Any) -> None:
    """Raise RecipeError when a schema, or one inside it, refers to what is not there."""
    resolver = resolver.in_subresource(resource)
    if isinstance(resource.contents, dict) and "$ref" in resource.contents:
        reference = resource.contents["$ref"]
        try:
            resolver.lookup(reference)
        except referencing.exceptions.Unresolvable:
            raise RecipeError(
                f"task.answer_format.json_schema refers to {reference!r}, which is not in it. "
                "Nothing is fetched from elsewhere. Add it under $defs."
            ) from None
    for part in resource.subresources():
        _check_references(part, resolver)
