from typing import Any

import numpy as np
import pandas as pd
import pytest

from distillery.evaluation.comparison import (
    compare_models,
    read_comparison,
)
from distillery.evaluation.cost import Prices
from distillery.evaluation.differences import gap_recovered
from distillery.evaluation.findings import findings
from distillery.evaluation.labels import student_confusions
from distillery.evaluation.markdown import markdown
from distillery.evaluation.statistics import Bootstrap, mean_sums
from distillery.evaluation.tables import fidelity_rows, quality_rows, size_rows
from distillery.evaluation.verdict import verdict
from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from distillery.task_types import task_type
from distillery.task_types.qa import UNANSWERABLE
from schemas.budget import MachinePrice
from schemas.comparison import MAJORITY, Comparison, ContestantFigures, Interval
from schemas.errors import StoreError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.task import TaskKind, TaskSpec
from schemas.teacher import DeclaredModel
from tests.fixtures_comparison import (
    EVALUATION,
    NO_PRICES,
    SCORES,
    STUDENT_REF,
    TASK,
    answer_frame,
    compared,
    comparison,
    measurement,
    measurements,
    prompt_frame,
    seal_prompts,
    seal_scores,
)
from tests.fixtures_lineage import lineage_of

NAN = float("nan")


def row(found: Comparison, name: str) -> ContestantFigures:
    figures = found.contestant(name)
    assert figures is not None
    return figures


def difference(found: Comparison, name: str, against: str) -> Interval:
    pair = found.between(name, against)
    assert pair is not None and pair.difference is not None
    return pair.difference


def test_figures_are_the_hand_computed_ones() -> None:
    found = comparison()
    teacher, student = row(found, "teacher"), row(found, "student")
    assert list(student.metrics) == ["accuracy", "macro F1"] and found.metric == "accuracy"
    assert teacher.metrics["accuracy"] and student.metrics["accuracy"]
    assert teacher.metrics["accuracy"].estimate == pytest.approx(0.95)
    assert student.metrics["accuracy"].estimate == pytest.approx(0.90)
    pair = found.between("student", "teacher")
    assert pair is not None and pair.ratio is not None
    assert pair.ratio.estimate == pytest.approx(18 / 19)
    assert pair.latency_reduction == pytest.approx(0.9)
    assert pair.memory_reduction == pytest.approx(1 - 1 / 16)
    assert pair.parameter_reduction == pytest.approx(0.9)
    assert difference(found, "student", "baseline").estimate == pytest.approx(0.3)
    assert difference(found, "student", "teacher").estimate == pytest.approx(-0.05)
    assert found.gap_recovered is not None
    assert found.gap_recovered.estimate == pytest.approx((0.90 - 0.60) / (0.95 - 0.60))


def test_everybody_is_compared_with_the_teacher_and_the_student_with_everybody() -> None:
    found = comparison({"anybody": SCORES["baseline"], **SCORES})
    pairs = [(pair.name, pair.against, pair.metric) for pair in found.differences]
    assert len(pairs) == len(set(pairs))
    expected = [
        ("anybody", "teacher"),
        ("baseline", "teacher"),
        ("student", "teacher"),
        ("student", "anybody"),
        ("student", "baseline"),
    ]
    assert [pair for pair in pairs if MAJORITY not in pair] == [
        (*pair, metric) for pair in expected for metric in ("accuracy", "macro F1")
    ]


def test_the_most_frequent_answer_is_a_rival_of_everybody() -> None:
    found = comparison()
    assert found.majority_answer == "yes"
    assert found.majority_score == pytest.approx(8 / 20)
    leads = {name: difference(found, name, MAJORITY).estimate for name in SCORES}
    assert leads == pytest.approx({"teacher": 0.55, "baseline": 0.20, "student": 0.50})


