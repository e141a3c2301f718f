"""A line of a log: what was asked, what was answered, and what is no text."""

import json
from typing import Any

import pytest

from distillery.data.chat import MessageError, parse_messages, refuse_tools
from distillery.logs.entries import read_entry, texts, with_texts

USER = {"role": "user", "content": "Hi"}


def completion(text: Any = "Hello", **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": "stop"} | choice]}


@pytest.mark.parametrize(
    "line",
    [
        {"request": {"messages": [USER]}, "response": completion()},
        {"body": {"messages": [USER]}, "response": {"status_code": 200, "body": completion()}},
        {"request": {"body": {"messages": [USER]}}, "response": completion()},
        {"messages": [USER], "response": completion()},
        {"request": json.dumps({"messages": [USER]}), "response": json.dumps(completion())},
        {
            "request": {"messages": [USER]},
            "response": completion([{"type": "text", "text": "Hello"}]),
        },
    ],
)
def test_request_and_response_are_read_from_the_shapes_of_logs(line: dict[str, Any]) -> None:
    turns = read_entry(line, None).turns
    assert parse_messages(turns) == [USER, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    "response",
    [
        None,
        completion("cut", finish_reason="length"),
        completion(""),
        {"status_code": 500, "body": {"error": {"message": "boom"}}},
        {"choices": []},
        {"choices": [{"message": {"content": None, "tool_calls": [{}]}, "finish_reason": "stop"}]},
    ],
)
def test_response_that_is_no_whole_answer_is_none(response: Any) -> None:
    entry = read_entry({"request": {"messages": [USER]}, "response": response}, None)
    assert entry.turns == [USER]


def test_developer_is_the_system_and_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = {
        "messages": [{"role": "developer", "content": "Be brief."}, {**USER, "content": parts}]
    }
    entry = read_entry({"request": request}, None)
    assert parse_messages(entry.turns) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one\ntwo"},
    ]
    assert entry.asked == "one\ntwo"


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        (
            [{**USER, "content": [{"type": "image_url", "image_url": {"url": "data:X"}}]}],
            "image_url",
        ),
        ([{**USER, "content": [{"type": "input_audio", "input_audio": {}}]}], "input_audio"),
        (
            [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}],
            "uses a tool",
        ),
        ([USER, {"role": "tool", "content": "42", "tool_call_id": "c"}], "uses a tool"),
        ([USER, "not a turn"], "has the role None"),
    ],
)
def test_what_is_no_text_is_left_out_but_not_passed_over(turns: list[Any], why: str) -> None:
    entry = read_entry({"request": {"messages": turns}}, None)
    assert "data:X" not in json.dumps(entry.row())
    with pytest.raises(MessageError, match=why):
        parse_messages(entry.row()["messages"])


def test_tools_that_are_offered_are_told() -> None:
    request = {"messages": [USER], "tools": [{"type": "function", "function": {"name": "secret"}}]}
    row = read_entry({"request": request}, None).row()
    assert "secret" not in json.dumps(row)
    with pytest.raises(MessageError, match="'tools'"):
        refuse_tools(row)


@pytest.mark.parametrize(
    ("line", "field", "time_s"),
    [
        ({"timestamp": 1_800_000_000}, None, 1_800_000_000),
        ({"timestamp": "1800000000.5"}, None, 1_800_000_000.5),
        ({"created_at": 1_800_000_000_000}, None, 1_800_000_000),
        ({"time": "2027-01-15T08:00:00Z"}, None, 1_800_000_000),
        ({"time": "2027-01-15T08:00:00"}, None, 1_800_000_000),
        ({"response": {"created": 1_800_000_000}}, None, 1_800_000_000),
        ({"at": 1_800_000_000, "timestamp": 5}, "at", 1_800_000_000),
        ({"timestamp": "yesterday"}, None, None),
        ({"timestamp": True}, None, None),
        ({"timestamp": 5}, "at", None),
    ],
)
def test_time_is_read_in_all_usual_forms(
    line: dict[str, Any], field: str | None, time_s: float | None
) -> None:
    assert read_entry(line, field).time_s == time_s


def test_id_is_the_requests_own_or_stays_the_same() -> None:
    assert read_entry({"custom_id": "c1", "body": {"messages": [USER]}}, None).id == "c1"
    assert read_entry({"request": {"messages": [USER]}, "response": {"id": "r1"}}, None).id == "r1"
    line = {"request": {"messages": [USER]}, "timestamp": 5}
    assert read_entry(line, None).id == read_entry(dict(reversed(line.items())), None).id
    assert read_entry(line, None).id != read_entry(line | {"timestamp": 6}, None).id


def test_texts_go_back_to_their_places() -> None:
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "b"},
    ]
    assert texts(turns) == ["a", "b"]
    assert with_texts(turns, ["A", "B"]) == [
        {"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "image_url"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "B"},
    ]
