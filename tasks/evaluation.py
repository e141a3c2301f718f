"""Tasks: evaluate the models, compare them, promote the student."""

from prefect import task as prefect_task

from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from schemas.comparison import Comparison
from schemas.evaluation import EvaluationSpec, GateSpec
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.promotion import Promotion
from schemas.refs import DatasetRef, FilteredSet, ModelRef, ReportRef
from schemas.student import StudentSpec
from schemas.task import TaskSpec
from schemas.teacher import OpenAITeacher, TeacherSpec
from tasks.artifacts import progress_report, publish_markdown, publish_table
from tasks.stage import stage_task


@stage_task
def measure_models(
    prompts: DatasetRef,
    teacher: TeacherSpec,
    student: StudentSpec,
    baseline: ModelRef | None,
    student_model: ModelRef,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[DatasetRef, StageResult]:
    """Return every model's scores on the test rows; speed and size are in the manifest."""
    from distillery.evaluation import answers as library

    with progress_report("evaluate_models", "Test rows answered") as progress:
        result = library.evaluate_models(
            prompts,
            teacher=teacher,
            student=student,
            baseline=baseline,
            student_model=student_model,
            task=task,
            evaluation=evaluation,
            store=store,
            execution=execution,
            on_progress=progress.update,
        )
    return result.dataset("scores"), result


@stage_task
def compare_models(
    scores: DatasetRef,
    prompts: DatasetRef,
    filtered: FilteredSet,
    teacher: TeacherSpec,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[tuple[Comparison, ReportRef], StageResult]:
    """Return the comparison and its report; the table is an artifact with a Markdown twin."""
    from distillery.evaluation.comparison import compare_models, read_comparison
    from distillery.evaluation.tables import markdown, table_rows

    result = compare_models(
        scores,
        prompts,
        task=task,
        evaluation=evaluation,
        declared=teacher.declared if isinstance(teacher, OpenAITeacher) else None,
        store=store,
        execution=execution,
        funnel={"responses": filtered.num_responses}
        | filtered.drop_reasons
        | {"kept": filtered.kept.num_rows},
    )
    report = result.report("report")
    comparison = read_comparison(report, Store(store.root))
    publish_table(
        f"comparison-{task.name}",
        table_rows(comparison),
        markdown(comparison) + f"\n\n[Report]({Store(store.root).address(report, 'report.html')})",
        "Teacher, baseline and student on the same held-out rows",
    )
    return (comparison, report), result


@prefect_task(name="promote_student", task_run_name="promote_student", persist_result=False)
def promote_student(
    comparison: Comparison, student: ModelRef, task: TaskSpec, gate: GateSpec, store: StoreSpec
) -> Promotion:
    """Return the gate's verdict; a student that passes is published under the gate's alias."""
    from distillery.registry import promotion as gates

    promotion = gates.promote_student(comparison, student, task, gate, Store(store.root))
    lines = [f"- {'✓' if check.passed else '✗'} {check.sentence}" for check in promotion.checks]
    verdict = "Promoted" if promotion.promoted else "Not promoted"
    publish_markdown(
        f"promotion-{task.name}",
        f"**{verdict}** as `{gate.alias}` of `{task.name}`\n\n" + "\n".join(lines),
        f"{verdict}: every condition of the gate",
    )
    return promotion
