"""The answer in a response, as the task's answer format has it."""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jsonschema
import referencing.exceptions
from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY

from distillery.storage.fingerprint import canonical_json
from distillery.task_types.labels import folded, read_label, unfenced
from distillery.task_types.thoughts import split_thoughts
from schemas.errors import RecipeError
from schemas.filters import DropReason
from schemas.task import AnswerFormat, JsonFormat, LabelSet, RegexFormat

Violation = tuple[DropReason, str]
"""Why a response has no answer, and what was seen."""


@dataclass(frozen=True)
class Answer:
    """What is parsed out of a response."""

    text: str
    """The answer as a student should learn to write it: the label as the recipe has it, the JSON
    text without its fence."""

    value: str
    """What is compared: equal for answers that say the same."""


def read_answer(response: str, answer_format: AnswerFormat | None) -> Answer | Violation:
    """Return the answer in ``response``, or why there is none.

    Thoughts before it, a Markdown fence and white space around it are no part of it. JSON is
    compared by value, text of a regular expression as it is, free text without regard to case and
    quotes.

    >>> labels = LabelSet(labels=("refund", "repair"))
    >>> read_answer("<think>Money?</think> **Refund**", labels)
    Answer(text='refund', value='refund')
    >>> read_answer("maybe", labels)
    (<DropReason.NOT_A_LABEL: 'not_a_label'>, "'maybe' is none of the 2 labels")
    """
    thoughts, text = split_thoughts(response)
    if not text.strip():
        found = "nothing follows the thoughts" if thoughts else "the response has no text"
        return DropReason.EMPTY, found
    match answer_format:
        case LabelSet(labels=labels):
            if label := read_label(text, labels):
                return Answer(label, label)
            return DropReason.NOT_A_LABEL, f"{text!r:.80} is none of the {len(labels)} labels"
        case RegexFormat(pattern=pattern):
            for bare in (text.strip(), unfenced(text)):
                if re.fullmatch(pattern, bare):
                    return Answer(bare, bare)
            return DropReason.NO_REGEX_MATCH, f"{text!r:.80} does not match {pattern!r}"
        case JsonFormat(json_schema=schema):
            return read_json(text, canonical_json(schema))
    return Answer(text, folded(text) or text.strip())


def read_json(text: str, schema_text: str) -> Answer | Violation:
    """Return the JSON value in ``text``, or why none is there that satisfies a schema.

    Args:
        text: A response; thoughts before the value and a Markdown fence around it come off.
        schema_text: The JSON schema (draft 2020-12), canonical JSON.

    >>> read_json('{"b": 1.0, "a": true}', "{}").value
    '{"a":true,"b":1}'
    >>> read_json('{"a": "x"}', '{"properties":{"a":{"type":"integer"}}}')  # doctest: +ELLIPSIS
    (<DropReason.JSON_SCHEMA_VIOLATION: ...>, "at $.a: 'x' is not of type 'integer'")
    """
    bare = unfenced(split_thoughts(text)[1]).strip()
    try:
        value = json.loads(bare, parse_constant=_refuse_constant)
        compared = canonical_json(_plain_numbers(value))  # refuses 1e999, which Python reads as inf
    except ValueError as error:
        return DropReason.NOT_JSON, f"{bare!r:.80} is not JSON: {error}"
    except RecursionError:
        return DropReason.NOT_JSON, f"{bare!r:.80} is not JSON: nested too deeply"
    try:
        violation = next(iter(_validator(schema_text).iter_errors(value)), None)
    except RecursionError:
        return DropReason.JSON_SCHEMA_VIOLATION, "at $: nested too deeply to be checked"
    if violation is None:
        return Answer(bare, compared)
    # A message begins with the value, which may be long, and ends with what is wrong with it.
    said = violation.message
    cut = f"{said[:80]}...{said[-80:]}" if len(said) > 163 else said
    return DropReason.JSON_SCHEMA_VIOLATION, f"at {violation.json_path:.80}: {cut}"


def check_schema(schema: Any) -> None:
    """Raise RecipeError when ``schema`` is not a JSON schema, or refers to what is not in it."""
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise RecipeError(
            f"task.answer_format.json_schema is not a JSON schema: {error.message}. Correct it."
        ) from None
    resource = DRAFT202012.create_resource(schema)
    _check_references(resource, EMPTY_REGISTRY.resolver_with_root(resource))


def _refuse_constant(name: str) -> None:
    # Python's parser would take NaN and Infinity, which no other reader of JSON knows.
    raise ValueError(f"{name} is not a JSON value")


def _plain_numbers(value: object) -> object:
    """Return ``value`` with 1.0 as 1: JSON knows one kind of number."""
    if isinstance(value, dict):
        return {key: _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@lru_cache(maxsize=8)
def _validator(schema_text: str) -> Any:
    # With a registry of our own no reference is fetched over the network.
    return jsonschema.Draft202012Validator(json.loads(schema_text), registry=EMPTY_REGISTRY)


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
