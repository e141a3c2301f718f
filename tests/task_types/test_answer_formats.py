"""An answer is read and compared in one way, whatever stands around it."""

from typing import Any

import pytest

from distillery.task_types.answer_formats import Answer, check_schema, read_answer
from schemas.errors import RecipeError
from schemas.filters import DropReason
from schemas.task import AnswerFormat, JsonFormat, LabelSet, RegexFormat

LABELS = LabelSet(labels=("refund", "repair"))
WORD = RegexFormat(pattern="[a-zA-Z]+")
JSON = JsonFormat(json_schema={"type": "object"})


@pytest.mark.parametrize(
    ("response", "answer_format", "text", "value"),
    [
        ("<think>no</think> Refund.", LABELS, "refund", "refund"),
        (" Ab\n", WORD, "Ab", "Ab"),
        ("```\nAb\n```", WORD, "Ab", "Ab"),
        ('\n</think>\n```json\n{"b": 1.0}\n```\n', JSON, '{"b": 1.0}', '{"b":1}'),
        ('{"b": true, "a": -0.0}', JSON, '{"b": true, "a": -0.0}', '{"a":0,"b":true}'),
        ("It is  **Fine**.\n", None, "It is  **Fine**.\n", "it is **fine"),
        ("<think>x</think>\n\nfine", None, "fine", "fine"),
        ("...", None, "...", "..."),
    ],
)
def test_the_text_to_learn_is_bare_and_the_value_is_what_counts(
    response: str, answer_format: AnswerFormat | None, text: str, value: str
) -> None:
    assert read_answer(response, answer_format) == Answer(text, value)


@pytest.mark.parametrize(
    ("response", "answer_format", "reason", "detail"),
    [
        ("", LABELS, "empty", "the response has no text"),
        ("<think>refund", LABELS, "empty", "nothing follows the thoughts"),
        ("<think>a</think>\n", None, "empty", "nothing follows the thoughts"),
        ("refund please", LABELS, "not_a_label", "'refund please' is none of the 2 labels"),
        ("a1", WORD, "no_regex_match", "'a1' does not match '[a-zA-Z]+'"),
        ("{'a': 1}", JSON, "not_json", "\"{'a': 1}\" is not JSON: Expecting property name"),
        ('{"a": 1e999}', JSON, "not_json", "is not JSON: Out of range float values"),
        ("[" * 100_000, JSON, "not_json", "nested too deeply"),
        ("```json\n[]\n```", JSON, "json_schema_violation", "at $: [] is not of type 'object'"),
    ],
)
def test_a_response_without_an_answer_says_why(
    response: str, answer_format: AnswerFormat | None, reason: str, detail: str
) -> None:
    found = read_answer(response, answer_format)
    assert isinstance(found, tuple)
    assert found[0] == DropReason(reason)
    assert detail in found[1]


@pytest.mark.parametrize("opening", ["`" * 1_000_000, "```" + " " * 1_000_000, "~~~\n" * 200_000])
def test_a_fence_that_does_not_end_is_read_to_its_end(opening: str) -> None:
    assert isinstance(read_answer(opening, JSON), tuple)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"$ref": "https://example.com/ticket.json"}, "'https://example.com/ticket.json'"),
        ({"items": {"properties": {"a": {"$ref": "#/$defs/missing"}}}}, "'#/$defs/missing'"),
        ({"$id": "urn:x", "anyOf": [{"$ref": "#/$defs/gone"}]}, "'#/$defs/gone'"),
    ],
)
def test_a_schema_that_refers_to_what_is_not_in_it_is_refused(schema: Any, named: str) -> None:
    with pytest.raises(RecipeError, match="which is not in it") as caught:
        check_schema(schema)
    assert f"refers to {named}" in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"a": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a"}}},
        {"$id": "https://x.example/y", "$defs": {"a": {}}, "items": {"$ref": "#/$defs/a"}},
        {"$id": "https://x.example/y", "$defs": {"a": {"$id": "z"}}, "items": {"$ref": "z"}},
        {"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
        {"properties": {"$ref": {"type": "string"}}, "enum": [{"$ref": "no reference"}]},
    ],
)
def test_a_schema_that_refers_to_itself_is_accepted_and_checks(schema: Any) -> None:
    check_schema(schema)
    assert isinstance(read_answer("[]", JsonFormat(json_schema=schema)), Answer | tuple)
