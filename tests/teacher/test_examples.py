"""Which gold rows are shown: the same whatever else is asked, and never the prompt itself."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.data.chat import Message, content_hash
from distillery.teacher.examples import GoldRow, GoldRows
from schemas.errors import RecipeError
from schemas.examples import FixedExamples, NearestExamples
from tests.data.prompt_bench import LABELS, Bench

TEXTS = [
    "where is my card",
    "my card was stolen",
    "send the money back",
    "the exchange rate is wrong",
    "I want my money",
    "银行卡丢失了怎么办",
    "如何查询汇率",
]


def asking(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def gold(texts: list[str] = TEXTS) -> GoldRows:
    rows = [GoldRow((*asking(text),), (f"a{n}",), content_hash(asking(text)))
            for n, text in enumerate(texts)]  # fmt: skip
    return GoldRows(rows)


def shown(spec: FixedExamples | NearestExamples, *texts: str) -> list[list[str]]:
    found = gold().before([asking(text) for text in texts], spec)
    return [[row.asked[0]["content"] for row in rows] for rows in found]


def test_fixed_examples_are_the_same_before_every_prompt_and_drawn_by_the_seed() -> None:
    first, second = shown(FixedExamples(num_examples=3), "one", "two")
    assert first == second and len(set(first)) == 3
    drawn = {tuple(shown(FixedExamples(num_examples=3, seed=n), "one")[0]) for n in range(20)}
    assert len(drawn) > 10


def test_the_nearest_rows_are_shown_the_nearest_last() -> None:
    [rows] = shown(NearestExamples(num_examples=2), "My CARD  was stolen yesterday")
    assert rows == ["where is my card", "my card was stolen"]


def test_scripts_without_spaces_have_neighbours_too() -> None:
    [lost, rate] = shown(NearestExamples(num_examples=1), "我的银行卡丢失了", "今天的汇率如何查询")
    assert (lost, rate) == (["银行卡丢失了怎么办"], ["如何查询汇率"])


@pytest.mark.parametrize("spec", [FixedExamples(num_examples=6), NearestExamples(num_examples=6)])
def test_a_prompt_that_is_a_gold_row_gets_another_in_its_place(
    spec: FixedExamples | NearestExamples,
) -> None:
    for own in TEXTS:
        [rows] = shown(spec, f"  {own.upper()}\n")
        assert own not in rows and len(set(rows)) == 6


@pytest.mark.parametrize("spec", [FixedExamples(num_examples=7), NearestExamples(num_examples=7)])
def test_where_there_is_no_other_row_one_less_is_shown(
    spec: FixedExamples | NearestExamples,
) -> None:
    [own, new] = shown(spec, TEXTS[0], "something new")
    assert (len(own), len(new)) == (6, 7)


@pytest.mark.parametrize("spec", [FixedExamples(num_examples=2), NearestExamples(num_examples=2)])
def test_a_longer_conversation_does_not_give_away_the_answer_to_its_beginning(
    spec: FixedExamples | NearestExamples,
) -> None:
    first, reply, second = (
        Message(role=role, content=text)
        for role, text in (("user", "Hi, my card?"), ("assistant", "On its way."), ("user", "Oh!"))
    )
    parts: list[list[Message]] = [[first], [first, reply, second], *map(asking, TEXTS[:3])]
    rows = [GoldRow(tuple(part), ("x",), content_hash(part)) for part in parts]
    [begun, whole] = GoldRows(rows).before([[first], [first, reply, second]], spec)
    assert {row.asked[0]["content"] for row in begun} <= set(TEXTS)
    assert rows[1] not in whole and len(begun) == len(whole) == 2


def test_more_examples_than_gold_rows_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"num_examples is 8, but there are 7 different gold"):
        shown(FixedExamples(num_examples=8), "one")


def test_gold_rows_that_ask_the_same_are_one() -> None:
    rows = gold(["Where is it", "where  is it", "who"]).before(
        [asking("where is it?")], FixedExamples(num_examples=2)
    )
    assert sorted(row.references for row in rows[0]) == [("a0",), ("a2",)]


@given(st.lists(st.text(max_size=12), min_size=1, max_size=5))
def test_what_is_shown_does_not_depend_on_the_neighbours(texts: list[str]) -> None:
    spec = NearestExamples(num_examples=3)
    assert shown(spec, *texts) == [shown(spec, text)[0] for text in texts]


def test_likeness_is_the_cosine_of_tf_idf_vectors() -> None:
    """Against vectors that are made one by one, dense."""
    texts, query = ["aab aab", "aab", "xyz aab", "xyz"], "aab xyz xyz"

    def grams(text: str) -> list[str]:
        return [f" {text} "[at : at + 3] for at in range(len(text))]

    names = sorted({gram for text in texts for gram in grams(text)})

    def vector(text: str) -> np.ndarray:
        counts = np.array([grams(text).count(name) for name in names], float)
        df = np.array([sum(name in grams(other) for other in texts) for name in names])
        weights = np.log(counts, where=counts > 0, out=np.full(len(names), -1.0)) + 1
        weights[counts == 0] = 0
        found: np.ndarray = weights * (np.log((1 + len(texts)) / (1 + df)) + 1)
        return found / (np.linalg.norm(found) or 1)

    expected = sorted(texts, key=lambda text: -float(vector(text) @ vector(query)))
    [rows] = gold(texts).before([asking(query)], NearestExamples(num_examples=4))
    assert [row.asked[0]["content"] for row in rows][::-1] == expected


def test_a_test_row_is_never_an_example(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    rows = [
        {"text": "HELD  out", "answer": "yes"},
        {"text": "mine", "answer": "no"},
        {"text": "ours", "answer": "yes"},
    ]
    data = bench.data([{"text": "ask"}], gold=bench.source("gold", rows, reference="answer"))
    prompts = bench.run(data, LABELS).dataset("prompts")
    everything = GoldRows.of(prompts, bench.store.root)
    [found] = everything.before([asking("held out")], FixedExamples(num_examples=2))
    assert sorted(row.asked[0]["content"] for row in found) == ["mine", "ours"]
    with pytest.raises(RecipeError, match="but there are 2 different gold rows"):
        everything.before([asking("held out")], FixedExamples(num_examples=3))


def test_a_row_of_several_turns_is_shown_without_its_system_turn(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "is it open?"},
        {"role": "assistant", "content": "yes"},
    ]
    source = bench.source("gold", [{"chat": turns}], messages="chat")
    prompts = bench.run(bench.data([{"text": "ask"}], gold=source), LABELS).dataset("prompts")
    [[row]] = GoldRows.of(prompts, bench.store.root).before(
        [asking("ask")], FixedExamples(num_examples=1)
    )
    assert [turn["content"] for turn in row.asked] == ["hi", "hello", "is it open?"]
    assert row.references == ("yes",)
