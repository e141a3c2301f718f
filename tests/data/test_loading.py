"""Rows become prompts; every row that cannot be used is put aside with its reason."""

import json
import string
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
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
from distillery.data.loading import load_prompts, validate_prompts
from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from schemas.data import ColumnMap, DataSpec, FileSource
from schemas.errors import InputDataError, RecipeError
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.task import JsonFormat, LabelSet, RegexFormat, TaskSpec

INLINE = ExecutionSpec()
QA = TaskSpec(name="t", type="qa")  # type: ignore[arg-type]
LABELS = TaskSpec(name="t", type="classification", answer_format=LabelSet(labels=("yes", "no")))  # type: ignore[arg-type]

Row = dict[str, Any]


@pytest.fixture
def bench(tmp_path: Path) -> "Bench":
    return Bench(tmp_path)


class Bench:
    """Runs both stages over rows that are written to files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = StoreSpec(root=str(folder / "store"))

    def source(self, name: str, rows: list[Row], **columns: str | None) -> FileSource:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return FileSource(path=str(path), columns=ColumnMap(**columns))

    def data(
        self,
        train: list[Row] | FileSource,
        test: list[Row] | FileSource | None = None,
        *,
        columns: Mapping[str, str] = MappingProxyType({}),
        **named: Any,
    ) -> DataSpec:
        """Return a data section whose invalid rows are all let through."""
        if isinstance(train, list):
            train = self.source("train", train, **columns)
        if not isinstance(test, FileSource):
            rows = [{"text": "held out", "answer": "yes"}] if test is None else test
            test = self.source("test", rows, reference="answer")
        if "validation" not in named:
            named["validation"] = self.source("validation", [{"text": "for early stopping"}])
        return DataSpec(train=train, test=test, **{"max_invalid_fraction": 1.0} | named)

    def run(self, data: DataSpec, task: TaskSpec = QA) -> StageResult:
        loaded = load_prompts(data, self.store, INLINE).dataset("prompts")
        return validate_prompts(loaded, task, data, self.store, INLINE)

    def rows(self, result: StageResult, name: str = "prompts") -> list[Row]:
        batches = Store(self.store.root).batches(result.dataset(name))
        return [row for batch in batches for row in batch.to_pylist()]

    def train_prompts(self, data: DataSpec) -> list[str]:
        rows = [row for row in self.rows(self.run(data)) if row["split"] == "train"]
        return [load_messages(row["messages"])[-1]["content"] for row in rows]

    def reasons(self, data: DataSpec, task: TaskSpec = QA) -> dict[tuple[str, int], str]:
        """Return the reasons by split and row, after a check of all counts."""
        result = self.run(data, task)
        aside = self.rows(result, "quarantined")
        prompts = self.rows(result)
        num_loaded = sum(load_prompts(data, self.store, INLINE).manifest.counts.values())
        assert len(prompts) + len(aside) == num_loaded
        assert sum(result.drop_reasons.values()) == len(aside)
        return {(row["split"], row["source_row"]): row["reason"] for row in aside}


def test_a_row_becomes_a_user_message_after_the_system_prompt(bench: Bench) -> None:
    data = bench.data([{"text": "a"}], prompt_template="Ticket: {text}", system_prompt="Be brief.")
    row = bench.rows(bench.run(data))[0]
    assert load_messages(row["messages"]) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Ticket: a"},
    ]
    assert (row["prompt_id"], row["split"], row["reference"]) == ("train-1", "train", None)


def test_a_second_run_reads_nothing_again(bench: Bench) -> None:
    data = bench.data([{"text": "a"}])
    assert not bench.run(data).reused
    assert load_prompts(data, bench.store, INLINE).reused
    assert bench.run(data).reused


def test_the_place_of_the_files_changes_nothing_but_their_content_does(bench: Bench) -> None:
    data = bench.data([{"text": "a"}])
    first = bench.run(data)
    Path(data.train.path).rename(moved := bench.folder / "moved.jsonl")  # type: ignore[union-attr]
    elsewhere = data.model_copy(update={"train": FileSource(path=str(moved))})
    assert bench.run(elsewhere).manifest == first.manifest
    moved.write_text('{"text": "b"}\n')
    assert not bench.run(elsewhere).reused


def test_the_limit_of_invalid_rows_is_no_part_of_the_result(bench: Bench) -> None:
    """Otherwise raising it would train everything again."""
    data = bench.data([{"text": "a"}])
    first = bench.run(data)
    assert bench.run(data.model_copy(update={"max_invalid_fraction": 0.5})).reused
    assert first.manifest.counts["quarantined"] == 0


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": ""}, "empty_prompt"),
        ({"text": " \n\t "}, "empty_prompt"),
        ({"text": None}, "empty_prompt"),
        ({"question": "a"}, "empty_prompt"),
        ({"text": "HELD  out"}, "found_in_test"),
        ({"text": "\nheld\tout "}, "found_in_test"),
    ],
)
def test_training_rows_that_cannot_be_used_are_put_aside(
    bench: Bench, row: Row, reason: str
) -> None:
    data = bench.data([{"text": "fine"}, row, {"text": "fine too"}])
    assert bench.reasons(data) == {("train", 2): reason}
    assert bench.train_prompts(data) == ["fine", "fine too"]


@pytest.mark.parametrize(
    ("answer_format", "good", "answer", "reason"),
    [
        (LabelSet(labels=("yes", "no")), "yes", "maybe", "reference_not_in_format"),
        (LabelSet(labels=("yes", "no")), " yes", "Yes", "reference_not_in_format"),
        (None, "x", "", "missing_reference"),
        (None, "x", None, "missing_reference"),
        (None, "x", " \n", "missing_reference"),
        (RegexFormat(pattern=r"\d+"), "12", "12 apples", "reference_not_in_format"),
        (JsonFormat(json_schema={"type": "object"}), "{}", "[1]", "reference_not_in_format"),
        (JsonFormat(json_schema={"type": "object"}), '{"a": 1}', "{", "reference_not_in_format"),
    ],
)
def test_labelled_rows_without_a_right_answer_are_put_aside(
    bench: Bench, answer_format: Any, good: str, answer: str | None, reason: str
) -> None:
    task = QA.model_copy(update={"answer_format": answer_format})
    gold = [{"text": "a", "answer": good}, {"text": "b", "answer": answer}]
    test = [{"text": "c", "answer": good}, {"text": "d", "answer": answer}]
    data = bench.data([{"text": "e"}], test, gold=bench.source("gold", gold, reference="answer"))
    assert bench.reasons(data, task) == {("gold", 2): reason, ("test", 2): reason}


def test_references_of_rows_that_a_teacher_answers_are_not_read(bench: Bench) -> None:
    data = bench.data([{"text": "a", "answer": "no label"}], columns={"reference": "answer"})
    assert bench.reasons(data, LABELS) == {}
    assert bench.rows(bench.run(data, LABELS))[0]["reference"] is None


def test_a_reference_that_is_an_object_is_kept_as_json(bench: Bench) -> None:
    task = QA.model_copy(update={"answer_format": JsonFormat(json_schema={"type": "object"})})
    answer = {"city": "Köln", "n": [1, None]}
    data = bench.data([{"text": "a"}], [{"text": "b", "answer": answer}])
    assert bench.reasons(data, task) == {}
    reference = bench.rows(bench.run(data, task))[-1]["reference"]
    assert json.loads(reference) == answer


def test_ids_have_to_be_there_and_unique_within_a_source(bench: Bench) -> None:
    rows = [{"text": t, "key": k} for t, k in (("a", 1), ("b", "2"), ("c", "1"), ("d", None))]
    data = bench.data(rows, columns={"id": "key"})
    assert bench.reasons(data) == {("train", 3): "duplicate_id", ("train", 4): "unreadable_row"}
    assert [row["prompt_id"] for row in bench.rows(bench.run(data))][:2] == ["1", "2"]


def test_the_same_id_may_stand_in_two_sources(bench: Bench) -> None:
    rows = [{"text": "a", "answer": "x", "key": "1"}]
    source = bench.source("test", rows, id="key", reference="answer")
    data = bench.data([{"text": "b", "key": "1"}], columns={"id": "key"}, test=source)
    assert bench.reasons(data) == {}


def test_test_prompts_are_dropped_from_gold_and_validation_as_well(bench: Bench) -> None:
    leaked = [{"text": "Held Out", "answer": "yes"}, {"text": "own", "answer": "no"}]
    data = bench.data(
        [{"text": "a"}],
        validation=bench.source("validation", leaked),
        gold=bench.source("gold", leaked, reference="answer"),
    )
    assert bench.reasons(data) == {
        ("validation", 1): "found_in_test",
        ("gold", 1): "found_in_test",
    }


def test_rows_found_in_test_do_not_count_as_broken(bench: Bench) -> None:
    data = bench.data([{"text": "a"}, {"text": "held out"}], max_invalid_fraction=0.0)
    assert bench.run(data).drop_reasons == {"found_in_test": 1}


TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "and {now}?"},
]


def test_messages_come_as_a_list_or_as_json_text(bench: Bench) -> None:
    rows = [{"chat": TURNS}, {"chat": json.dumps(TURNS[2:])}]
    data = bench.data(rows, columns={"messages": "chat"}, system_prompt="S")
    found = [load_messages(row["messages"]) for row in bench.rows(bench.run(data))][:2]
    system = {"role": "system", "content": "S"}
    assert found == [[system, *TURNS], [system, *TURNS[2:]]]


def test_a_system_turn_of_the_row_stays(bench: Bench) -> None:
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "a"}]
    data = bench.data([{"chat": own}], columns={"messages": "chat"}, system_prompt="S")
    assert load_messages(bench.rows(bench.run(data))[0]["messages"]) == own


def test_messages_of_parquet_are_read(bench: Bench) -> None:
    path = bench.folder / "chat.parquet"
    pq.write_table(pa.Table.from_pylist([{"chat": TURNS}]), path)
    train = FileSource(path=str(path), columns=ColumnMap(messages="chat"))
    row = bench.rows(bench.run(bench.data(train)))[0]
    assert load_messages(row["messages"]) == TURNS


@pytest.mark.parametrize(
    ("chat", "detail"),
    [
        (None, "messages are NoneType, not a list of turns"),
        ([], "messages are list, not a list of turns"),
        ("not json", "messages are not JSON: Expecting value"),
        ('{"role": "user"}', "messages are dict, not a list of turns"),
        ([{"role": "user"}], "turn 0 has no text under 'content'"),
        ([{"role": "user", "content": 3}], "turn 0 has no text under 'content'"),
        ([{"role": "tool", "content": "x"}], "turn 0 has the role 'tool'"),
        (TURNS[:2], "the last turn is the assistant's, not the user's"),
    ],
)
def test_messages_that_are_none_are_put_aside(bench: Bench, chat: Any, detail: str) -> None:
    rows = [{"chat": TURNS}, {"chat": chat}]
    data = bench.data(rows, columns={"messages": "chat"})
    assert bench.reasons(data) == {("train", 2): "malformed_messages"}
    assert bench.rows(bench.run(data), "quarantined")[0]["detail"].startswith(detail)
    with pytest.raises(MessageError, match=detail.split(":")[0]):
        parse_messages(chat)


def test_an_empty_last_turn_is_an_empty_prompt(bench: Bench) -> None:
    rows = [{"chat": TURNS}, {"chat": [{"role": "user", "content": " "}]}]
    data = bench.data(rows, columns={"messages": "chat"}, system_prompt="S")
    assert bench.reasons(data) == {("train", 2): "empty_prompt"}


def test_unreadable_lines_are_put_aside_with_their_number(bench: Bench) -> None:
    data = bench.data([{"text": "a"}, {"text": "b"}])
    path = Path(data.train.path)  # type: ignore[union-attr]
    path.write_bytes(b'{"text": "a"}\n{"text": \n\n{"text": "half \\ud83d"}\n{"text": "b"}\n')
    assert bench.reasons(data) == {("train", 2): "unreadable_row", ("train", 4): "unreadable_row"}
    details = [row["detail"] for row in bench.rows(bench.run(data), "quarantined")]
    assert [detail.split(":")[0] for detail in details] == [
        "line 2 is not JSON",
        "line 4 is not JSON",
    ]


def test_too_many_broken_rows_stop_the_run_with_reasons_rows_and_the_file(bench: Bench) -> None:
    rows = [{"text": "a"}, {"text": ""}, {"text": "b"}, {"text": ""}]
    data = bench.data(rows, max_invalid_fraction=0.2)
    with pytest.raises(InputDataError) as caught:
        bench.run(data)
    message = str(caught.value)
    assert "2 of 6 rows (33.3%) cannot be used, above data.max_invalid_fraction=0.2" in message
    assert "empty_prompt 2. First: train row 2: the prompt has no text; train row 4: " in message
    assert "No teacher was asked. Correct the rows listed in " in message
    folder = message.split("listed in ")[1].split(", or raise")[0]
    assert pq.read_table(folder).num_rows == 2
    with pytest.raises(InputDataError):
        bench.run(data)
    assert bench.run(data.model_copy(update={"max_invalid_fraction": 0.34})).reused


def test_first_broken_rows_are_shown_behind_any_number_found_in_test(bench: Bench) -> None:
    rows = [{"text": "held out"}] * 9000 + [{"text": ""}]
    with pytest.raises(InputDataError, match="First: train row 9001: the prompt has no text"):
        bench.run(bench.data(rows, max_invalid_fraction=0.0))


def test_a_split_of_which_nothing_is_left_is_refused(bench: Bench) -> None:
    with pytest.raises(InputDataError, match=r"no row of the split 'train' can be used \(empty_p"):
        bench.run(bench.data([{"text": ""}]))
    with pytest.raises(InputDataError, match=r"'validation'.*or raise data\.validation_fraction\."):
        bench.run(bench.data([{"text": "a"}], validation=None, validation_fraction=0.001))


def test_everything_wrong_with_the_sources_is_told_at_once(bench: Bench) -> None:
    data = bench.data(
        [{"question": "a"}],
        validation=FileSource(path="${NO_SUCH_VARIABLE}/v.jsonl"),
        gold=FileSource(path=str(bench.folder / "nowhere.csv")),
        test=bench.source("test", [{"text": "a"}], reference="answer"),
    )
    with pytest.raises(InputDataError) as caught:
        bench.run(data)
    lines = str(caught.value).split("\n")
    assert [line.split(": ")[0] for line in lines] == [
        "data.train",
        "data.validation",
        "data.gold",
        "data.test",
    ]
    assert "has no column 'text'; it has 'question'" in lines[0]
    assert "needs the environment variable NO_SUCH_VARIABLE" in lines[1]
    assert "does not exist" in lines[2]
    assert "has no column 'answer'" in lines[3]


def test_an_answer_format_that_cannot_be_used_is_refused(bench: Bench) -> None:
    data = bench.data([{"text": "a"}])
    for answer_format, match in (
        (RegexFormat(pattern="("), "is no regular expression"),
        (JsonFormat(json_schema={"type": "objct"}), "is no JSON schema: 'objct'"),
    ):
        with pytest.raises(RecipeError, match=match):
            bench.run(data, QA.model_copy(update={"answer_format": answer_format}))


def _splits(bench: Bench, texts: list[str], **named: Any) -> dict[str, str]:
    """Return the split by prompt, when validation is set aside from train."""
    data = bench.data([{"text": text} for text in texts], validation=None, **named)
    rows = [row for row in bench.rows(bench.run(data)) if row["split"] != "test"]
    return {load_messages(row["messages"])[-1]["content"]: row["split"] for row in rows}


TEXTS = [f"prompt {n}" for n in range(400)]


def test_a_share_of_train_is_set_aside_when_there_is_no_validation(bench: Bench) -> None:
    for share in (0.1, 0.4):
        splits = list(_splits(bench, TEXTS, validation_fraction=share).values())
        assert splits.count("validation") / 400 == pytest.approx(share, abs=0.05)
    assert _splits(bench, TEXTS, seed=1) != _splits(bench, TEXTS, seed=2)


def test_a_row_keeps_its_split_when_others_come_go_or_move(bench: Bench) -> None:
    before = _splits(bench, TEXTS)
    after = _splits(bench, ["a new one", *reversed(TEXTS[50:]), "another"])
    assert {text: after[text] for text in TEXTS[50:]} == {t: before[t] for t in TEXTS[50:]}


def test_equal_prompts_stay_on_one_side(bench: Bench) -> None:
    shouted = [text.upper() + "\n" for text in TEXTS[:100]]
    splits = _splits(bench, TEXTS[:100] + shouted)
    assert all(splits[t] == splits[s] for t, s in zip(TEXTS[:100], shouted, strict=True))


def test_gold_rows_are_ready_to_learn_from(bench: Bench) -> None:
    rows = [{"text": text, "answer": "yes"} for text in TEXTS[:100]]
    data = bench.data([{"text": "a"}], gold=bench.source("gold", rows, reference="answer"))
    result = bench.run(data)
    gold = bench.rows(result, "gold")
    assert {row["split"] for row in gold} == {"train", "validation"}
    assert [row["response"] for row in gold] == ["yes"] * 100
    assert sum(row["split"] == "gold" for row in bench.rows(result)) == 100


def test_a_sample_of_the_rows_is_loaded_and_stays_the_same(bench: Bench) -> None:
    train = bench.source("train", [{"text": text} for text in TEXTS])
    sampled = train.model_copy(update={"max_rows": 30})
    one = bench.train_prompts(bench.data(sampled))
    other = bench.train_prompts(bench.data(sampled, seed=1))
    assert len(one) == len(other) == 30
    assert one != other
    assert one == sorted(one, key=TEXTS.index)


_VALUES = st.text(st.characters(exclude_categories=["Cs"]))


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


@pytest.mark.parametrize("template", ["{}", "{0:>3}", "{a!r}", "{a:3}", "no column", "{a", "a}"])
def test_a_template_that_is_none_is_refused(bench: Bench, template: str) -> None:
    with pytest.raises(ValueError, match=r"Write \{column\} for a column"):
        bench.data([{"text": "a"}], prompt_template=template)


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


def test_loading_never_holds_the_rows_of_a_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillery.data.loading._BATCH_ROWS", 100)
    data = bench.data([{"text": f"{n} {'word ' * 1000}"} for n in range(1500)])
    tracemalloc.start()
    loaded = load_prompts(data, bench.store, INLINE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert loaded.dataset("prompts").num_rows == 1502
    assert peak < 4e6  # the texts are 7.5 MB
