"""Dropped responses are kept with filter, reason and score; rewritten ones are counted."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery.filters.responses import filter_responses
from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from distillery.task_types import TaskType
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.filters import (
    AgreementFilter,
    DuplicateFilter,
    FilterSpec,
    FormatFilter,
    LengthFilter,
    RefusalFilter,
    ResponseFilter,
    TruncatedFilter,
)
from schemas.frames import (
    RESPONSE_STATES,
    ResponseFrame,
    TrainingFrame,
    arrow_schema,
    check_frame,
)
from schemas.refs import DatasetRef
from schemas.task import LabelSet, RegexFormat, TaskSpec
from tests.fixtures_filters import Row, response_row, task_with

FREE = task_with()
YES_NO = task_with(LabelSet(labels=("yes", "no")))
INLINE = ExecutionSpec()


def _filtered(
    folder: Path, *rows: Row, rules: tuple[ResponseFilter, ...] | None = None, task: TaskSpec = FREE
) -> tuple[list[Row], list[Row]]:
    result = _stage(folder, list(rows), rules, task)
    return _rows(folder, result.dataset("kept")), _rows(folder, result.dataset("rejected"))


def test_the_first_rule_that_drops_a_row_names_the_reason(tmp_path: Path) -> None:
    first = response_row("I am sorry", prompt_id="1")
    row = response_row("I am sorry", state="truncated")
    rules: list[ResponseFilter] = [RefusalFilter(), TruncatedFilter(), LengthFilter(max_chars=3)]
    for _ in rules:
        rules.append(rules.pop(0))
        _, rejected = _filtered(tmp_path, row, rules=tuple(rules))
        assert rejected[0]["filter"] == rules[0].kind
    _, rejected = _filtered(tmp_path, first, first, rules=(DuplicateFilter(), RefusalFilter()))
    assert sorted(row["filter"] for row in rejected) == ["duplicate", "refusal"]


def test_what_the_teacher_says_of_a_row_comes_before_any_rule(tmp_path: Path) -> None:
    rows = [response_row("", state="refused"), response_row("maybe", agreement=0.0)]
    _, rejected = _filtered(tmp_path, *rows, rules=(FormatFilter(),), task=YES_NO)
    assert [row["reason"] for row in rejected] == ["teacher_refused", "not_verified"]
    assert {row["filter"] for row in rejected} == {"teacher"}
    assert [row["score"] for row in rejected] == [None, 0.0]


@pytest.mark.parametrize("response", ["", "   ", "\n"])
def test_a_response_without_text_never_gets_through_whatever_the_rules(
    tmp_path: Path, response: str
) -> None:
    _, rejected = _filtered(tmp_path, response_row(response), rules=())
    assert [(row["filter"], row["reason"]) for row in rejected] == [("teacher", "empty")]


def test_labels_in_dress_are_kept_as_the_recipe_has_them_and_counted(tmp_path: Path) -> None:
    texts = ["Yes", "yes.", "**no**", "no\u00a0", "\u200byes", "no\u3002", "yes", "perhaps"]
    rows = [response_row(text, messages=f"[{n}]") for n, text in enumerate(texts)]
    result = _stage(tmp_path, rows, None, YES_NO)
    kept = [row["response"] for row in _rows(tmp_path, result.dataset("kept"))]
    assert kept == ["yes", "yes", "no", "no", "yes", "no", "yes"]
    assert result.drop_reasons == {"not_a_label": 1}
    assert result.manifest.facts["rewrites"] == {"canonical_label": 6}


def test_thoughts_stay_with_their_response_however_it_is_rewritten(tmp_path: Path) -> None:
    thoughtful = response_row("Yes.", messages="[1]", reasoning="Was it asked for? I am sorry.")
    plain = response_row("no", messages="[2]")
    kept, rejected = _filtered(tmp_path, thoughtful, plain, task=YES_NO)
    assert [(row["response"], row["reasoning"]) for row in kept] == [
        ("yes", "Was it asked for? I am sorry."),
        ("no", None),
    ]
    assert rejected == []


def test_rows_that_are_equal_once_rewritten_are_duplicates(tmp_path: Path) -> None:
    kept, rejected = _filtered(tmp_path, response_row("Yes."), response_row("yes"), task=YES_NO)
    assert [row["response"] for row in kept] == ["yes"]
    assert [(row["filter"], row["response"]) for row in rejected] == [("duplicate", "yes")]


_RESPONSES = st.fixed_dictionaries(
    {
        "split": st.sampled_from(["train", "validation"]),
        "messages": st.sampled_from([f'[{{"content":"q{n}","role":"user"}}]' for n in range(3)]),
        "response": st.sampled_from(["yes", " Yes", "no", "maybe", "", " ", "I am sorry", "x" * 9]),
        "state": st.sampled_from(RESPONSE_STATES),
        "agreement": st.sampled_from([None, 0.0, 0.25, 1.0]),
    }
)
_MORE_RULES = (LengthFilter(max_chars=8), LengthFilter(min_chars=3), AgreementFilter())
_RULES = st.permutations([*TaskType.default_filters, *_MORE_RULES]).flatmap(
    lambda rules: st.integers(0, len(rules)).map(lambda n: tuple(rules[:n]))
)
_FORMATS = st.sampled_from([None, LabelSet(labels=("yes", "no")), RegexFormat(pattern="[a-z ]+")])


def _stage(
    folder: Path, rows: list[Row], rules: tuple[ResponseFilter, ...] | None, task: TaskSpec
) -> StageResult:
    store = Store(str(folder))
    uri = f"responses/{len(store.list_folders('responses'))}"
    with store.row_writer(uri, arrow_schema(ResponseFrame)) as writer:
        writer.write(pa.RecordBatch.from_pylist(rows, arrow_schema(ResponseFrame)))
    ref = writer.ref(uri)
    return filter_responses(
        ref, ref, task, FilterSpec(responses=rules), StoreSpec(root=str(folder)), INLINE
    )


def _rows(folder: Path, ref: DatasetRef) -> list[Row]:
    return [row for batch in Store(str(folder)).batches(ref) for row in batch.to_pylist()]


@settings(max_examples=25, deadline=None)
@given(st.lists(_RESPONSES, max_size=12), _RULES, _FORMATS)
def test_nothing_is_lost_and_filtering_again_drops_nothing(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[Row], rules: Any, answer_format: Any
) -> None:
    folder, task = tmp_path_factory.mktemp("filter"), task_with(answer_format)
    rows = [response_row() | row | {"prompt_id": f"p{n}"} for n, row in enumerate(drawn)]
    result = _stage(folder, rows, rules, task)
    kept, rejected = (_rows(folder, result.dataset(name)) for name in ("kept", "rejected"))
    ids = [row["prompt_id"] for row in rows]
    assert sorted(row["prompt_id"] for row in kept + rejected) == sorted(ids)
    assert result.manifest.counts == {
        "responses": len(rows),
        "kept_train": sum(row["split"] == "train" for row in kept),
        "kept_validation": sum(row["split"] == "validation" for row in kept),
        "rejected": len(rejected),
    }
    assert sum(result.drop_reasons.values()) == len(rejected)
    passed = {row["prompt_id"] for row in kept}
    again = _stage(folder, [row for row in rows if row["prompt_id"] in passed], rules, task)
    assert _rows(folder, again.dataset("kept")) == kept  # in the order of the responses


def test_of_equal_answers_to_equal_prompts_the_first_is_kept_within_each_split(
    tmp_path: Path,
) -> None:
    rows = [
        response_row("a", prompt_id="1"),
        response_row("a", prompt_id="2"),
        response_row("b", prompt_id="3"),
        response_row("a", prompt_id="4", split="validation"),
        response_row("a", prompt_id="5", messages="[other]"),
    ]
    result = _stage(tmp_path, rows, None, FREE)
    assert [row["prompt_id"] for row in _rows(tmp_path, result.dataset("kept"))] == [*"1345"]
    rejected = _rows(tmp_path, result.dataset("rejected"))
    assert [(row["prompt_id"], row["reason"]) for row in rejected] == [("2", "duplicate")]


def test_a_dropped_row_does_not_make_a_good_one_a_duplicate(tmp_path: Path) -> None:
    rows = [response_row("a", prompt_id="1", state="truncated"), response_row("a", prompt_id="2")]
    result = _stage(tmp_path, rows, None, FREE)
    assert [row["prompt_id"] for row in _rows(tmp_path, result.dataset("kept"))] == ["2"]


def test_an_unverified_row_does_not_make_a_verified_one_a_duplicate(tmp_path: Path) -> None:
    # The same prompt twice, with another reference: the verifier lets the second through.
    rows = [
        response_row("a", prompt_id="1", agreement=0.0),
        response_row("a", prompt_id="2", agreement=0.5),
        response_row("a", prompt_id="3", agreement=0.5),
    ]
    result = _stage(tmp_path, rows, None, FREE)
    assert [row["prompt_id"] for row in _rows(tmp_path, result.dataset("kept"))] == ["2"]
    rejected = _rows(tmp_path, result.dataset("rejected"))
    assert [row["reason"] for row in rejected] == ["not_verified", "duplicate"]


def test_agreement_may_be_missing_in_every_row_of_a_file(tmp_path: Path) -> None:
    result = _stage(tmp_path, [response_row("a")], (AgreementFilter(min_agreement=1),), FREE)
    assert len(_rows(tmp_path, result.dataset("kept"))) == 1


def test_reasons_are_counted_most_frequent_first(tmp_path: Path) -> None:
    rows = [
        response_row(text, prompt_id=str(n)) for n, text in enumerate(["I am sorry", "", " ", "a"])
    ]
    result = _stage(tmp_path, rows, None, FREE)
    assert list(result.drop_reasons.items()) == [("empty", 2), ("refusal", 1)]


def test_only_what_the_filters_read_makes_them_run_again(tmp_path: Path) -> None:
    ref = DatasetRef(uri="none", fingerprint="0", num_rows=0, columns=())
    store = StoreSpec(root=str(tmp_path))
    with Store(store.root).row_writer("none", arrow_schema(ResponseFrame)):
        pass

    def reused(task: TaskSpec = FREE, **named: Any) -> bool:
        return filter_responses(ref, ref, task, FilterSpec(**named), store, INLINE).reused

    assert not reused()
    assert reused(min_keep_fraction=0.1, min_train_rows=1)
    assert reused(FREE.model_copy(update={"name": "other"}))
    assert not reused(responses=TaskType.default_filters[::-1])
    assert not reused(task_with(RegexFormat(pattern="a")))


def test_messages_come_through_as_they_were(tmp_path: Path) -> None:
    kept, _ = _filtered(tmp_path, response_row("a"), response_row(""))
    assert json.loads(kept[0]["messages"]) == [{"role": "user", "content": "q"}]


@pytest.mark.parametrize(
    "change",
    [{"split": "test"}, {"response": ""}, {"messages": "no list"}, {"prompt_id": ""}],
)
def test_a_training_frame_refuses_a_bad_row_with_its_column(change: Row) -> None:
    import pandera.errors

    row = {"prompt_id": "p", "split": "train", "messages": "[]", "response": "a"}
    row |= {"reasoning": "b", "teacher": "c", "chosen_because": "d"} | change
    with pytest.raises(pandera.errors.SchemaErrors) as caught:
        check_frame(pd.DataFrame([row]), TrainingFrame)
    assert list(change) == caught.value.failure_cases["column"].unique().tolist()


@pytest.mark.parametrize(
    "change",
    [{"state": "late"}, {"agreement": 1.5}, {"sample_index": -1}, {"repaired": "yes"}],
)
def test_a_response_frame_refuses_a_bad_row_with_its_column(change: Row) -> None:
    import pandera.errors

    with pytest.raises(pandera.errors.SchemaErrors) as caught:
        check_frame(pd.DataFrame([response_row(agreement=0.5) | change]), ResponseFrame)
    assert list(change) == caught.value.failure_cases["column"].unique().tolist()


def test_responses_are_stored_with_their_types() -> None:
    types = {field.name: str(field.type) for field in arrow_schema(ResponseFrame)}
    assert (types["agreement"], types["repaired"], types["sample_index"]) == (
        "double",
        "bool",
        "int64",
    )