def test_the_most_frequent_answer_counts_on_the_same_rows_as_the_contestant() -> None:
    # The teacher has no score where the reference is the most frequent one.
    found = comparison({**SCORES, "teacher": [NAN] * 8 + [1.0] * 6 + [0.0] * 6})
    assert difference(found, "teacher", MAJORITY).estimate == pytest.approx(0.5)


def test_the_most_frequent_answer_is_found_by_the_equality_of_the_task() -> None:
    references = ["no"] * 3 + ["Yes.", "yes", " YES ", "'yes'"]
    found = comparison({name: values[:7] for name, values in SCORES.items()}, references=references)
    assert found.majority_answer == "yes"
    assert found.majority_score == pytest.approx(4 / 7)


def test_recall_is_shown_for_every_label() -> None:
    found = comparison({**SCORES, "teacher": [NAN] * 8 + SCORES["teacher"][8:]})
    assert [(label.label, label.num_rows) for label in found.labels] == [
        ("yes", 8),
        ("no", 6),
        ("maybe", 6),
    ]
    assert [label.recall["student"] for label in found.labels] == pytest.approx([1, 1, 4 / 6])
    assert found.labels[0].recall["teacher"] is None
    said = markdown(found)
    assert "## Recall by label" in said
    assert "| maybe | 6    | 83.3 %  | 0.0 %    | 66.7 %  |" in said
    assert "Lowest recall of the student: 66.7 % of the 6 rows with 'maybe'." in said


def test_macro_f1_is_shown_beside_accuracy_and_a_cut_response_has_no_answer() -> None:
    frame = answer_frame([1.0, 1.0, 0.0, NAN], ["a", "a", "b", "b"])
    frame["response"] = [" A.", "a", "b", None]
    frame["truncated"] = [False, False, True, False]
    found = compared(dict.fromkeys(SCORES, frame))
    macro_f1 = row(found, "student").metrics["macro F1"]
    assert macro_f1 and (macro_f1.estimate, macro_f1.num_rows) == (0.5, 3)  # a: 1, b: 0
    assert quality_rows(found)[0]["macro F1"] == "50.0 %"


def test_fidelity_compares_a_model_with_the_teacher_and_not_with_the_references() -> None:
    teacher = answer_frame([0.0, NAN, 1.0, 1.0], list("aabb"))
    student = answer_frame([1.0] * 4, list("aabb"))
    teacher["response"] = ["b", None, "b", "b"]  # one that is wrong, one that nobody obtained
    student["response"] = ["b", "a", "a", "B."]
    student["truncated"] = [False, False, False, True]
    student["accuracy"] = [0.0, 1.0, 0.0, 0.0]
    found = compared({"teacher": teacher, "student": student})
    fidelity = row(found, "student").fidelity["accuracy"]
    assert fidelity and fidelity.num_rows == 3
    assert fidelity.estimate == pytest.approx(1 / 3)
    assert list(row(found, "student").fidelity) == ["accuracy", "macro F1"]
    assert row(found, "teacher").fidelity == {}
    assert "Fidelity: the teacher's answers as references" in markdown(found)


@pytest.mark.parametrize(
    ("kind", "metric", "num_rows"),
    [(TaskKind.MATH, "accuracy", 1), (TaskKind.SUMMARIZATION, "ROUGE-L", 2)],
)
def test_a_teacher_s_cut_response_is_no_reference_where_it_could_not_be_right(
    kind: TaskKind, metric: str, num_rows: int
) -> None:
    task = TaskSpec(name="t", type=kind)
    frame = answer_frame([1.0, 1.0], ["It is 7.", "It is 8."]).rename(columns={"accuracy": metric})
    frame = frame.assign(**dict.fromkeys(task_type(task).metrics[1:], 1.0))
    cut = frame.assign(response=["First 3", "It is 8."], truncated=[True, False])
    found = compared({"teacher": cut, "student": frame}, task=task)
    fidelity = row(found, "student").fidelity[metric]
    assert fidelity and fidelity.num_rows == num_rows


