"""Every row that cannot be used is put aside with its reason."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from schemas.errors import InputDataError, RecipeError
from schemas.frames import SPLITS
from schemas.task import JsonFormat, LabelSet, RegexFormat
from tests.data.prompt_bench import QA, TEXTS, Bench, Row


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
        (LabelSet(labels=("yes", "no")), " yes", "yes or no", "reference_not_in_format"),
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
    gold: list[Row] = [{"text": "a", "answer": good}, {"text": "b", "answer": answer}]
    test: list[Row] = [{"text": "c", "answer": good}, {"text": "d", "answer": answer}]
    data = bench.data([{"text": "e"}], test, gold=bench.source("gold", gold, reference="answer"))
    assert bench.reasons(data, task) == {("gold", 2): reason, ("test", 2): reason}


@pytest.mark.parametrize("ids_at_once", [1, 1_000_000])
def test_ids_have_to_be_there_and_unique_within_a_source(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ids_at_once: int
) -> None:
    monkeypatch.setattr("distillery.data.validation._IDS_AT_ONCE", ids_at_once)
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


def test_unreadable_lines_are_put_aside_with_their_number(bench: Bench) -> None:
    data = bench.data([{"text": "a"}, {"text": "b"}])
    path = Path(data.train.path)  # type: ignore[union-attr]
    path.write_bytes(b'{"text": "a"}\n{"text": \n\n{"text": "half \\ud83d"}\n{"text": "b"}\n')
    assert bench.reasons(data) == {("train", 2): "unreadable_row", ("train", 4): "unreadable_row"}
    details = [row["detail"] for row in bench.rows(bench.run(data), "quarantined")]
    assert [detail.split(":")[0] for detail in details] == [
        "line 2 is not JSON",
        "line 4 has half a character (\\ud800 or like)",
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


def test_an_answer_format_that_cannot_be_used_is_refused(bench: Bench) -> None:
    answer_format = JsonFormat(json_schema={"type": "objct"})
    with pytest.raises(RecipeError, match="is not a JSON schema: 'objct'"):
        bench.run(
            bench.data([{"text": "a"}]), QA.model_copy(update={"answer_format": answer_format})
        )


def test_references_are_kept_as_the_recipe_writes_its_labels(bench: Bench) -> None:
    gold: list[Row] = [{"text": str(n), "answer": "Yes."} for n in range(20)]
    test: list[Row] = [{"text": "t", "answer": "**no**"}]
    data = bench.data([{"text": "e"}], test, gold=bench.source("gold", gold, reference="answer"))
    task = QA.model_copy(update={"answer_format": LabelSet(labels=("yes", "no"))})
    result = bench.run(data, task)
    references = {row["split"]: row["references"] for row in bench.rows(result)}
    assert references == {"train": None, "gold": '["yes"]', "test": '["no"]'} | {
        split: None for split in references if split == "validation"
    }
    assert {row["response"] for row in bench.rows(result, "gold")} == {"yes"}


def test_gold_rows_are_ready_to_learn_from(bench: Bench) -> None:
    rows = [{"text": text, "answer": "yes"} for text in TEXTS[:100]]
    data = bench.data([{"text": "a"}], gold=bench.source("gold", rows, reference="answer"))
    result = bench.run(data)
    gold = bench.rows(result, "gold")
    assert {row["split"] for row in gold} == {"train", "validation"}
    assert [row["response"] for row in gold] == ["yes"] * 100
    assert sum(row["split"] == "gold" for row in bench.rows(result)) == 100


def test_the_hash_of_a_split_changes_with_its_own_rows_only(bench: Bench) -> None:
    def hashes(
        train: str = "a", gold: str = "b", test: str = "c", answer: str = "yes"
    ) -> tuple[dict[str, str], dict[str, str]]:
        labelled = bench.source("gold", [{"text": gold, "answer": "no"}] * 2, reference="answer")
        rows = bench.data([{"text": train}], [{"text": test, "answer": answer}], gold=labelled)
        done = bench.run(rows)
        return done.dataset("prompts").hashes, done.dataset("gold").hashes

    def differing(**changed: str) -> set[str]:
        (asked, learnt), (others, learnt_by_others) = hashes(), hashes(**changed)
        assert (learnt != learnt_by_others) == ("gold" in changed)
        return {split for split in asked if asked[split] != others[split]}

    assert set(hashes()[0]) == {*SPLITS, "test clusters"}
    assert hashes() == hashes()
    assert differing(train="d") == {"train"}
    assert differing(gold="d") == {"gold"}
    assert differing(test="d") == {"test", "test clusters"}
    assert differing(answer="no") == {"test"}
