"""A column becomes chat messages, or says why not."""

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.data.chat import (
    MessageError,
    content_hash,
    dump_messages,
    load_messages,
    parse_messages,
)
from tests.data.prompt_bench import TURNS, Bench

_VALUES = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("chat", "detail"),
    [
        (None, "messages are NoneType, not a list of turns"),
        ([], "messages are list, not a list of turns"),
        ("not json", "messages are not JSON: Expecting value"),
        ('{"role": "user"}', "messages are dict, not a list of turns"),
        ([{"role": "user"}], "turn 0 has no text under 'content'"),
        ([{"role": "user", "content": 3}], "turn 0 has no text under 'content'"),
        ([{"role": "critic", "content": "x"}], "turn 0 has the role 'critic'"),
        ([TURNS[0], "hello"], "turn 1 is str, not {role, content}"),
        ([{"role": "tool", "content": "x"}], "turn 0 uses a tool, and prompts are text alone"),
        (
            [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
            "turn 1 uses a tool, and prompts are text alone",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "turn 0 has a part 'image_url', and prompts are text alone",
        ),
        ([*TURNS[:1], {"role": "system", "content": "x"}], "the last turn is the system's"),
        (TURNS[1:], "turn 0, the assistant's, begins the conversation"),
        (TURNS[:1] * 2, "turn 1, the user's, follows another of the user's; join the two"),
        ([*TURNS[:2], TURNS[1], TURNS[2]], "turn 2, the assistant's, does not follow a user's"),
    ],
)
def test_messages_that_are_none_are_put_aside(bench: Bench, chat: Any, detail: str) -> None:
    rows = [{"chat": TURNS}, {"chat": chat}]
    data = bench.data(rows, columns={"messages": "chat"})
    assert bench.reasons(data) == {("train", 2): "malformed_messages"}
    assert bench.rows(bench.run(data), "quarantined")[0]["detail"].startswith(detail)
    with pytest.raises(MessageError, match=detail.split(":")[0]):
        parse_messages(chat)


@given(_VALUES, _VALUES)
def test_messages_come_back_as_they_were(user: str, system: str) -> None:
    messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    assert load_messages(dump_messages(messages)) == messages
    assert parse_messages(dump_messages(messages)) == messages


@given(st.text(string.ascii_letters + " \n\t"), st.sampled_from(["upper", "lower", "swapcase"]))
def test_case_and_white_space_make_no_other_question(text: str, change: str) -> None:
    changed = "  ".join(getattr(text, change)().split(" ")) + "\n"
    one, two = ([{"role": "user", "content": content}] for content in (text, changed))
    assert content_hash(one) == content_hash(two)  # type: ignore[arg-type]
    other = [{"role": "user", "content": text + "x"}]
    assert content_hash(one) != content_hash(other)  # type: ignore[arg-type]


def test_a_developer_is_the_system_and_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "My card"}, {"type": "input_text", "text": "is lost"}]
    logged = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert parse_messages(logged) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "My card\nis lost"},
    ]
