from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from distillery.evaluation.comparison import compare_models, gap_recovered, read_comparison
from distillery.evaluation.tables import findings, markdown, table_rows, terminal_table, verdict
from distillery.storage.store import Store
from schemas.comparison import Comparison
from schemas.errors import StageError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.teacher import DeclaredModel
from tests.fixtures_comparison import (
    EVALUATION,
    SCORES,
    TASK,
    comparison,
    measurement,
    measurements,
    prompt_frame,
    seal_prompts,
    seal_scores,
)

NAN = float("nan")


def test_figures_are_the_hand_computed_ones() -> None:
    found = comparison()
    teacher, student = found.model("teacher"), found.model("student")
    assert teacher and student and teacher.accuracy and student.accuracy and student.retention
    assert found.gain and found.student_minus_teacher
    assert teacher.accuracy.estimate == pytest.approx(0.95)
    assert student.accuracy.estimate == pytest.approx(0.90)
    assert student.retention.estimate == pytest.approx(18 / 19)
    assert student.latency_reduction == pytest.approx(0.9)
    assert student.memory_reduction == pytest.approx(1 - 1 / 16)
    assert student.parameter_reduction == pytest.approx(0.9)
    assert found.gain.estimate == pytest.approx(0.3)
    assert found.student_minus_teacher.estimate == pytest.approx(-0.05)
    assert found.gap_recovered == pytest.approx((0.90 - 0.60) / (0.95 - 0.60))


def test_gap_recovered_is_undefined_where_the_teacher_is_no_better() -> None:
    same = np.array([1.0, 0.0])
    assert gap_recovered({"teacher": same, "baseline": same, "student": np.ones(2)}) is None
    assert gap_recovered({"teacher": 0 * same, "baseline": same, "student": same}) is None


def test_unscored_rows_are_counted_and_left_out_in_pairs() -> None:
    found = comparison({**SCORES, "teacher": [NAN, NAN, *SCORES["teacher"][2:]]})
    teacher, student = found.model("teacher"), found.model("student")
    assert teacher and student and teacher.accuracy and student.accuracy and student.retention
    assert (teacher.num_unscored, student.num_unscored) == (2, 0)
    assert (teacher.accuracy.num_rows, student.accuracy.num_rows) == (18, 20)
    assert student.retention.num_rows == 18
    assert student.retention.estimate == pytest.approx(16 / 17)
    assert "2 of 20 rows are unscored for the teacher" in markdown(found)


def test_a_teacher_without_any_score_leaves_the_comparison_unscored() -> None:
    found = comparison({**SCORES, "teacher": [NAN] * 20})
    student = found.model("student")
    assert student and student.retention is None and found.gap_recovered is None
    assert verdict(found) == "The student could not be scored against the teacher."
    assert findings(found)[0].met is None


def test_no_baseline_leaves_its_figures_empty() -> None:
    found = comparison({role: values for role, values in SCORES.items() if role != "baseline"})
    assert [row.role for row in found.models] == ["teacher", "student"]
    assert found.gain is None and found.gap_recovered is None
    assert "no scored baseline" in markdown(found)


def test_hosted_teacher_has_its_declared_size_and_says_so() -> None:
    hosted = measurements(teacher=measurement(None, None, 0.5))
    declared = DeclaredModel(num_parameters=7_000_000_000, memory_gib=16.0, source="model card")
    found = comparison(measured=hosted, declared=declared)
    teacher = found.model("teacher")
    assert teacher is not None
    assert (teacher.memory_bytes, teacher.declared) == (16 * 2**30, True)
    assert table_rows(found)[0]["memory usage"] == "16.0 GiB (declared)"
    assert "source: model card" in markdown(found)


def test_hosted_teacher_of_undeclared_size_is_unknown_not_zero() -> None:
    found = comparison(measured=measurements(teacher=measurement(None, None, 0.5)))
    student = found.model("student")
    assert student is not None and student.memory_reduction is None
    assert table_rows(found)[0]["memory usage"] == "–"  # noqa: RUF001
    memory = findings(found)[2]
    assert memory.met is None and "declare it under teacher.declared" in memory.text


def test_declared_size_never_replaces_a_measured_one() -> None:
    declared = DeclaredModel(num_parameters=1, memory_gib=1.0, source="hearsay")
    teacher = comparison(declared=declared).model("teacher")
    assert teacher is not None and not teacher.declared and teacher.memory_bytes == 2**20


