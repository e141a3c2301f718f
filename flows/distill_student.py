"""The spine: rows of prompts in, a small student model out, proven against its teacher."""

from functools import partial

from prefect import flow

from distillery.evaluation.answers import evaluation_stage
from distillery.objectives.soft.stage import scoring_stage
from distillery.preflight.recipe import check_recipe
from distillery.teacher.generation import generation_stage
from distillery.training import training_stage
from flows.evaluate_models import evaluate_models
from flows.generate_responses import generate_responses
from flows.score_soft_targets import score_soft_targets
from flows.train_student import train_student
from schemas.data import DataSpec
from schemas.distillation import Distillation
from schemas.evaluation import EvaluationSpec, GateSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.filters import FilterSpec
from schemas.student import StudentSpec
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec
from tasks.dataset import filter_responses, release_dataset
from tasks.dispatch import dispatch
from tasks.evaluation import compare_models, promote_student
from tasks.prompts import load_prompts, validate_prompts
from tasks.training import choose_objective

TRAIN_BASELINE, TRAIN_STUDENT = StageName.TRAIN_BASELINE, StageName.TRAIN_STUDENT


@flow(name="distill-student", flow_run_name="{task.name}")
def distill_student(
    task: TaskSpec,
    data: DataSpec,
    teacher: TeacherSpec,
    student: StudentSpec,
    filters: FilterSpec = FilterSpec(),
    training: TrainingSpec = TrainingSpec(),
    evaluation: EvaluationSpec = EvaluationSpec(),
    gate: GateSpec = GateSpec(),
    store: StoreSpec = StoreSpec(),
    execution: ExecutionSpec = ExecutionSpec(),
) -> Distillation:
    """Distil ``teacher`` into ``student`` and promote the student if it passes the gate."""
    check_recipe(task, data, teacher, student, store)
    chosen, because = choose_objective(teacher, student, training)
    here = {"store": store, "execution": execution}

    loaded = load_prompts(data, **here)
    rows = validate_prompts(loaded, task, data, **here)
    prompts = rows.prompts

    asked = {"prompts": prompts, "teacher": teacher, "task": task}
    responses = dispatch(generate_responses, generation_stage, **here, **asked).dataset("responses")
    filtered = filter_responses(responses, task, filters, **here)
    training_set = release_dataset(filtered, task, filters, **here)

    learnt = {"rows": training_set, "training": chosen, "teacher": teacher}
    if chosen.needs_soft_targets:
        scored = dispatch(score_soft_targets, scoring_stage, **here, **learnt)
        learnt["soft_targets"] = scored.dataset("soft_targets")
    taught = {"prompts": prompts, "student": student}
    train = partial(dispatch, train_student, training_stage, **here, **taught)
    student_model = train(name=TRAIN_STUDENT, **learnt, because=because).model("model")
    # A pretrained student is its own baseline, as it comes; a new one first learns the gold rows.
    is_new = student.kind == "from_scratch"
    hard = {"rows": rows.gold, "training": training.with_hard_targets()}
    baseline = train(name=TRAIN_BASELINE, **hard).model("model") if is_new else None

    compared = asked | {"student": student, "student_model": student_model, "baseline": baseline}
    compared |= {"evaluation": evaluation}
    scores = dispatch(evaluate_models, evaluation_stage, **here, **compared).dataset("scores")
    comparison, report = compare_models(
        scores, prompts, filtered, teacher, task, evaluation, **here
    )
    promotion = promote_student(comparison, student_model, task, gate, store)
    return Distillation(
        student=student_model, comparison=comparison, report=report, promotion=promotion
    )


if __name__ == "__main__":
    from flows.cli import run_distillation

    run_distillation()
