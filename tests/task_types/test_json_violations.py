"""A response keeps its JSON schema or says where it breaks it."""

import json
from typing import Any

import pytest

from distillery.task_types import task_type
from distillery.task_types.answer_formats import Answer, read_json
from schemas.task import JsonFormat, TaskSpec

TICKET = {
    "type": "object",
    "properties": {"label": {"enum": ["refund", "repair"]}, "lines": {"type": "array"}},
    "required": ["label"],
    "additionalProperties": False,
}


def violation(text: str, schema: Any = TICKET) -> str | None:
    """Return what breaks a schema."""
    found = read_json(text, json.dumps(schema))
    return None if isinstance(found, Answer) else found[1]


def _task(schema: Any) -> TaskSpec:
    return TaskSpec(name="t", type="classification", answer_format=JsonFormat(json_schema=schema))


@pytest.mark.parametrize(
    "text",
    [
        '{"label": "refund"}',
        ' {"label":"repair","lines":[1]}\n',
        '```json\n{"label": "refund"}\n```',  # nothing to pay a repair for
        '<think>Money.</think>\n{"label": "refund"}',
    ],
)
def test_a_response_that_keeps_its_schema_has_no_violation(text: str) -> None:
    assert violation(text) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"label": "else"}', "at $.label: 'else' is not one of ['refund', 'repair']"),
        ('{"label": "refund", "lines": 1}', "at $.lines: 1 is not of type 'array'"),
        ("[]", "at $: [] is not of type 'object'"),
        ("refund", "'refund' is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ('{"label": "refund"} Done.', "is not JSON: Extra data"),
        ('{"label": "refund"', "is not JSON: Expecting ',' delimiter"),
        ('{"label": NaN}', "NaN is not a JSON value"),
        ("", "'' is not JSON"),
        ('```json\n{"label": "else"}\n```', "at $.label: 'else' is not one of"),
    ],
)
def test_a_violation_names_the_place_and_what_is_wrong_there(text: str, said: str) -> None:
    assert said in (violation(text) or "")


@pytest.mark.parametrize("text", ['{"label": "else"}', "x", "```\n{}\n```", '{"label":"refund"}'])
def test_the_filter_and_the_teacher_judge_alike(text: str) -> None:
    filtered = task_type(_task(TICKET)).violation(text)
    assert (filtered is None) == (violation(text) is None)


def test_a_long_value_does_not_push_out_what_is_wrong_with_it() -> None:
    said = violation(json.dumps({"label": "x" * 5000}))
    assert said is not None
    assert len(said) <= 200
    assert said.startswith("at $.label: 'xxx")
    assert said.endswith("xxx' is not one of ['refund', 'repair']")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000, "\x00", "\ud800"]
)
def test_hostile_text_is_a_violation_and_no_crash(text: str) -> None:
    assert "is not JSON" in (violation(text) or "")


def test_a_value_nested_too_deeply_for_a_recursive_schema_is_a_violation() -> None:
    nested = "[" * 400 + "]" * 400
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}
    assert violation(nested, schema) == "at $: nested too deeply to be checked"
    assert violation("[[[]]]", schema) is None
