"""Every dropped response has one reason, of the first filter that drops it, and is kept."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery.filters.stage import apply_filters, filter_responses
from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.filters import (
    AgreementFilter,
    DuplicateFilter,
    EmptyFilter,
    Filter,
    FilterSpec,
    FormatFilter,
    LengthFilter,
    RefusalFilter,
    TruncatedFilter,
)
from schemas.frames import (
    RESPONSE_STATES,
    RejectedFrame,
    ResponseFrame,
    TrainingFrame,
    arrow_schema,
    check_frame,
)
from schemas.refs import DatasetRef
from schemas.task import JsonFormat, LabelSet, RegexFormat, TaskSpec

QA = TaskSpec(name="t", type="qa")  # type: ignore[arg-type]
DEFAULT = FilterSpec().rules
INLINE = ExecutionSpec()
Row = dict[str, Any]


def _task(answer_format: Any) -> TaskSpec:
    return QA.model_copy(update={"answer_format": answer_format})


def _response(response: str = "fine", **columns: Any) -> Row:
    return {
        "prompt_id": "p",
        "split": "train",
        "messages": '[{"content":"q","role":"user"}]',
        "response": response,
        "state": "ok" if response.strip() else "empty",
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "request_hash": "0" * 64,
        "sample_index": 0,
        "agreement": math.nan,
        "repaired": False,
    } | columns


def _apply(
    *rows: Row, rules: tuple[Filter, ...] = DEFAULT, task: TaskSpec = QA
) -> tuple[pd.DataFrame, pd.DataFrame]:
    frame = pd.DataFrame([{"is_duplicate": False} | row for row in rows])
    return apply_filters(frame, task, rules)


@pytest.mark.parametrize(
    ("row", "rule", "answer_format", "reason", "detail"),
    [
        (_response(""), EmptyFilter(), None, "empty", "the response has no text"),
        (_response(" \n"), EmptyFilter(), None, "empty", "the response has no text"),
        (
            _response("half of it", state="truncated", completion_tokens=256),
            TruncatedFilter(),
            None,
            "truncated",
            "cut after 256 tokens",
        ),
        (
            _response("I'm sorry, but I can't"),
            RefusalFilter(),
            None,
            "refusal",
            r"\"I'm sorry\" matches",
        ),
        (_response("\n as an AI model"), RefusalFilter(), None, "refusal", "'as an AI' matches"),
        (
            _response("No way"),
            RefusalFilter(patterns=("yes", "WAY$")),
            None,
            "refusal",
            "'Way' matches 'WAY$'",
        ),
        (_response(" abc "), LengthFilter(min_chars=4), None, "too_short", "3 characters, below 4"),
        (_response("abc"), LengthFilter(max_chars=2), None, "too_long", "3 characters, above 2"),
        (
            _response("maybe"),
            FormatFilter(),
            LabelSet(labels=("yes", "no")),
            "not_a_label",
            "'maybe' is none of the 2 labels",
        ),
        (
            _response("a1"),
            FormatFilter(),
            RegexFormat(pattern="[a-z]"),
            "no_regex_match",
            r"'a1' does not match '[a-z]'",
        ),
        (
            _response("{'a': 1}"),
            FormatFilter(),
            JsonFormat(json_schema={}),
            "not_json",
            "\"{'a': 1}\" is not JSON",
        ),
        (
            _response('{"a": "x"}'),
            FormatFilter(),
            JsonFormat(json_schema={"properties": {"a": {"type": "integer"}}}),
            "json_schema_violation",
            "at $.a: 'x' is not of type 'integer'",
        ),
        (
            _response(is_duplicate=True),
            DuplicateFilter(),
            None,
            "duplicate",
            "the same prompt with the same response came before",
        ),
        (
            _response(agreement=1 / 3),
            AgreementFilter(min_agreement=0.4),
            None,
            "low_agreement",
            "agreement 0.333, below 0.4",
        ),
    ],
)
def test_each_filter_drops_with_its_reason_and_what_it_saw(
    row: Row, rule: Filter, answer_format: Any, reason: str, detail: str
) -> None:
    kept, rejected = _apply(row, rules=(rule,), task=_task(answer_format))
    assert kept.empty
    dropped = rejected.iloc[0]
    assert (dropped["filter"], dropped["reason"]) == (rule.kind, reason)
    assert detail.replace("\\", "").casefold() in dropped["detail"].casefold()


@pytest.mark.parametrize(
    ("response", "rule", "answer_format"),
    [
        ("The customer wrote: I'm sorry, I cannot help", RefusalFilter(), None),
        ("I can help with that", RefusalFilter(), None),
        (" yes\n", FormatFilter(), LabelSet(labels=("yes", "no"))),
        (" 12 ", FormatFilter(), RegexFormat(pattern=r"\d+")),
        ("anything", FormatFilter(), None),
        ("abc", LengthFilter(min_chars=3, max_chars=3), None),
        ("fine", DuplicateFilter(), None),
        ("fine", AgreementFilter(min_agreement=1), None),  # one sample alone: no agreement
    ],
)
def test_what_is_in_order_is_kept(response: str, rule: Filter, answer_format: Any) -> None:
    kept, rejected = _apply(_response(response), rules=(rule,), task=_task(answer_format))
    assert (len(kept), len(rejected)) == (1, 0)
    assert kept.iloc[0]["response"] == response


def test_the_first_rule_that_drops_a_row_names_the_reason() -> None:
    row = _response("I am sorry", state="truncated", is_duplicate=True)
    rules: list[Filter] = [RefusalFilter(), TruncatedFilter(), DuplicateFilter()]
    for _ in rules:
        rules.append(rules.pop(0))
        _, rejected = _apply(row, rules=tuple(rules))
        assert rejected.iloc[0]["filter"] == rules[0].kind


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        (_response("", state="failed"), "teacher_failed", "could not answer this row"),
        (_response("", state="refused"), "teacher_refused", "declines this prompt for good"),
        (_response("{", state="malformed"), "malformed_response", "breaks the schema"),
        (_response(agreement=0.0), "not_verified", "no sample of this prompt has what"),
        (_response("cut", state="truncated", agreement=0.0), "not_verified", "no sample"),
    ],
)
def test_a_row_without_a_usable_answer_is_rejected_whatever_the_rules(
    row: Row, reason: str, detail: str
) -> None:
    _, rejected = _apply(row, rules=())
    dropped = rejected.iloc[0]
    assert (dropped["filter"], dropped["reason"]) == ("teacher", reason)
    assert detail in dropped["detail"]


def test_what_the_teacher_says_of_a_row_comes_before_any_rule() -> None:
    rules = (EmptyFilter(), FormatFilter())
    task = _task(LabelSet(labels=("yes", "no")))
    _, rejected = _apply(
        _response("", state="refused"), _response("maybe", agreement=0.0), rules=rules, task=task
    )
    assert rejected["reason"].tolist() == ["teacher_refused", "not_verified"]


def test_a_truncated_row_that_no_sample_bears_out_is_called_truncated() -> None:
    _, rejected = _apply(_response("cut", state="truncated", agreement=0.0))
    assert rejected.iloc[0]["reason"] == "truncated"  # raising max_new_tokens is what helps


@pytest.mark.parametrize(("agreement", "num_kept"), [(0.5, 1), (0.49, 0), (1.0, 1), (0.001, 0)])
def test_agreement_is_kept_from_its_bound_upwards(agreement: float, num_kept: int) -> None:
    kept, _ = _apply(_response(agreement=agreement), rules=(AgreementFilter(),))
    assert len(kept) == num_kept


@pytest.mark.parametrize("response", ["", "   ", "\n"])
def test_a_response_without_text_never_gets_through_whatever_the_rules(response: str) -> None:
    _, rejected = _apply(_response(response), rules=())
    assert rejected.iloc[0]["reason"] == "empty"


_RESPONSES = st.fixed_dictionaries(
    {
        "split": st.sampled_from(["train", "validation"]),
        "messages": st.sampled_from([f'[{{"content":"q{n}","role":"user"}}]' for n in range(3)]),
        "response": st.sampled_from(["yes", " yes", "no", "maybe", "", " ", "I am sorry", "x" * 9]),
        "state": st.sampled_from(RESPONSE_STATES),
        "agreement": st.sampled_from([math.nan, 0.0, 0.25, 1.0]),
    }
)
_MORE_RULES = (LengthFilter(max_chars=8), LengthFilter(min_chars=3), AgreementFilter())
_RULES = st.permutations([*DEFAULT, *_MORE_RULES]).flatmap(
    lambda rules: st.integers(0, len(rules)).map(lambda n: tuple(rules[:n]))
)
_FORMATS = st.sampled_from([None, LabelSet(labels=("yes", "no")), RegexFormat(pattern="[a-z ]+")])


def _stage(folder: Path, rows: list[Row], rules: tuple[Filter, ...], task: TaskSpec) -> StageResult:
    store = Store(str(folder))
    schema = arrow_schema(ResponseFrame)
    types = dict.fromkeys(["prompt_tokens", "completion_tokens", "sample_index"], "int64")
    frame = pd.DataFrame(rows, columns=schema.names).astype(
        types | {"agreement": "float64", "repaired": "bool"}
    )
    uri = f"responses/{len(store.list_folders('responses'))}"
    with store.row_writer(uri, schema) as writer:
        writer.write(frame)
    ref = writer.ref(uri)
    return filter_responses(ref, task, FilterSpec(rules=rules), StoreSpec(root=str(folder)), INLINE)


def _rows(folder: Path, ref: DatasetRef) -> list[Row]:
    return [row for batch in Store(str(folder)).batches(ref) for row in batch.to_pylist()]


@settings(max_examples=25, deadline=None)
@given(st.lists(_RESPONSES, max_size=12), _RULES, _FORMATS)
def test_nothing_is_lost_and_filtering_again_drops_nothing(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[Row], rules: Any, answer_format: Any
) -> None:
    folder, task = tmp_path_factory.mktemp("filter"), _task(answer_format)
    rows = [_response() | row | {"prompt_id": f"p{n}"} for n, row in enumerate(drawn)]
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
        _response("a", prompt_id="1"),
        _response("a", prompt_id="2"),
        _response("b", prompt_id="3"),
        _response("a", prompt_id="4", split="validation"),
        _response("a", prompt_id="5", messages="[other]"),
    ]
    result = _stage(tmp_path, rows, DEFAULT, QA)
    assert [row["prompt_id"] for row in _rows(tmp_path, result.dataset("kept"))] == [*"1345"]
    rejected = _rows(tmp_path, result.dataset("rejected"))
    assert [(row["prompt_id"], row["reason"]) for row in rejected] == [("2", "duplicate")]


def test_a_dropped_row_does_not_make_a_good_one_a_duplicate(tmp_path: Path) -> None:
    rows = [_response("a", prompt_id="1", state="truncated"), _response("a", prompt_id="2")]
    result = _stage(tmp_path, rows, DEFAULT, QA)
    assert [row["prompt_id"] for row in _rows(tmp_path, result.dataset("kept"))] == ["2"]


def test_an_unverified_row_does_not_make_a_verified_one_a_duplicate(tmp_path: Path) -> None:
    # The same prompt twice, with another reference: the verifier lets the second through.
    rows = [
        _response("a", prompt_id="1", agreement=0.0),
        _response("a", prompt_id="2", agreement=0.5),
        _response("a", prompt_id="3", agreement=0.5),
    ]
    result = _stage(tmp_path, rows, DEFAULT, QA)
    assert [row["prompt_id"] for row in _rows(tmp_path, result.dataset("kept"))] == ["2"]
    rejected = _rows(tmp_path, result.dataset("rejected"))
    assert [row["reason"] for row in rejected] == ["not_verified", "duplicate"]


def test_agreement_may_be_missing_in_every_row_of_a_file(tmp_path: Path) -> None:
    result = _stage(tmp_path, [_response("a")], (AgreementFilter(min_agreement=1),), QA)
    assert len(_rows(tmp_path, result.dataset("kept"))) == 1


def test_reasons_are_counted_most_frequent_first(tmp_path: Path) -> None:
    rows = [
        _response(text, prompt_id=str(n)) for n, text in enumerate(["I am sorry", "", " ", "a"])
    ]
    result = _stage(tmp_path, rows, DEFAULT, QA)
    assert list(result.drop_reasons.items()) == [("empty", 2), ("refusal", 1)]


def test_only_what_the_filters_read_makes_them_run_again(tmp_path: Path) -> None:
    ref = DatasetRef(uri="none", fingerprint="0", num_rows=0, columns=())
    store = StoreSpec(root=str(tmp_path))
    Store(store.root).write_rows("none", [], arrow_schema(ResponseFrame), fingerprint="0")

    def reused(task: TaskSpec = QA, **named: Any) -> bool:
        return filter_responses(ref, task, FilterSpec(**named), store, INLINE).reused

    assert not reused()
    assert reused(min_keep_fraction=0.1, min_train_rows=1)
    assert reused(QA.model_copy(update={"name": "other"}))
    assert not reused(rules=DEFAULT[::-1])
    assert not reused(_task(RegexFormat(pattern="a")))


def test_frames_keep_their_contracts() -> None:
    kept, rejected = _apply(_response("a"), _response(""))
    check_frame(kept, TrainingFrame)
    check_frame(rejected, RejectedFrame)
    check_frame(pd.DataFrame([_response("a"), _response("b", agreement=0.5)]), ResponseFrame)
    assert json.loads(kept.iloc[0]["messages"]) == [{"role": "user", "content": "q"}]


@pytest.mark.parametrize(
    "change",
    [{"split": "test"}, {"response": ""}, {"messages": "no list"}, {"prompt_id": ""}],
)
def test_a_training_frame_refuses_a_bad_row_with_its_column(change: Row) -> None:
    import pandera.errors

    row = {"prompt_id": "p", "split": "train", "messages": "[]", "response": "a"} | change
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
        check_frame(pd.DataFrame([_response() | change]), ResponseFrame)
    assert list(change) == caught.value.failure_cases["column"].unique().tolist()


def test_responses_are_stored_with_their_types() -> None:
    types = {field.name: str(field.type) for field in arrow_schema(ResponseFrame)}
    assert (types["agreement"], types["repaired"], types["sample_index"]) == (
        "double",
        "bool",
        "int64",
    )