def test_a_metric_that_some_rows_do_not_have_counts_where_they_do() -> None:
    task = TaskSpec(name="t", type=TaskKind.QA)
    frame = answer_frame([1.0] * 4, ["Rome", "Oslo", "Bonn", UNANSWERABLE])
    frame = frame.rename(columns={"accuracy": "F1"})
    frame["exact match"] = frame["F1"]
    frame["in context"] = [1.0, 1.0, 0.0, NAN]
    found = compared({"teacher": frame, "student": frame}, task=task)
    in_context = row(found, "student").metrics["in context"]
    assert in_context and (in_context.estimate, in_context.num_rows) == pytest.approx((2 / 3, 3))
    assert row(found, "student").num_unscored == 0
    # What looks at the prompt says nothing of the teacher's answers.
    assert list(fidelity_rows(found)[0]) == ["model", "F1", "exact match"]
    assert fidelity_rows(found)[0]["F1"].startswith("100.0 %")
    assert "| in context " in markdown(found)


def test_what_the_student_takes_for_what_is_counted_most_frequent_first() -> None:
    student = answer_frame([1.0, 0.0, 0.0, 0.0, 0.0], list("aabbb"))
    student["response"] = ["a", "b", "A", "a", "b"]
    student["truncated"] = [False, False, False, False, True]
    found = compared({"teacher": answer_frame([1.0] * 5, list("aabbb")), "student": student})
    confusions = [(c.label, c.taken_for, c.num_rows) for c in found.confusions]
    assert confusions == [("b", "a", 2), ("a", "b", 1), ("b", None, 1)]


def test_spellings_of_one_label_are_one_row_of_the_confusions() -> None:
    answers = pd.DataFrame(
        {
            "response": ["B", "b", "B", "a"],
            "references": ['["A"]', '["a"]', '["A"]', '["b"]'],
            "truncated": False,
            "accuracy": 0.0,
        }
    )
    found = student_confusions(answers, task_type(TASK))
    assert [(c.label, c.taken_for, c.num_rows) for c in found] == [("A", "b", 3), ("b", "A", 1)]


def test_where_each_reference_occurs_once_nobody_is_held_against_the_most_frequent_one() -> None:
    found = comparison(references=[f"reply {number}" for number in range(20)])
    assert (found.majority_answer, found.majority_score) == (None, None)
    assert found.between("student", MAJORITY) is None
    assert "most frequent answer" not in markdown(found)


def test_json_answers_have_no_labels() -> None:
    task = {"name": "t", "type": "classification"}
    task["answer_format"] = {"kind": "json", "json_schema": {}}  # type: ignore[assignment]
    references = ['{"a": 1}', '{"a":1.0}', '{"a": 2}'] + [f"[{number}]" for number in range(17)]
    found = comparison(references=references, task=TaskSpec.model_validate(task))
    assert found.labels == () and "Recall" not in markdown(found)
    assert found.majority_score == pytest.approx(2 / 20)


def test_gap_recovered_is_undefined_where_the_teacher_is_no_better() -> None:
    same, rows = np.array([1.0, 0.0]), Bootstrap(range(2), EVALUATION)

    def found(**scores: np.ndarray) -> Interval | None:
        return gap_recovered({name: mean_sums(array) for name, array in scores.items()}, rows)

    assert found(teacher=same, baseline=same, student=np.ones(2)) is None
    assert found(teacher=0 * same, baseline=same, student=same) is None
    assert found(teacher=same, baseline=np.array([NAN, NAN]), student=same) is None