def test_table_has_the_models_as_rows_and_the_figures_with_units() -> None:
    rows = table_rows(comparison())
    assert [row["model"] for row in rows] == ["teacher", "baseline", "student"]
    student = rows[2]
    assert student["parameters"] == "100 k"
    assert student["memory usage"] == "64.0 KiB"
    assert student["inference time (p50)"] == "10.0 ms"
    assert student["inference time (p95)"] == "20.0 ms"
    assert student["accuracy"].startswith("90.0 % [")
    assert student["throughput (queries/h)"] == "360,000"
    assert student["tokens/s"] == "1,000"
    assert student["inference time vs teacher"] == "-90.0 %"
    assert all(type(cell) is str for row in rows for cell in row.values())


def test_markdown_table_is_aligned() -> None:
    lines = [line for line in markdown(comparison()).splitlines() if line.startswith("|")]
    assert len(lines) == 10
    for table in (lines[:5], lines[5:]):
        assert len({len(line) for line in table}) == 1


def test_sentences_say_which_target_is_missed_and_by_how_much() -> None:
    retention, latency, memory, gain, _ = findings(comparison())
    assert retention.met and "2.7 points above" in retention.text
    assert latency.met and "5.0 points above" in latency.text
    assert memory.met is False and "1.2 points short of" in memory.text
    assert "the interval lies above 0" in gain.text


def test_terminal_table_fits_100_columns_without_wrapping() -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(terminal_table(comparison()))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.strip().startswith(("teacher", "baseline", "student")) for line in lines) == 3
    assert len([line for line in lines if line.strip()]) == 6


def test_comparison_survives_json() -> None:
    found = comparison()
    assert Comparison.model_validate_json(found.model_dump_json()) == found


@pytest.fixture
def store(tmp_path: Path) -> StoreSpec:
    return StoreSpec(root=str(tmp_path / "store"))


def _compare(store: StoreSpec, **changed: Any) -> Any:
    arguments: dict[str, Any] = {
        "task": TASK,
        "evaluation": EVALUATION,
        "declared": None,
        "store": store,
        "execution": ExecutionSpec(),
    }
    prompts = seal_prompts(store, prompt_frame(20))
    scores = seal_scores(store).dataset("scores")
    return compare_models(scores, prompts, **{**arguments, **changed})


def test_stage_writes_three_files_and_is_reused(store: StoreSpec) -> None:
    first, second = _compare(store), _compare(store)
    assert (first.reused, second.reused) == (False, True)
    with Store(store.root).local_copy(first.report("report")) as folder:
        names = sorted(file.name for file in folder.iterdir())
        page = (folder / "report.html").read_text()
    assert names == ["comparison.json", "comparison.md", "report.html"]
    assert "&lt;script&gt;alert(18)" in page and "<script>alert" not in page
    found = read_comparison(first.report("report"), Store(store.root))
    assert found.num_rows == 20
    assert found.fingerprints["compare_models"] == first.manifest.fingerprint
    assert first.manifest.counts == {"rows": 20, "disagreements": 1}


def test_declared_size_and_intervals_change_the_comparison_but_batches_do_not(
    store: StoreSpec,
) -> None:
    first = _compare(store)
    declared = DeclaredModel(num_parameters=1, memory_gib=1.0, source="card")
    assert not _compare(store, declared=declared).reused
    assert not _compare(store, evaluation=EVALUATION.model_copy(update={"seed": 1})).reused
    assert _compare(store, evaluation=EVALUATION.model_copy(update={"batch_size": 1})).reused
    forced = ExecutionSpec(force=(StageName.COMPARE_MODELS,))
    again = _compare(store, execution=forced)
    assert not again.reused and again.manifest.fingerprint == first.manifest.fingerprint


def test_scores_of_an_unsealed_evaluation_are_refused(store: StoreSpec) -> None:
    scores = seal_scores(store).dataset("scores")
    stray = scores.model_copy(update={"fingerprint": "0" * 64})
    prompts = seal_prompts(store, prompt_frame(20))
    with pytest.raises(StageError, match="has no manifest in store"):
        compare_models(
            stray,
            prompts,
            task=TASK,
            evaluation=EVALUATION,
            declared=None,
            store=store,
            execution=ExecutionSpec(),
        )
