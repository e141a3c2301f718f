"""Frequent labels are cut to a multiple of the rarest; the facts say which prompts are missing."""

from pathlib import Path
from typing import Any

import pytest

from distillery.storage.stage import StageResult
from schemas.errors import RecipeError
from schemas.filters import BalanceFilter, FilterSpec
from schemas.task import JsonFormat, LabelSet, TaskSpec
from tests.fixtures_filters import Row, filter_rows, read_rows, response_row, task_with

LABELS = task_with(LabelSet(labels=("a", "b", "c")))


def _rows(split: str = "train", **counts: int) -> list[Row]:
    texts = [text for text, number in counts.items() for _ in range(number)]
    return [
        response_row(text, prompt_id=f"{split}-{n}", split=split) for n, text in enumerate(texts)
    ]


def _filtered(folder: Path, rows: list[Row], task: TaskSpec = LABELS, **named: Any) -> StageResult:
    return filter_rows(folder, rows, FilterSpec(responses=(BalanceFilter(**named),)), task)


def _kept(folder: Path, result: StageResult) -> list[str]:
    return [row["prompt_id"] for row in read_rows(folder, result.dataset("kept"))]


def _facts(result: StageResult) -> Any:
    filters: Any = result.manifest.facts["filters"]
    return filters[0]


def test_no_label_has_more_rows_than_the_ratio_allows_in_either_split(tmp_path: Path) -> None:
    rows = _rows(a=9, b=2) + _rows("validation", a=5, b=1, c=5)
    result = _filtered(tmp_path, rows, max_ratio=2.5)
    kept = read_rows(tmp_path, result.dataset("kept"))
    counts = {
        (split, text): sum((r["split"], r["response"]) == (split, text) for r in kept)
        for split in ("train", "validation")
        for text in "abc"
    }
    assert counts == {
        ("train", "a"): 5,  # 2.5 times 2
        ("train", "b"): 2,
        ("train", "c"): 0,
        ("validation", "a"): 3,  # 2.5 times 1, rounded up
        ("validation", "b"): 1,
        ("validation", "c"): 3,
    }
    rejected = read_rows(tmp_path, result.dataset("rejected"))
    assert {row["reason"] for row in rejected} == {"over_represented"}
    assert (rejected[0]["detail"], rejected[0]["score"]) == (
        "label a is that of 9 rows of the split, above 5",
        9.0,
    )


def test_the_facts_ask_for_prompts_of_rare_labels(tmp_path: Path) -> None:
    result = _filtered(tmp_path, _rows(a=9, b=2), max_ratio=3, over="keep")
    assert result.manifest.counts["rejected"] == 0
    assert _facts(result)["train"] == {
        "rows": {"a": 9, "b": 2},
        "prompts_needed": {"c": 3, "b": 1},
    }


def test_rows_are_chosen_by_seed_and_id_and_not_by_their_order(tmp_path: Path) -> None:
    rows = _rows(a=40, b=2)
    chosen = [_kept(tmp_path, _filtered(tmp_path, rows, max_ratio=5, seed=seed)) for seed in (0, 1)]
    assert chosen[0] != chosen[1]
    backwards = _kept(tmp_path, _filtered(tmp_path, rows[::-1], max_ratio=5))
    assert sorted(backwards) == sorted(chosen[0])


def test_the_first_rows_stay_where_the_recipe_wants_them(tmp_path: Path) -> None:
    result = _filtered(tmp_path, _rows(a=5, b=1), max_ratio=2, keep="first")
    assert _kept(tmp_path, result) == ["train-0", "train-1", "train-5"]


def test_a_property_of_json_answers_is_balanced(tmp_path: Path) -> None:
    schema: Any = {"properties": {"urgent": {"type": "boolean"}, "note": {"type": "string"}}}
    task = task_with(JsonFormat(json_schema=schema))
    texts = ['{"urgent": true, "note": "x"}'] * 4 + ['```json\n{"urgent": false}\n```', "{}"]
    rows = [response_row(text, prompt_id=str(n)) for n, text in enumerate(texts)]
    result = _filtered(tmp_path, rows, task, max_ratio=1, field="urgent", keep="first")
    assert _kept(tmp_path, result) == ["0", "4", "5"]  # without a value: in no class
    assert _facts(result)["train"]["rows"] == {"true": 4, "false": 1}


@pytest.mark.parametrize(
    ("task", "field", "message"),
    [
        (task_with(), None, "answers of this task are open"),
        (LABELS, "urgent", "is 'urgent', but answers can be balanced by label"),
    ],
)
def test_what_has_no_classes_cannot_be_balanced(
    tmp_path: Path, task: TaskSpec, field: str | None, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        _filtered(tmp_path, _rows(a=1), task, field=field)