def test_unscored_rows_are_counted_and_left_out_in_pairs() -> None:
    found = comparison({**SCORES, "teacher": [NAN, NAN, *SCORES["teacher"][2:]]})
    teacher, student = row(found, "teacher"), row(found, "student")
    pair = found.between("student", "teacher")
    assert teacher.metrics["accuracy"] and student.metrics["accuracy"] and pair and pair.ratio
    assert (teacher.num_unscored, student.num_unscored) == (2, 0)
    assert teacher.metrics["accuracy"].num_rows == 18
    assert student.metrics["accuracy"].num_rows == 20
    assert pair.ratio.num_rows == 18
    assert pair.ratio.estimate == pytest.approx(16 / 17)
    assert "2 of 20 rows are unscored for the teacher" in markdown(found)


def test_a_teacher_without_any_score_leaves_the_comparison_unscored() -> None:
    found = comparison({**SCORES, "teacher": [NAN] * 20})
    pair = found.between("student", "teacher")
    assert pair and pair.ratio is None and found.gap_recovered is None
    assert verdict(found) == "The student could not be scored against the teacher."
    assert findings(found)[0].met is None


def test_no_baseline_leaves_its_figures_empty() -> None:
    found = comparison({name: values for name, values in SCORES.items() if name != "baseline"})
    assert [row.name for row in found.contestants] == ["teacher", "student"]
    assert found.between("student", "baseline") is None and found.gap_recovered is None
    assert "no scored baseline" in markdown(found)


def test_hosted_teacher_has_its_declared_size_and_says_so() -> None:
    hosted = measurements(teacher=measurement(0, None, 0.5))
    declared = DeclaredModel(num_parameters=7_000_000_000, memory_gib=16.0, source="model card")
    found = comparison(measured=hosted, declared=declared)
    teacher = row(found, "teacher")
    assert (teacher.memory_bytes, teacher.declared_source) == (16 * 2**30, "model card")
    assert size_rows(found)[0]["memory"] == "16.0 GiB (declared)"
    assert "source: model card" in markdown(found)


def test_hosted_teacher_of_undeclared_size_is_unknown_not_zero() -> None:
    found = comparison(measured=measurements(teacher=measurement(0, None, 0.5)))
    pair = found.between("student", "teacher")
    assert pair is not None and pair.memory_reduction is None
    assert size_rows(found)[0]["memory"] == "–"  # noqa: RUF001
    memory = findings(found)[2]
    assert memory.met is None and "declare it under teacher.declared" in memory.text


def test_declared_size_never_replaces_a_measured_one() -> None:
    declared = DeclaredModel(num_parameters=1, memory_gib=1.0, source="hearsay")
    teacher = row(comparison(declared=declared), "teacher")
    assert teacher.declared_source is None and teacher.memory_bytes == 2**20


def test_comparison_survives_json() -> None:
    found = comparison()
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def compare(store: StoreSpec, **changed: Any) -> StageResult:
    arguments: dict[str, Any] = {
        "task": TASK,
        "evaluation": EVALUATION,
        "declared": None,
        "prices": NO_PRICES,
        "store": store,
        "execution": ExecutionSpec(),
    }
    prompts = seal_prompts(store, prompt_frame(20))
    return compare_models(
        seal_scores(store),
        None,
        lineage_of(STUDENT_REF, prompts=prompts),
        **{**arguments, **changed},
    )


def test_stage_writes_report_figures_and_cards_and_is_reused(store: StoreSpec) -> None:
    first, second = compare(store), compare(store)
    assert (first.reused, second.reused) == (False, True)
    with Store(store.root).local_copy(first.report("report")) as folder:
        names = sorted(file.name for file in folder.iterdir())
        page = (folder / "report.html").read_text()
    assert names == [
        "comparison.json",
        "comparison.md",
        "data-card.md",
        "model-card.md",
        "report.html",
    ]
    assert "\\u003cscript\\u003ealert(18)" in page and "<script>alert" not in page
    found = read_comparison(first.report("report"), Store(store.root))
    assert found.num_rows == 20
    assert found.fingerprints["compare_models"] == first.manifest.fingerprint
    assert first.manifest.counts == {"rows": 20, "differing": 1}


