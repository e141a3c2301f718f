"""Rejected rows can be read, narrowed down and restored; a restored row passes and is counted."""

import json
from pathlib import Path

import pytest

from distillery.filters.rejected import (
    first_rows,
    newest_rejected,
    rejected_rows,
    restored,
)
from distillery.storage.store import Store
from schemas.errors import InputDataError, RecipeError, StoreError
from schemas.filters import DuplicateFilter, FilterSpec, FormatFilter, LengthFilter, RefusalFilter
from schemas.refs import DatasetRef
from schemas.task import LabelSet
from tests.fixtures_filters import Row, filter_rows, read_rows, response_row, task_with

TASK = task_with()
ROWS = [
    response_row("I am sorry.", prompt_id="sorry"),
    response_row("As an AI, I", prompt_id="ai"),
    response_row("x" * 30, prompt_id="long"),
    response_row("fine", prompt_id="fine"),
    response_row("", prompt_id="empty"),
]
RULES = (RefusalFilter(), LengthFilter(min_chars=0, max_chars=20), DuplicateFilter())


@pytest.fixture
def refs(tmp_path: Path) -> list[DatasetRef]:
    """The rejected rows of one run."""
    filter_rows(tmp_path, ROWS, FilterSpec(responses=RULES), TASK)
    return newest_rejected(Store(str(tmp_path)))


def test_rejected_rows_are_told_with_filter_reason_and_what_was_seen(
    tmp_path: Path, refs: list[DatasetRef]
) -> None:
    [row] = rejected_rows(refs, Store(str(tmp_path)), filter="length")
    assert (row.stage, row.prompt_id, row.reason) == ("filter_responses", "long", "too_long")
    assert (row.detail, row.score) == ("30 characters, above 20", 30.0)
    assert (row.prompt, row.response) == ("q", "x" * 30)
    found = [r.prompt_id for r in rejected_rows(refs, Store(str(tmp_path)), reason="refusal")]
    assert found == ["sorry", "ai"]


def test_the_first_rows_are_shown_and_all_are_counted(
    tmp_path: Path, refs: list[DatasetRef]
) -> None:
    rows, total = first_rows(rejected_rows(refs, Store(str(tmp_path))), 2)
    assert ([row.prompt_id for row in rows], total) == (["empty", "sorry"], 4)


def test_a_reason_that_does_not_exist_is_refused_with_the_nearest(
    tmp_path: Path, refs: list[DatasetRef]
) -> None:
    with pytest.raises(RecipeError, match=r"no reason 'refused_it'\."):
        list(rejected_rows(refs, Store(str(tmp_path)), reason="refused_it"))


def test_a_store_without_filters_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no finished stage of filters"):
        newest_rejected(Store(str(tmp_path / "none")))


def test_what_is_restored_is_added_to_what_was(tmp_path: Path, refs: list[DatasetRef]) -> None:
    found = restored(["sorry", "long"], refs, Store(str(tmp_path)), ["before", "long"])
    assert found == ["before", "long", "sorry"]


@pytest.mark.parametrize(
    ("prompt_id", "message"),
    [
        ("fine", "'fine' is not among the rejected rows"),
        ("empty", "'empty' was dropped as 'empty'"),
    ],
)
def test_what_cannot_be_restored_is_refused(
    tmp_path: Path, refs: list[DatasetRef], prompt_id: str, message: str
) -> None:
    with pytest.raises(InputDataError, match=message):
        restored([prompt_id], refs, Store(str(tmp_path)), [])


def test_a_restored_row_passes_every_filter_and_is_counted_as_such(tmp_path: Path) -> None:
    filters = FilterSpec(responses=RULES, restore=("long", "sorry", "nobody"))
    result = filter_rows(tmp_path, ROWS, filters, TASK)
    kept = [row["prompt_id"] for row in read_rows(tmp_path, result.dataset("kept"))]
    assert kept == ["sorry", "long", "fine"]
    assert result.manifest.counts["restored"] == 2
    steps = json.loads(json.dumps(result.manifest.facts["steps"]))
    assert {step["name"]: step["restored"] for step in steps if step["restored"]} == {
        "refusal": 1,
        "length": 1,
    }


def test_a_restored_duplicate_stays(tmp_path: Path) -> None:
    rows = [response_row("a", prompt_id=name) for name in ("1", "2", "3")]
    filters = FilterSpec(responses=(DuplicateFilter(),), restore=("3",))
    result = filter_rows(tmp_path, rows, filters, TASK)
    assert [row["prompt_id"] for row in read_rows(tmp_path, result.dataset("kept"))] == ["1", "3"]


def test_what_has_no_answer_is_not_restored(tmp_path: Path) -> None:
    rows = [response_row("maybe", prompt_id="1"), response_row("", prompt_id="2")]
    task = task_with(LabelSet(labels=("yes", "no")))
    filters = FilterSpec(responses=(FormatFilter(),), restore=("1", "2"))
    result = filter_rows(tmp_path, rows, filters, task)
    assert result.drop_reasons == {"not_a_label": 1, "empty": 1}
    assert "restored" not in result.manifest.counts


@pytest.mark.parametrize("state", ["empty", "truncated"])
def test_an_empty_response_is_never_learnt(tmp_path: Path, state: str) -> None:
    rows = [response_row(" \n", state=state, prompt_id="1"), response_row("a", prompt_id="2")]
    filters = FilterSpec(responses=(RefusalFilter(),), restore=("1",))
    result = filter_rows(tmp_path, rows, filters, TASK)
    assert result.drop_reasons == {"empty": 1}


def test_every_filter_has_a_step_with_the_tokens_that_were_paid(tmp_path: Path) -> None:
    rows: list[Row] = [
        response_row("I am sorry.", prompt_id="1", prompt_tokens=100, completion_tokens=10),
        response_row("**yes**", prompt_id="2", prompt_tokens=7, completion_tokens=5),
        response_row("no", prompt_id="3", state="failed", prompt_tokens=0, completion_tokens=0),
    ]
    task = task_with(LabelSet(labels=("yes", "no")))
    filters = FilterSpec(responses=(RefusalFilter(), FormatFilter()))
    result = filter_rows(tmp_path, rows, filters, task)
    steps = json.loads(json.dumps(result.manifest.facts["steps"]))
    told = [
        (s["name"], s["num_rows"], s["dropped"], s["rewritten"], [*s["dropped_tokens"].values()])
        for s in steps
    ]
    assert told == [
        ("teacher", 3, {"teacher_failed": 1}, 0, [[0, 0]]),
        ("refusal", 2, {"refusal": 1}, 0, [[100, 10]]),
        ("format", 1, {}, 1, []),
    ]
    [tokens] = json.loads(json.dumps(result.manifest.facts["kept_tokens"])).values()
    assert tokens == [7, 5]
