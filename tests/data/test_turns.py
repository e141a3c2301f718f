"""Each turn of the agent in a logged conversation is a prompt with what came before it."""

import json
from typing import Any

import pytest

from distillery.data.chat import load_messages
from schemas.errors import InputDataError
from schemas.task import TaskKind, TaskSpec
from tests.data.prompt_bench import Bench, Row

CHAT = TaskSpec(name="t", type=TaskKind.CONVERSATION)
SYSTEM = {"role": "system", "content": "Be brief."}


def turns(*said: str | None) -> list[dict[str, Any]]:
    """Return what a user and an agent say in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]


def conversations(count: int) -> list[list[dict[str, Any]]]:
    return [turns(f"hi {n}", "yes?", f"book {n}", "done", "thanks", "bye") for n in range(count)]


def _data(bench: Bench, train: list[Any], test: list[Any] | None = None, **named: Any) -> Any:
    rows: dict[str, list[Any]] = {
        "train": train,
        "test": [turns("held", "out")] if test is None else test,
        **{name: named.pop(name) for name in ("gold", "validation") if name in named},
    }
    sources = {
        name: bench.source(name, [{"key": f"{name[0]}{n}", "chat": chat} for n, chat in
                                  enumerate(chats)], id="key", messages="chat")
        for name, chats in rows.items()
    }  # fmt: skip
    sources.setdefault("validation", bench.source("v", [{"chat": turns("v")}], messages="chat"))
    return bench.data(sources.pop("train"), sources.pop("test"), **sources | named)


def _found(bench: Bench, data: Any, split: str, name: str = "prompts") -> list[Row]:
    return [row for row in bench.rows(bench.run(data, CHAT), name) if row["split"] == split]


def test_every_turn_of_the_agent_is_a_prompt_and_the_turn_its_reference(bench: Bench) -> None:
    test = [[SYSTEM, *turns("hi", "yes?", "book", "done")]]
    data = _data(bench, [turns("a")], test, turns="every")
    rows = _found(bench, data, "test")
    assert [row["prompt_id"] for row in rows] == ["t0-turn-2", "t0-turn-4"]
    assert [load_messages(row["messages"]) for row in rows] == [
        [SYSTEM, *turns("hi")],
        [SYSTEM, *turns("hi", "yes?", "book")],
    ]
    assert [json.loads(row["references"]) for row in rows] == [["yes?"], ["done"]]


def test_the_last_turn_alone_is_asked_for_unless_the_recipe_says_every(bench: Bench) -> None:
    rows = _found(bench, _data(bench, [turns("a")], [turns("hi", "yes?", "book", "done")]), "test")
    assert [(row["prompt_id"], row["references"]) for row in rows] == [("t0", '["done"]')]
    assert load_messages(rows[0]["messages"]) == turns("hi", "yes?", "book")


def test_what_a_user_wrote_last_is_asked_by_last_and_left_out_by_every(bench: Bench) -> None:
    train = [turns("hi", "yes?", "book"), turns("alone")]
    last = _found(bench, _data(bench, train), "train")
    assert [load_messages(row["messages"]) for row in last] == train
    every = _found(bench, _data(bench, train, turns="every"), "train")
    assert [load_messages(row["messages"]) for row in every] == [turns("hi"), turns("alone")]
    assert [row["references"] for row in every] == [None, None]  # a teacher answers


def test_the_recipe_s_system_prompt_stands_before_every_turn_and_changes_no_id(
    bench: Bench,
) -> None:
    data = _data(bench, conversations(1), turns="every", system_prompt="Be brief.")
    rows = _found(bench, data, "train")
    assert [row["prompt_id"] for row in rows] == ["t0-turn-1", "t0-turn-3", "t0-turn-5"]
    assert all(load_messages(row["messages"])[0] == SYSTEM for row in rows)


def test_rows_stay_in_the_order_of_their_turns(bench: Bench) -> None:
    long = turns(*[text for n in range(12) for text in (f"q{n}", f"a{n}")])
    rows = _found(bench, _data(bench, [long, *conversations(40)], turns="every"), "train")
    assert [row["prompt_id"] for row in rows[:12]] == [f"t0-turn-{n}" for n in range(1, 24, 2)]
    assert rows[12]["prompt_id"] == "t1-turn-1"


@pytest.mark.parametrize("split", ["train", "gold"])
def test_all_turns_of_a_conversation_are_set_aside_together(bench: Bench, split: str) -> None:
    named: dict[str, Any] = {"validation": None} if split == "train" else {}
    data = _data(bench, conversations(60), gold=conversations(60), turns="every",
                 validation_fraction=0.3)  # fmt: skip
    data = data.model_copy(update=named)
    result = bench.run(data, CHAT)
    rows = bench.rows(result, "gold" if split == "gold" else "prompts")
    splits: dict[str, set[str]] = {}
    for row in rows:
        if split == "gold" or row["split"] in ("train", "validation"):
            splits.setdefault(row["prompt_id"].split("-")[0], set()).add(row["split"])
    assert len(splits) == 60
    assert {len(found) for found in splits.values()} == {1}
    assert 8 < sum(found == {"validation"} for found in splits.values()) < 30


def test_gold_turns_are_learnt_as_the_agent_wrote_them(bench: Bench) -> None:
    data = _data(bench, [turns("a")], gold=conversations(30), turns="every")
    rows = bench.rows(bench.run(data, CHAT), "gold")
    assert len(rows) == 90
    assert {row["response"] for row in rows if row["prompt_id"].endswith("-turn-3")} == {"done"}


@pytest.mark.parametrize("which", ["last", "every"])
@pytest.mark.parametrize(
    ("chat", "detail"),
    [
        (turns("hi", "yes?")[1:], "turn 0, the assistant's, begins the conversation"),
        ([*turns("hi"), *turns("you there?", "yes")],
         "turn 1, the user's, follows another of the user's; join the two"),
        ([*turns("hi", "yes?"), *turns("hi", "how?")[1:]],
         "turn 2, the assistant's, does not follow a user's"),
        (turns("hi", None), "turn 1 has no text under 'content'"),
        (turns(None, "yes?"), "turn 0 has no text under 'content'"),
        ([None], "turn 0 is NoneType, not {role, content}"),
        ([{"role": "user", "content": [{"type": "image"}]}, *turns("", "yes?")[1:]],
         "turn 0 has a part 'image', and prompts are text alone"),
        ([*turns("hi"), {"role": "assistant", "tool_calls": [{"id": "1"}]}],
         "turn 1 uses a tool, and prompts are text alone"),
        ([*turns("hi", "yes?"), {"role": "tool", "content": "{}"}],
         "turn 2 uses a tool, and prompts are text alone"),
        (None, "messages are NoneType, not a list of turns"),
    ],
)  # fmt: skip
def test_a_conversation_that_cannot_be_used_is_put_aside_and_says_why(
    bench: Bench, chat: Any, detail: str, which: str
) -> None:
    data = _data(bench, [*conversations(1), chat], turns=which)
    aside = _found(bench, data, "train", "quarantined")
    found = [(row["source_row"], row["reason"], row["detail"]) for row in aside]
    assert found == [(2, "malformed_messages", detail)]


@pytest.mark.parametrize(
    ("column", "detail"),
    [
        ("tools", "the row has 'tools', and prompts are text alone"),
        ("functions", "the row has 'functions', and prompts are text alone"),
    ],
)
def test_a_row_that_offers_tools_is_put_aside(bench: Bench, column: str, detail: str) -> None:
    chat: Row = {"chat": turns("hi", "yes?")}
    rows = [chat | {column: []}, chat | {column: None}, chat | {column: [{"name": "book"}]}]
    data = _data(bench, [turns("a")])
    data = data.model_copy(update={"train": bench.source("tools", rows, messages="chat")})
    aside = bench.rows(bench.run(data, CHAT), "quarantined")
    assert [(row["source_row"], row["detail"]) for row in aside if row["split"] == "train"] == [
        (3, detail)
    ]


def test_a_turn_without_text_is_no_reference_and_asks_nothing(bench: Bench) -> None:
    data = _data(bench, [turns("hi", "yes?", " ", "what?")], [turns("hello", " ", "so?", "done")],
                 turns="every")  # fmt: skip
    assert [row["reason"] for row in _found(bench, data, "train", "quarantined")] == [
        "empty_prompt"
    ]
    aside = _found(bench, data, "test", "quarantined")
    assert [(row["prompt_id"], row["reason"]) for row in aside] == [
        ("t0-turn-1", "missing_reference")
    ]


def test_a_conversation_whose_id_is_missing_has_turns_without_one(bench: Bench) -> None:
    chats = [*conversations(2), turns("no", "id"), turns("none", "either")]
    rows: list[Row] = [
        {"key": key, "chat": chat} for key, chat in zip(["a", "b", None, ""], chats, strict=True)
    ]
    data = _data(bench, [], turns="every")
    train = bench.source("train", rows, id="key", messages="chat")
    data = data.model_copy(update={"train": train})
    aside = _found(bench, data, "train", "quarantined")
    assert [(row["source_row"], row["detail"]) for row in aside] == [
        (3, "the row has no id"),
        (4, "the row has no id"),
    ]


def test_too_many_broken_conversations_end_the_run(bench: Bench) -> None:
    broken = [turns("hi", "yes?")[1:]] * 2
    data = _data(bench, [*conversations(3), *broken], turns="every", max_invalid_fraction=0.1)
    with pytest.raises(InputDataError) as caught:
        bench.run(data, CHAT)
    # 9 turns and the 2 broken rows of train, one of test, one of validation.
    said = "2 of 13 rows (15.4%) cannot be used, above data.max_invalid_fraction=0.1"
    assert said in str(caught.value)
    assert "train row 4: turn 0, the assistant's, begins the conversation" in str(caught.value)
    assert "No teacher was asked." in str(caught.value)


def test_openings_that_are_in_test_too_are_dropped_and_not_counted_as_broken(bench: Bench) -> None:
    train = [turns("Hello", "yes?", f"book {n}", "done") for n in range(8)]
    test = [turns("hello ", "how can I help?", "a taxi", "done")]
    data = _data(bench, train, test, turns="every", max_invalid_fraction=0.0)
    assert [row["prompt_id"] for row in _found(bench, data, "train")] == [
        f"t{n}-turn-3" for n in range(8)
    ]
    aside = _found(bench, data, "train", "quarantined")
    assert {row["reason"] for row in aside} == {"found_in_test"}
    assert len(aside) == 8