def test_another_training_set_makes_another_report(store: StoreSpec) -> None:
    first = compare(store)
    other = STUDENT_REF.model_copy(update={"fingerprint": "6" * 64})
    again = compare_models(
        seal_scores(store),
        None,
        lineage_of(other, prompts=seal_prompts(store, prompt_frame(20))),
        task=TASK,
        evaluation=EVALUATION,
        declared=None,
        prices=NO_PRICES,
        store=store,
        execution=ExecutionSpec(),
    )
    assert not again.reused and again.manifest.fingerprint != first.manifest.fingerprint


def test_models_that_agree_on_every_row_are_compared(store: StoreSpec) -> None:
    alike = seal_scores(store, dict.fromkeys(SCORES, SCORES["teacher"]))
    prompts = seal_prompts(store, prompt_frame(20))
    result = compare_models(
        alike,
        None,
        lineage_of(STUDENT_REF, prompts=prompts),
        task=TASK,
        evaluation=EVALUATION,
        declared=None,
        prices=NO_PRICES,
        store=store,
        execution=ExecutionSpec(),
    )
    assert result.manifest.counts == {"rows": 20, "differing": 0}


def test_declared_size_and_intervals_change_the_comparison_but_batches_do_not(
    store: StoreSpec,
) -> None:
    first = compare(store)
    declared = DeclaredModel(num_parameters=1, memory_gib=1.0, source="card")
    assert not compare(store, declared=declared).reused
    assert not compare(store, evaluation=EVALUATION.model_copy(update={"seed": 1})).reused
    assert compare(store, evaluation=EVALUATION.model_copy(update={"batch_size": 1})).reused
    forced = ExecutionSpec(force=(StageName.COMPARE_MODELS,))
    again = compare(store, execution=forced)
    assert not again.reused and again.manifest.fingerprint == first.manifest.fingerprint


def test_a_price_reruns_the_comparison(store: StoreSpec) -> None:
    prices = Prices(machine=MachinePrice(per_hour=1.0, source="a bill"))
    first = compare(store)
    assert not compare(store, prices=prices).reused
    assert compare(store, prices=prices).reused and compare(store).manifest == first.manifest
    dearer = Prices(machine=MachinePrice(per_hour=2.0, source="a bill"))
    assert not compare(store, prices=dearer).reused


def test_measurements_that_are_gone_are_an_error(store: StoreSpec) -> None:
    sealed = seal_scores(store)
    Store(store.root).delete(sealed.measurements.uri)
    with pytest.raises(StoreError, match="has no measurements"):
        compare_models(
            sealed,
            None,
            lineage_of(STUDENT_REF, prompts=seal_prompts(store, prompt_frame(20))),
            task=TASK,
            evaluation=EVALUATION,
            declared=None,
            prices=NO_PRICES,
            store=store,
            execution=ExecutionSpec(),
        )


def test_all_are_compared_on_the_rows_that_the_teacher_was_asked(store: StoreSpec) -> None:
    evaluated = seal_scores(store)
    opened = Store(store.root)
    rows = opened.dataset(evaluated.answers["teacher"]).to_table()
    with opened.row_writer("fewer", rows.schema) as writer:
        for batch in rows.slice(0, 15).to_batches():
            writer.write(batch)
    answers = evaluated.answers | {"teacher": writer.ref("f" * 64)}
    done = compare_models(
        evaluated.model_copy(update={"answers": answers}),
        None,
        lineage_of(STUDENT_REF, prompts=seal_prompts(store, prompt_frame(20))),
        task=TASK,
        evaluation=EVALUATION,
        declared=None,
        prices=NO_PRICES,
        store=store,
        execution=ExecutionSpec(),
    )
    found = read_comparison(done.report("report"), opened)
    assert (found.num_rows, found.num_left_out) == (15, 5)
    for name in ("teacher", "baseline", "student"):
        quality = row(found, name).metrics["accuracy"]
        assert quality is not None and quality.num_rows == 15
