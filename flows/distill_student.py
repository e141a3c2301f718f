"""The spine: rows of prompts in, a small student model out, measured against its teacher."""

from prefect import flow

from distillery.evaluation.contestants import line_up
from distillery.evaluation.judge import judging_stage
from distillery.evaluation.performance import evaluated, performance_stage
from distillery.export.stage import export_stage
from distillery.objectives.soft.stage import scoring_stage
from distillery.preflight.recipe import check_recipe
from distillery.teacher.generation import generation_stage
from distillery.training import training_stage
from flows.evaluate_models import evaluate_models
from flows.export_student import export_student
from flows.generate_responses import generate_responses
from flows.judge_answers import judge_answers
from flows.score_soft_targets import score_soft_targets
from flows.train_student import train_student
from schemas.data import DataSpec
from schemas.distillation import Distillation
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.export import ExportSpec
from schemas.filters import FilterSpec
from schemas.gate import GateSpec
from schemas.refs import Lineage
from schemas.student import StudentSpec
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec
from tasks.dataset import filter_responses, release_dataset
from tasks.dispatch import dispatch
from tasks.drift import watch_teacher
from tasks.evaluation import compare_models, find_champion, promote_student
from tasks.prompts import check_prompts, load_prompts, validate_prompts
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
    export: ExportSpec = ExportSpec(),
    evaluation: EvaluationSpec = EvaluationSpec(),
    gate: GateSpec = GateSpec(),
    store: StoreSpec = StoreSpec(),
    execution: ExecutionSpec = ExecutionSpec(),
) -> Distillation:
    """Distil ``teacher`` into ``student`` and promote the student if it passes the gate."""
    check_recipe(task, data, teacher, student, training, store, execution, evaluation, export, gate)
    chosen = choose_objective(teacher, student, training)
    generate = dispatch(generate_responses, generation_stage, store, execution)
    score = dispatch(score_soft_targets, scoring_stage, store, execution)
    train = dispatch(train_student, training_stage, store, execution)
    write = dispatch(export_student, export_stage, store, execution)
    evaluate = dispatch(evaluate_models, performance_stage, store, execution)
    judge = dispatch(judge_answers, judging_stage, store, execution)

    loaded = load_prompts(task, data, store, execution)
    rows = validate_prompts(loaded, task, data, store, execution)
    check_prompts(
        rows.prompts, task, data, teacher, student, chosen.training, store, execution, evaluation
    )
    drift = watch_teacher(rows.prompts, teacher, task, evaluation, store)
    responses = generate(rows.prompts, teacher, task).dataset("responses")
    filtered = filter_responses(responses, task, filters, store, execution)
    training_set = release_dataset(filtered, task, filters, store, execution)

    soft_targets = None
    if chosen.needs_scores:
        scored = score(training_set, rows.prompts, teacher, task, chosen.training)
        soft_targets = scored.dataset("soft_targets")
    student_model = train(
        name=TRAIN_STUDENT,
        rows=training_set,
        prompts=rows.prompts,
        student=student,
        training=chosen.training,
        soft_targets=soft_targets,
        teacher=teacher,
        task=task,
        because=chosen.because,
    ).model("model")
    # A pretrained student is its own baseline, as it comes; a new one first learns the gold rows.
    baseline = None
    if student.kind == "from_scratch":
        hard = training.on_gold_rows()
        baseline = train(TRAIN_BASELINE, rows.gold, rows.prompts, student, hard).model("model")

    exported = {
        format.name: write(student_model, training_set, format).model("model")
        for format in export.formats
    }
    lineage = Lineage(
        prompts=rows,
        responses=responses,
        filtered=filtered,
        training_set=training_set,
        soft_targets=soft_targets,
        baseline=baseline,
        student=student_model,
        exported=exported,
    )
    champion = find_champion(student_model, task, gate, store)
    contestants = line_up(teacher, student, lineage, champion, export, evaluation)
    measured = evaluated(evaluate(rows.prompts, contestants, task, evaluation))
    judged = None
    if evaluation.judge is not None:
        verdicts = judge(measured.answers, rows.prompts, task, evaluation.judge)
        judged = verdicts.dataset("verdicts")
    comparison, report = compare_models(
        measured, judged, lineage, teacher, task, evaluation, store, execution
    )
    promotion = promote_student(comparison, lineage, task, gate, store)
    return Distillation(
        student=student_model,
        comparison=comparison,
        report=report,
        promotion=promotion,
        drift=drift,
    )
