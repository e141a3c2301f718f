"""The spine: rows of prompts in, a small student model out, measured against its teacher."""

from prefect import flow

from distillery.evaluation.contestants import line_up
from distillery.evaluation.judge import judging_stage
from distillery.evaluation.performance import evaluated, performance_stage
from distillery.export.stage import export_stage
from flows.evaluate_models import evaluate_models
from flows.export_student import export_student
from flows.judge_answers import judge_answers
from flows.teach_student import teach_student
from schemas.data import DataSpec
from schemas.distillation import Distillation
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.export import ExportSpec
from schemas.filters import FilterSpec
from schemas.gate import GateSpec
from schemas.panel import AnyTeacher
from schemas.recipe import Recipe
from schemas.student import StudentSpec
from schemas.task import TaskSpec
from schemas.training import TrainingSpec
from tasks.dispatch import dispatch
from tasks.drift import watch_teacher
from tasks.evaluation import compare_models, find_champion, promote_student
from tasks.prompts import finish_logs


@flow(name="distill-student", flow_run_name="{task.name}")
def distill_student(
    task: TaskSpec,
    data: DataSpec,
    teacher: AnyTeacher,
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
    recipe = Recipe(
        task=task,
        data=data,
        teacher=teacher,
        student=student,
        filters=filters,
        training=training,
        export=export,
        evaluation=evaluation,
        gate=gate,
        store=store,
        execution=execution,
    )
    write = dispatch(export_student, export_stage, store, execution)
    evaluate = dispatch(evaluate_models, performance_stage, store, execution)
    judge = dispatch(judge_answers, judging_stage, store, execution)

    taught = teach_student(recipe)
    prompts, student_model = taught.prompts.prompts, taught.student
    drift = watch_teacher(prompts, teacher, task, evaluation, store)
    exported = {
        format.name: write(student_model, taught.training_set, format).model("model")
        for format in export.formats
    }
    lineage = taught.model_copy(update={"exported": exported})
    champion = find_champion(student_model, task, gate, store)
    contestants = line_up(teacher, student, lineage, champion, export, evaluation)
    measured = evaluated(evaluate(prompts, contestants, task, evaluation))
    judged = None
    if evaluation.judge is not None:
        verdicts = judge(measured.answers, prompts, task, evaluation.judge)
        judged = verdicts.dataset("verdicts")
    comparison, report = compare_models(
        measured, judged, lineage, teacher, task, evaluation, store, execution
    )
    promotion = promote_student(comparison, lineage, task, gate, store)
    finish_logs(taught.prompts, store)
    return Distillation(
        student=student_model,
        comparison=comparison,
        report=report,
        promotion=promotion,
        drift=drift,
    )
