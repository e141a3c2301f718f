"""A response keeps its schema or says where it breaks it; nothing is mended in silence."""

import json
from typing import Any

import pytest

from distillery.task_types import task_type
from distillery.teacher.attempts import repair_messages, schema_violation
from distillery.teacher.http.chat_api import request_json
from distillery.teacher.protocol import Request, ResponseSchema, Sampling, make_request
from schemas.task import JsonFormat, TaskSpec
from schemas.teacher import OpenAITeacher

TICKET = {
    "type": "object",
    "properties": {"label": {"enum": ["refund", "repair"]}, "lines": {"type": "array"}},
    "required": ["label"],
    "additionalProperties": False,
}


def _schema(schema: Any = TICKET) -> ResponseSchema:
    return ResponseSchema(json.dumps(schema, sort_keys=True), "validate")


def _task(schema: Any) -> TaskSpec:
    return TaskSpec(name="t", type="qa", answer_format=JsonFormat(json_schema=schema))


def _request(schema: ResponseSchema | None) -> Request:
    messages = [{"role": "system", "content": "Sort."}, {"role": "user", "content": "It broke."}]
    return make_request({}, messages, Sampling(64, 0.0, 1.0, 0), response_schema=schema)


def test_the_teacher_gets_the_properties_in_the_recipes_order() -> None:
    """vLLM writes them in the schema's order: with sorted keys, an answer before its reason."""
    properties = {"reason": {"type": "string"}, "answer": {"type": "string"}}
    teacher = OpenAITeacher(model="m", base_url="http://host/v1")
    hashes = set()
    for names in (["reason", "answer"], ["answer", "reason"]):
        ordered = {"properties": {name: properties[name] for name in names}, "required": names}
        schema = ResponseSchema.of(teacher, _task(ordered))
        request = _request(schema)
        body = request_json(teacher, request, request.messages)
        assert list(body["response_format"]["json_schema"]["schema"]["properties"]) == names
        hashes.add(request.request_hash)
    assert len(hashes) == 2


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
    assert schema_violation(text, _schema()) is None


@pytest.mark.parametrize(
    ("text", "violation"),
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
def test_a_violation_names_the_place_and_what_is_wrong_there(text: str, violation: str) -> None:
    assert violation in (schema_violation(text, _schema()) or "")


@pytest.mark.parametrize("text", ['{"label": "else"}', "x", "```\n{}\n```", '{"label":"refund"}'])
def test_the_filter_and_the_teacher_judge_alike(text: str) -> None:
    filtered = task_type(_task(TICKET), scored=False).violation(text)
    assert (filtered is None) == (schema_violation(text, _schema()) is None)


def test_a_long_value_does_not_push_out_what_is_wrong_with_it() -> None:
    violation = schema_violation(json.dumps({"label": "x" * 5000}), _schema())
    assert violation is not None
    assert len(violation) <= 200
    assert violation.startswith("at $.label: 'xxx")
    assert violation.endswith("xxx' is not one of ['refund', 'repair']")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000, "\x00", "\ud800"]
)
def test_hostile_text_is_a_violation_and_no_crash(text: str) -> None:
    assert "is not JSON" in (schema_violation(text, _schema()) or "")


def test_a_value_nested_too_deeply_for_a_recursive_schema_is_a_violation() -> None:
    nested = "[" * 400 + "]" * 400
    schema = _schema({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}})
    assert schema_violation(nested, schema) == "at $: nested too deeply to be checked"
    assert schema_violation("[[[]]]", schema) is None


def test_a_repair_shows_the_conversation_the_response_and_what_is_wrong() -> None:
    request = _request(_schema())
    messages = repair_messages(request, "refund", "at $: is not so")
    assert messages[:2] == request.messages
    assert messages[2] == {"role": "assistant", "content": "refund"}
    assert messages[3]["role"] == "user"
    for part in ("at $: is not so", "JSON alone", '"required": ["label"]'):
        assert part in messages[3]["content"]
    assert len(messages) == 4
    assert len(request.messages) == 2  # it is hashed: it must not change


def test_a_long_response_is_cut_before_it_is_sent_back() -> None:
    echoed = repair_messages(_request(_schema()), "x" * 1_000_000, "wrong")[2]["content"]
    assert echoed == "x" * 16_000
