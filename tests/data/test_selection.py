"""Selection rows: labelled like test rows, kept from whoever learns, and never a test row."""

from typing import Any

import pytest

from distillery.teacher.generation import generation_stage
from distillery.training import training_stage
from schemas.errors import InputDataError
from schemas.execution import StageName
from schemas.refs import DatasetRef
from schemas.student import FromScratchStudent
from schemas.teacher import TransformersTeacher
from schemas.training import TrainingSpec
from tests.data.prompt_bench import LABELS, QA, Bench, Row

CHOSEN: Row = {"text": "for the choice", "answer": "yes"}
STUDENT = FromScratchStudent(num_layers=1, hidden_size=16, intermediate_size=32, num_heads=2)


def _with_selection(bench: Bench, train: list[Row], selection: list[Row], **named: Any) -> Any:
    rows = bench.source("selection", selection, reference="answer")
    return bench.data(train, selection=rows, **named)


def test_selection_rows_are_loaded_with_their_references(bench: Bench) -> None:
    rows = bench.rows(bench.run(_with_selection(bench, [{"text": "a"}], [CHOSEN]), LABELS))
    [chosen] = [row for row in rows if row["split"] == "selection"]
    assert chosen["references"] == '["yes"]'


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(None, "missing_reference"), ("maybe", "reference_not_in_format")],
)
def test_a_selection_row_that_cannot_be_scored_is_put_aside(
    bench: Bench, answer: str | None, reason: str
) -> None:
    broken = {"text": "b", "answer": answer}
    data = _with_selection(bench, [{"text": "a"}], [CHOSEN, broken])
    assert bench.reasons(data, LABELS) == {("selection", 2): reason}


def test_whoever_learns_sees_no_selection_row(bench: Bench) -> None:
    seen = [{"text": "FOR the  choice", "answer": "no"}, {"text": "other", "answer": "no"}]
    data = _with_selection(
        bench,
        [{"text": "a"}, seen[0]],
        [CHOSEN],
        validation=bench.source("validation", seen),
        gold=bench.source("gold", seen, reference="answer"),
        max_invalid_fraction=0.0,
    )
    assert bench.reasons(data) == {
        ("train", 2): "found_in_selection",
        ("validation", 1): "found_in_selection",
        ("gold", 1): "found_in_selection",
    }


def test_a_selection_row_that_is_a_test_row_is_put_aside(bench: Bench) -> None:
    leaked = {"text": "held OUT", "answer": "yes"}
    data = _with_selection(bench, [{"text": "a"}], [CHOSEN, leaked], max_invalid_fraction=0.0)
    assert bench.reasons(data) == {("selection", 2): "found_in_test"}


def test_a_selection_of_test_rows_alone_is_refused(bench: Bench) -> None:
    leaked = {"text": "held out", "answer": "yes"}
    with pytest.raises(InputDataError) as caught:
        bench.run(_with_selection(bench, [{"text": "a"}], [leaked, leaked]))
    assert str(caught.value) == (
        "all 2 rows of data.selection have prompts of test or selection rows, by which students "
        "are judged, so none is left. Give it rows that are in no other split."
    )


def _fingerprints(prompts: DatasetRef) -> tuple[str, str]:
    """Return what identifies the teacher's responses, and a student with a tokenizer of its own."""
    teacher = TransformersTeacher(model="recipes/demo/teacher", dtype="float32")
    rows = DatasetRef(uri="r", fingerprint="r", num_rows=1, columns=())
    learnt = (StageName.TRAIN_STUDENT, rows, prompts, STUDENT, TrainingSpec())
    return (
        generation_stage(prompts, teacher, QA).fingerprint,
        training_stage(*learnt).fingerprint,
    )


def test_other_selection_or_test_rows_ask_nobody_and_train_nobody_again(bench: Bench) -> None:
    def prompts(train: str = "a", **changed: list[Row]) -> DatasetRef:
        selection, test = changed.get("selection", [CHOSEN]), changed.get("test")
        data = _with_selection(bench, [{"text": train}], selection, test=test)
        return bench.run(data).dataset("prompts")

    before = prompts()
    other_selection = prompts(selection=[{"text": "another", "answer": "no"}])
    other_test = prompts(test=[{"text": "another test", "answer": "no"}])
    assert len({ref.fingerprint for ref in (before, other_selection, other_test)}) == 3
    assert _fingerprints(other_selection) == _fingerprints(before) == _fingerprints(other_test)
    assert not set(_fingerprints(prompts(train="b"))) & set(_fingerprints(before))
    assert other_selection.identity("test") == before.identity("test")
    assert other_test.identity("selection") == before.identity("selection")
