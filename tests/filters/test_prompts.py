"""Prompts are filtered before a teacher is asked; what is dropped is kept with its reason."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from distillery.data.validation import prompt_set
from distillery.filters.prompts import filter_prompts
from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from schemas.errors import InputDataError
from schemas.execution import ExecutionSpec
from schemas.filters import FilterSpec
from schemas.prompt_filters import DecontaminationFilter, PromptFilter
from tests.data.prompt_bench import LABELS, QA, Bench

INLINE = ExecutionSpec()
Row = dict[str, Any]
TEST = [{"text": "Where is the order that I paid for on Monday morning?", "answer": "yes"}]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def _filtered(
    bench: Bench,
    train: list[str],
    *chosen: PromptFilter,
    test: list[Row] | None = None,
    **splits: list[Row],
) -> StageResult:
    named: dict[str, Any] = {
        split: bench.source(split, rows, reference="answer" if split == "gold" else None)
        for split, rows in splits.items()
    }
    data = bench.data([{"text": text} for text in train], test or TEST, **named)
    valid = prompt_set(bench.run(data, LABELS))
    return filter_prompts(valid, QA, FilterSpec(prompts=chosen), bench.store, INLINE)


def test_a_prompt_with_the_words_of_a_test_row_is_rejected_and_names_it(bench: Bench) -> None:
    same = "WHERE is the order that i paid for on Monday morning !!"
    result = _filtered(bench, ["How do I pay?", same], DecontaminationFilter())
    assert result.drop_reasons == {"found_in_test": 1}
    [rejected] = bench.rows(result, "rejected")
    assert rejected["prompt_id"] == "train-2"
    assert rejected["detail"] == "the same words as test row 'test-1'"
    kept = [row["prompt_id"] for row in bench.rows(result)]
    assert kept == ["train-1", "validation-1", "test-1"]
    assert result.manifest.counts == {
        "kept_train": 1,
        "kept_validation": 1,
        "kept_gold": 0,
        "rejected": 1,
    }


def test_the_test_rows_that_prompts_were_compared_with_are_in_the_manifest(bench: Bench) -> None:
    first = _filtered(bench, ["How do I pay?"], DecontaminationFilter())
    again = _filtered(bench, ["How do I pay?"], DecontaminationFilter())
    assert again.reused
    other = [{"text": "Which?", "answer": "no"}]
    changed = _filtered(bench, ["How do I pay?"], DecontaminationFilter(), test=other)
    pinned: list[Any] = [r.manifest.inputs["held_out"] for r in (first, again, changed)]
    assert pinned[0] == pinned[1]
    assert pinned[0]["test"] != pinned[2]["test"]
    assert first.dataset("prompts").identity("test") == pinned[0]["test"]
    identities = [r.dataset("prompts").identities("train", "validation") for r in (first, changed)]
    assert identities[0] == identities[1], "so nobody answers the training prompts again"


def test_a_gold_row_that_is_dropped_is_not_learnt_either(bench: Bench) -> None:
    gold = [{"text": f"Gold question {n}?", "answer": "yes"} for n in range(30)]
    gold[3]["text"] = "where is the order that I paid for on monday morning"
    result = _filtered(bench, ["How do I pay?"], DecontaminationFilter(), gold=gold)
    assert [row["prompt_id"] for row in bench.rows(result, "rejected")] == ["gold-4"]
    learnt = {row["prompt_id"] for row in bench.rows(result, "gold")}
    assert learnt == {f"gold-{n}" for n in range(1, 31)} - {"gold-4"}


def test_without_filters_the_prompts_stay_what_they_were(bench: Bench) -> None:
    gold = [{"text": f"Gold question {n}?", "answer": "yes"} for n in range(30)]
    data = bench.data(
        [{"text": "a"}, {"text": "b"}], TEST, gold=bench.source("gold", gold, reference="answer")
    )
    valid = prompt_set(bench.run(data, LABELS))
    result = filter_prompts(valid, QA, FilterSpec(prompts=()), bench.store, INLINE)
    store = Store(bench.store.root)
    for name in ("prompts", "gold"):
        before, after = getattr(valid, name), result.dataset(name)
        assert after.hashes == before.hashes
        assert store.dataset(after).to_table() == store.dataset(before).to_table()


def test_where_nothing_is_left_the_run_stops_with_the_reasons(bench: Bench) -> None:
    for _ in range(2):  # also when the stage is reused
        with pytest.raises(InputDataError) as caught:
            _filtered(bench, [TEST[0]["text"] + "!"], DecontaminationFilter())
        assert "nothing of the split 'train': found_in_test 1." in str(caught.value)
        assert "No teacher was asked" in str(caught.value)


def test_the_filters_of_the_docs_are_filters() -> None:
    text = (Path(__file__).parents[2] / "docs" / "filters.md").read_text("utf-8")
    [shown] = re.findall(r"```yaml\nfilters:\n  prompts:(?s:.*?)```", text)
    named = FilterSpec.model_validate(
        yaml.safe_load(shown.strip("`").removeprefix("yaml"))["filters"]
    )
    assert [each.kind for each in named.prompts] == [
        "pii",
        "language",
        "decontamination",
        "near_duplicate",
        "diversity",
    ]
