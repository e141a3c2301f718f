"""Rows of the sources become prompts."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distillery.data.chat import (
    load_messages,
)
from distillery.data.loading import load_prompts
from schemas.data import ColumnMap, DataSpec, FileSource
from schemas.errors import InputDataError
from schemas.task import JsonFormat, TaskKind, TaskSpec
from tests.data.prompt_bench import INLINE, LABELS, QA, TEXTS, TURNS, Bench, Row


def test_a_row_becomes_a_user_message_after_the_system_prompt(bench: Bench) -> None:
    data = bench.data([{"text": "a"}], prompt_template="Ticket: {text}", system_prompt="Be brief.")
    row = bench.rows(bench.run(data))[0]
    assert load_messages(row["messages"]) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Ticket: a"},
    ]
    assert (row["prompt_id"], row["split"], row["references"]) == ("train-1", "train", None)


def test_a_template_may_name_a_column_that_is_called_like_a_method(bench: Bench) -> None:
    row = {"schema": "t(a)", "of": "b"}
    test = [{"schema": "t(c)", "of": "d", "answer": "yes"}]
    validation = bench.source("validation", [row])
    data = bench.data([row], test, prompt_template="{schema} {of}", validation=validation)
    assert bench.train_prompts(data) == ["t(a) b"]


def test_a_second_run_reads_nothing_again(bench: Bench) -> None:
    data = bench.data([{"text": "a"}])
    assert not bench.run(data).reused
    assert load_prompts(QA, data, bench.store, INLINE).reused
    assert bench.run(data).reused


def test_the_place_of_the_files_changes_nothing_but_their_content_does(bench: Bench) -> None:
    data = bench.data([{"text": "a"}])
    first = bench.run(data)
    Path(data.train.path).rename(moved := bench.folder / "moved.jsonl")  # type: ignore[union-attr]
    elsewhere = data.model_copy(update={"train": FileSource(path=str(moved))})
    assert bench.run(elsewhere).manifest == first.manifest
    moved.write_text('{"text": "b"}\n')
    assert not bench.run(elsewhere).reused


def test_references_of_rows_that_a_teacher_answers_are_not_read(bench: Bench) -> None:
    data = bench.data([{"text": "a", "answer": "no label"}], columns={"reference": "answer"})
    assert bench.reasons(data, LABELS) == {}
    assert bench.rows(bench.run(data, LABELS))[0]["references"] is None


def test_a_reference_that_is_an_object_is_kept_as_json(bench: Bench) -> None:
    task = QA.model_copy(update={"answer_format": JsonFormat(json_schema={"type": "object"})})
    answer = {"city": "Köln", "n": [1, None]}
    data = bench.data([{"text": "a"}], [{"text": "b", "answer": answer}])
    assert bench.reasons(data, task) == {}
    (reference,) = json.loads(bench.rows(bench.run(data, task))[-1]["references"])
    assert json.loads(reference) == answer


def test_messages_come_as_a_list_or_as_json_text(bench: Bench) -> None:
    rows: list[Row] = [{"chat": TURNS}, {"chat": json.dumps(TURNS[2:])}]
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


def test_an_empty_last_turn_is_an_empty_prompt(bench: Bench) -> None:
    rows = [{"chat": TURNS}, {"chat": [{"role": "user", "content": " "}]}]
    data = bench.data(rows, columns={"messages": "chat"}, system_prompt="S")
    assert bench.reasons(data) == {("train", 2): "empty_prompt"}


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


def _splits(bench: Bench, texts: list[str], **named: Any) -> dict[str, str]:
    """Return the split by prompt, when validation is set aside from train."""
    data = bench.data([{"text": text} for text in texts], validation=None, **named)
    rows = [row for row in bench.rows(bench.run(data)) if row["split"] != "test"]
    return {load_messages(row["messages"])[-1]["content"]: row["split"] for row in rows}


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


def test_a_sample_of_the_rows_is_loaded_and_stays_the_same(bench: Bench) -> None:
    train = bench.source("train", [{"text": text} for text in TEXTS])
    sampled = train.model_copy(update={"max_rows": 30})
    one = bench.train_prompts(bench.data(sampled))
    other = bench.train_prompts(bench.data(sampled, seed=1))
    assert len(one) == len(other) == 30
    assert one != other
    assert one == sorted(one, key=TEXTS.index)


@pytest.mark.parametrize("template", ["{}", "{0:>3}", "{a!r}", "{a:3}", "no column", "{a", "a}"])
def test_a_template_that_is_none_is_refused(bench: Bench, template: str) -> None:
    with pytest.raises(ValueError, match=r"Write \{column\} for a column"):
        bench.data([{"text": "a"}], prompt_template=template)


@pytest.mark.slow
def test_loading_never_holds_the_rows_of_a_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillery.data.loading._BATCH_ROWS", 100)
    data = bench.data([{"text": f"{n} {'word ' * 1000}"} for n in range(1500)])
    tracemalloc.start()
    loaded = load_prompts(QA, data, bench.store, INLINE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert loaded.dataset("prompts").num_rows == 1502
    assert peak < 4e6  # the texts are 7.5 MB


def test_a_last_turn_of_the_assistant_is_the_reference(bench: Bench) -> None:
    question, answer = TURNS[0], {"role": "assistant", "content": "Which card?"}
    rows: list[Row] = [{"chat": [question, answer]}]
    test = bench.source(
        "test", [{"chat": [{"role": "user", "content": "T"}, answer]}], messages="chat"
    )
    data = bench.data(rows, test, columns={"messages": "chat"})
    found = bench.rows(bench.run(data))
    train = next(row for row in found if row["split"] == "train")
    held_out = next(row for row in found if row["split"] == "test")
    assert load_messages(train["messages"]) == [question]
    assert train["references"] is None  # a teacher answers it
    assert load_messages(held_out["messages"]) == [{"role": "user", "content": "T"}]
    assert held_out["references"] == '["Which card?"]'


def test_a_column_of_references_goes_before_the_last_turn(bench: Bench) -> None:
    chat = [{"role": "user", "content": "T"}, {"role": "assistant", "content": "said then"}]
    test = bench.source(
        "test", [{"chat": chat, "right": "right now"}], messages="chat", reference="right"
    )
    found = bench.rows(bench.run(bench.data([{"text": "a"}], test)))
    assert [row["references"] for row in found if row["split"] == "test"] == ['["right now"]']


def test_an_assistants_turn_that_answers_nobody_is_put_aside(bench: Bench) -> None:
    rows = [{"chat": TURNS}, {"chat": [{"role": "assistant", "content": "hi"}]}]
    data = bench.data(rows, columns={"messages": "chat"})
    assert bench.reasons(data) == {("train", 2): "malformed_messages"}


def test_nan_is_nothing_in_prompts_and_references(bench: Bench) -> None:
    data = bench.data([{"text": "a"}, {"text": float("nan")}])
    assert bench.reasons(data) == {("train", 2): "empty_prompt"}
    path = bench.folder / "test.parquet"
    labels = pa.array([float("nan"), 3.0])
    pq.write_table(pa.table({"text": ["held out", "too"], "answer": labels}), path)
    test = FileSource(path=str(path), columns=ColumnMap(reference="answer"))
    reasons = bench.reasons(bench.data([{"text": "a"}], test))
    assert reasons == {("test", 1): "missing_reference"}


NLI = TaskSpec(name="t", type=TaskKind.NLI)
PAIR = {"premise": "A man eats.", "hypothesis": "He eats."}


def _pairs(
    bench: Bench, labels: list[Any], label_map: dict[str, str] | None = None, **named: Any
) -> DataSpec:
    """Return training pairs, and test pairs with these labels in columns of other names."""
    rows = [{"s1": f"Man {n} eats.", "s2": "He eats.", "y": y} for n, y in enumerate(labels)]
    test = bench.source("test", rows, premise="s1", hypothesis="s2", reference="y")
    test = test.model_copy(update={"label_map": label_map or {}})
    validation = bench.source("validation", [{"premise": "a", "hypothesis": "b"}])
    given: dict[str, Any] = {"train": [PAIR], "test": test, "validation": validation}
    return bench.data(**given | named)


def test_pairs_are_read_from_the_columns_that_hold_them(bench: Bench) -> None:
    found = bench.rows(bench.run(_pairs(bench, [0, "1", 2.0, "Entails"]), NLI))
    asked = {row["prompt_id"]: load_messages(row["messages"])[0]["content"] for row in found}
    assert asked["train-1"] == "Premise: A man eats.\nHypothesis: He eats."
    assert asked["test-1"] == "Premise: Man 0 eats.\nHypothesis: He eats."
    references = [row["references"] for row in found if row["split"] == "test"]
    assert references == [
        *('["entailment"]', '["neutral"]', '["contradiction"]', '["entailment"]'),
    ]


def test_a_pair_without_a_gold_label_or_half_of_it_is_put_aside(bench: Bench) -> None:
    data = _pairs(bench, ["neutral", -1, "-", 7, "maybe", None])
    aside = bench.rows(bench.run(data, NLI), "quarantined")
    assert [(row["source_row"], row["reason"], row["detail"]) for row in aside] == [
        (2, "reference_not_in_format", "the reference is '-1': the pair has no gold label"),
        (3, "reference_not_in_format", "the reference is '-': the pair has no gold label"),
        (
            *(4, "reference_not_in_format"),
            "the reference '7' is none of 0 entailment, 1 neutral, 2 contradiction; "
            "give a label_map",
        ),
        (
            *(5, "reference_not_in_format"),
            "'maybe' is none of entailment, neutral, contradiction",
        ),
        (6, "missing_reference", "a labelled split needs a reference in every row"),
    ]
    half = _pairs(bench, ["e"], train=[PAIR, {"premise": "a", "hypothesis": None}])
    assert bench.reasons(half, NLI) == {("train", 2): "empty_prompt"}


def test_a_label_map_goes_before_the_usual_numbers_and_has_to_cover_them(bench: Bench) -> None:
    data = _pairs(bench, [0, 1.0, 2], {"0": "contradiction", "1": "entailment"})
    result = bench.run(data, NLI)
    references = [row["references"] for row in bench.rows(result) if row["split"] == "test"]
    assert references == ['["contradiction"]', '["entailment"]']
    (aside,) = bench.rows(result, "quarantined")
    assert aside["detail"] == "the reference '2' is not in label_map, which has '0', '1'"


def test_a_field_without_its_column_is_named(bench: Bench) -> None:
    test = bench.source("test", [PAIR | {"y": "e"}], premise="s1", reference="y")
    data = bench.data([{"premise": "a", "text": "b"}], test, validation=None)
    with pytest.raises(InputDataError) as caught:
        bench.run(data, NLI)
    train, held_out = str(caught.value).split("\n")
    assert "has no column 'hypothesis'; it has 'premise', 'text'" in train
    assert "has no column 's1'; it has 'premise', 'hypothesis', 'y'" in held_out


def test_a_last_turn_that_is_no_reference_is_put_aside(bench: Bench) -> None:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "-1"}]
    answered = [{"role": "user", "content": "!"}, {"role": "assistant", "content": "Entails"}]
    test = bench.source("chats", [{"chat": turns}, {"chat": answered}], messages="chat")
    result = bench.run(_pairs(bench, [], test=test), NLI)
    (aside,) = bench.rows(result, "quarantined")
    assert aside["detail"] == "the reference is '-1': the pair has no gold label"
    assert bench.rows(result)[-1]["references"] == '["entailment"]'


QUESTIONS = TaskSpec(name="t", type=TaskKind.QA)


def _answers(bench: Bench, rows: list[Row], **named: Any) -> dict[int, tuple[str, Any]]:
    """Return prompt and references by row of test questions."""
    test = bench.source("test", rows, question="q", reference="a", **named)
    early = bench.source("validation", [{"question": "early?"}])
    data = bench.data([{"question": "?"}], test, validation=early)
    return {
        row["source_row"]: (load_messages(row["messages"])[0]["content"], row["references"])
        for row in bench.rows(bench.run(data, QUESTIONS))
        if row["split"] == "test"
    }


def test_questions_come_with_a_context_or_without_and_may_have_no_answer(bench: Bench) -> None:
    rows: list[Row] = [
        {"q": "Who?", "c": "Denver won.", "a": {"text": ["Denver", "denver"], "answer_start": [0]}},
        {"q": "When?", "c": None, "a": ["1998", "98"]},
        {"q": "Where?", "c": "Denver won.", "a": {"text": [], "answer_start": []}},
        {"q": "Why?", "c": "", "a": None},
        {"q": "How?", "c": "", "a": "There is no answer."},
    ]
    assert _answers(bench, rows, context="c") == {
        1: ("Context: Denver won.\n\nQuestion: Who?", '["Denver","denver"]'),
        2: ("When?", '["1998","98"]'),
        3: ("Context: Denver won.\n\nQuestion: Where?", '["unanswerable"]'),
        4: ("Why?", '["unanswerable"]'),
        5: ("How?", '["unanswerable"]'),
    }
    assert _answers(bench, rows)[1][0] == "Who?"  # the column c is not named


def test_the_answers_of_a_csv_file_may_be_json_text(bench: Bench) -> None:
    path = bench.folder / "test.csv"
    cells = ['"{""text"": [""308""], ""answer_start"": [34]}"', "308", "", "\"{'text': ['308']}\""]
    path.write_text("question,a\n" + "".join(f"{n}?,{cell}\n" for n, cell in enumerate(cells)))
    test = FileSource(path=str(path), columns=ColumnMap(reference="a"))
    early = bench.source("validation", [{"question": "early?"}])
    result = bench.run(bench.data([{"question": "?"}], test, validation=early), QUESTIONS)
    found = [row["references"] for row in bench.rows(result) if row["split"] == "test"]
    assert found == ['["308"]', '["308"]', '["unanswerable"]']
    (aside,) = bench.rows(result, "quarantined")
    assert aside["detail"] == (
        "\"{'text': ['308']}\" is not JSON: write the column as JSON text or as Parquet"
    )


def test_references_that_are_no_texts_are_put_aside_with_the_reason(bench: Bench) -> None:
    rows: list[Row] = [{"question": "Who?", "a": a} for a in ("he", ["he", 7], 7, {"x": "he"})]
    test = bench.source("test", rows, reference="a")
    early = bench.source("validation", [{"question": "early?"}])
    result = bench.run(bench.data([{"question": "?"}], test, validation=early), QUESTIONS)
    aside = bench.rows(result, "quarantined")
    assert {row["reason"] for row in aside} == {"reference_not_in_format"}
    assert [row["detail"] for row in aside] == [
        "text 1 of the list is 7, not a text",
        "7 is int, not a text or a list of texts",
        """'{"x": "he"}' is an object without 'text'""",
    ]


def test_an_optional_field_is_required_once_its_column_is_named(bench: Bench) -> None:
    train = bench.source("train", [{"question": "?"}], context="passage")
    with pytest.raises(InputDataError, match="has no column 'passage'; it has 'question'"):
        bench.run(bench.data(train, validation=None), QUESTIONS)


def test_columns_that_divide_the_test_rows_are_kept_as_text(bench: Bench) -> None:
    rows: list[Row] = [
        {"text": "a", "answer": "x", "language": "fr", "year": 2024},
        {"text": "b", "answer": "x", "language": None, "year": 2025},
    ]
    test = bench.source("test", rows, reference="answer")
    columns = test.columns.model_copy(update={"slices": ("language", "year")})
    data = bench.data([{"text": "c"}], test.model_copy(update={"columns": columns}))
    found = {row["prompt_id"]: row["slices"] for row in bench.rows(bench.run(data))}
    assert found["test-1"] == '{"language":"fr","year":"2024"}'
    assert found["test-2"] == '{"language":null,"year":"2025"}'
    assert found["train-1"] is None


def test_a_column_that_is_to_divide_the_test_rows_has_to_be_there(bench: Bench) -> None:
    test = bench.source("test", [{"text": "a", "answer": "x"}], reference="answer")
    columns = test.columns.model_copy(update={"slices": ("language",)})
    data = bench.data([{"text": "c"}], test.model_copy(update={"columns": columns}))
    with pytest.raises(InputDataError, match="has no column 'language'"):
        bench.run(data)
