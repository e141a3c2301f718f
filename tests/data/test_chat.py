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
    render_prompt,
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
    ],
)
def test_messages_that_are_none_are_put_aside(bench: Bench, chat: Any, detail: str) -> None:
    rows = [{"chat": TURNS}, {"chat": chat}]
    data = bench.data(rows, columns={"messages": "chat"})
    assert bench.reasons(data) == {("train", 2): "malformed_messages"}
    assert bench.rows(bench.run(data), "quarantined")[0]["detail"].startswith(detail)
    with pytest.raises(MessageError, match=detail.split(":")[0]):
        parse_messages(chat)


@given(st.lists(_VALUES, min_size=3, max_size=3))
def test_a_template_is_filled_in_whatever_the_values_hold(values: list[str]) -> None:
    columns = dict(zip(("a", "b c", "d.e"), values, strict=True))
    expected = f"{{x}} {values[0]}|{values[1]}|{values[2]} }}{values[0]}"
    rendered = render_prompt("{{x}} {a}|{b c}|{d.e} }}{a}", columns)
    assert rendered == (expected if any(value.strip() for value in values) else "")


@given(st.text(st.characters(exclude_characters="{}")), _VALUES.filter(str.strip))
def test_text_around_a_column_stays_as_it_is(around: str, value: str) -> None:
    assert render_prompt(f"{around}{{text}}{around}", {"text": value}) == around + value + around


def test_lists_in_a_column_are_shown_as_json() -> None:
    assert render_prompt("{q} {options}", {"q": 1, "options": ["ü", None]}) == '1 ["ü", null]'


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
