"""lm-evaluation-harness on contestants, with a task file of our own."""

import json
from pathlib import Path

import pytest

from distillery.evaluation.harness import check_harness, run_lm_eval, takes_harness
from distillery.evaluation.performance import read_figures
from distillery.models.local import LocalModel
from distillery.storage.store import Store
from schemas.comparison import HarnessFigures
from schemas.contestants import PretrainedContestant, TeacherContestant
from schemas.errors import RecipeError
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.student import PretrainedStudent
from schemas.teacher import OpenAITeacher

TASK = """\
task: sky
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
CHOICES = [" blue", " green and grey"]


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    rows = [
        {"question": f"The sky over {place} is", "choices": CHOICES, "gold": number % 2}
        for number, place in enumerate(["Rome", "Oslo", "Lima", "Cairo", "Delhi", "Quito"])
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "sky.yaml"
    file.write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    return file


def expected_accuracy(model: LocalModel, rows: Path) -> float:
    """Return how often the right choice is the likelier one, computed without the harness."""
    import torch

    def likelihood(question: str, choice: str) -> float:
        ids = model.tokenizer(question + choice, return_tensors="pt").input_ids
        start = len(model.tokenizer(question).input_ids)
        with torch.no_grad():
            logits = model.model(ids).logits.log_softmax(-1)[0]
        chosen: list[float] = [
            float(logits[at - 1, ids[0, at]]) for at in range(start, ids.shape[1])
        ]
        return sum(chosen)

    right: list[bool] = []
    for row in map(json.loads, rows.read_text().splitlines()):
        said = [likelihood(row["question"], choice) for choice in CHOICES]
        right.append(said.index(max(said)) == row["gold"])
    return sum(right) / len(right)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_contestant_is_run_once_on_a_task_of_ones_own(
    store: StoreSpec, teacher_folder: Path, task_file: Path
) -> None:
    student = PretrainedStudent(model=str(teacher_folder), dtype="float32")
    spec = PretrainedContestant(name="baseline", student=student, device="cpu")
    evaluation = EvaluationSpec(lm_eval=(str(task_file),), batch_size=2)
    result = run_lm_eval(spec, evaluation, store, ExecutionSpec())
    harness = result.report("harness")
    [found] = read_figures(harness, "harness.json", HarnessFigures, Store(store.root)).figures
    model = LocalModel.of(student, device="cpu")
    assert (found.task, found.metric) == ("sky", "acc")
    assert found.value == pytest.approx(expected_accuracy(model, task_file.parent / "rows.jsonl"))
    assert found.stderr is not None
    assert run_lm_eval(spec, evaluation, store, ExecutionSpec()).reused
    task_file.write_text(task_file.read_text() + "num_fewshot: 1\n")
    assert not run_lm_eval(spec, evaluation, store, ExecutionSpec()).reused


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_unknown_task_is_told_before_anything_is_run() -> None:
    with pytest.raises(RecipeError, match="'hellaswig', which is not a task"):
        check_harness(EvaluationSpec(lm_eval=("hellaswig",)))
    check_harness(EvaluationSpec(lm_eval=("hellaswag",)))


def test_a_task_file_that_is_not_there_is_told() -> None:
    with pytest.raises(RecipeError, match=r"names the task file 'none\.yaml'"):
        check_harness(EvaluationSpec(lm_eval=("none.yaml",)))


def test_a_harness_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RecipeError, match=r"pip install 'distillery\[lm-eval\]'"):
        check_harness(EvaluationSpec(lm_eval=("hellaswag",)))


def test_a_served_teacher_is_left_out() -> None:
    teacher = OpenAITeacher(model="big", base_url="http://127.0.0.1:1/v1")
    served = TeacherContestant(name="teacher", teacher=teacher)
    assert not takes_harness(served, EvaluationSpec(lm_eval=("hellaswag",)))
