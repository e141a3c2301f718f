"""Test rows that belong together are told, so that intervals count them together."""

from typing import Any

import pytest

from schemas.errors import InputDataError
from schemas.task import TaskKind, TaskSpec
from tests.data.prompt_bench import Bench, Row

CHAT = TaskSpec(name="t", type=TaskKind.CONVERSATION)


def clusters(bench: Bench, test: list[Row], **columns: str) -> list[str]:
    source = bench.source("test", test, reference="answer", **columns)
    rows = bench.rows(bench.run(bench.data([{"text": "a"}], source)))
    return [row["cluster"] for row in rows if row["split"] == "test"]


def test_rows_with_the_same_prompt_are_one_cluster(bench: Bench) -> None:
    test = [{"text": text, "answer": "yes"} for text in ("one", "two", " ONE", "three")]
    found = clusters(bench, test)
    assert found[0] == found[2] and len(set(found)) == 3


def test_a_column_says_what_belongs_together_whatever_is_asked(bench: Bench) -> None:
    test: list[Row] = [
        {"text": "one", "answer": "yes", "customer": 7},
        {"text": "two", "answer": "yes", "customer": 7},
        {"text": "two", "answer": "yes", "customer": "8"},
        {"text": "three", "answer": "yes", "customer": None},
        {"text": "three", "answer": "no", "customer": ""},
    ]
    found = clusters(bench, test, cluster="customer")
    assert found[:3] == ["7", "7", "8"]
    assert found[3] == found[4] and len(found[3]) == 64  # of nobody: by what is asked


def test_turns_of_a_conversation_are_one_cluster(bench: Bench) -> None:
    def chat(*said: str) -> dict[str, Any]:
        roles = ("user", "assistant")
        return {"chat": [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]}

    source = bench.source(
        "test",
        [chat("hi", "yes?", "book", "done"), chat("hi", "yes?", "cancel", "done")],
        messages="chat",
    )
    train = bench.source("train", [chat("a", "b")], messages="chat")
    validation = bench.source("validation", [chat("c", "d")], messages="chat")
    data = bench.data(train, source, validation=validation, turns="every")
    rows = [row for row in bench.rows(bench.run(data, CHAT)) if row["split"] == "test"]
    first, second = rows[:2], rows[2:]
    assert len(first) == len(second) == 2
    assert len({row["cluster"] for row in first}) == len({row["cluster"] for row in second}) == 1
    # Both begin with the same prompt; the conversation goes before it.
    assert first[0]["content_hash"] == second[0]["content_hash"]
    assert first[0]["cluster"] != second[0]["cluster"]


def test_a_cluster_column_that_is_not_there_ends_the_run(bench: Bench) -> None:
    with pytest.raises(InputDataError, match="no column 'customer'"):
        clusters(bench, [{"text": "one", "answer": "yes"}], cluster="customer")
