"""Tasks: ask and time the contestants, compare them, promote the student."""

from dataclasses import replace

from prefect import task as prefect_task

from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from schemas.comparison import Comparison
from schemas.contestants import ContestantSpec
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.gate import GateSpec
from schemas.judge import JudgeSpec
from schemas.promotion import Promotion
from schemas.refs import DatasetRef, Evaluated, Lineage, ModelRef, ReportRef
from schemas.task import TaskSpec
from schemas.teacher import OpenAITeacher, TeacherSpec
from tasks.artifacts import progress_report, publish_markdown, publish_table
from tasks.stage import stage_task


@stage_task
def answer_test_prompts(
    contestant: ContestantSpec,
    prompts: DatasetRef,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[DatasetRef, StageResult]:
    """Return a contestant's answers to the test rows, scored."""
    from distillery.evaluation import answers as library

    title = f"Test rows answered by the {contestant.name}"
    with progress_report(f"answer_test_prompts {contestant.name}", title) as progress:
        result = library.answer_test_prompts(
            contestant,
            prompts,
            task,
            evaluation,
            store,
            execution,
            on_progress=progress.update,
        )
    return result.dataset("answers"), replace(result, subject=contestant.name)


@stage_task
def run_lm_eval(
    contestant: ContestantSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[ReportRef, StageResult]:
    """Return what lm-evaluation-harness says of a contestant."""
    from distillery.evaluation import harness

    result = harness.run_lm_eval(contestant, evaluation, store, execution)
    return result.report("harness"), replace(result, subject=contestant.name)


@stage_task
def measure_performance(
    answers: dict[str, DatasetRef],
    harness: dict[str, ReportRef],
    prompts: DatasetRef,
    contestants: tuple[ContestantSpec, ...],
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[Evaluated, StageResult]:
    """Return everybody's answers together with their speed and size, measured in turn."""
    from distillery.evaluation import performance as library

    result = library.measure_performance(
        answers, harness, prompts, contestants, task, evaluation, store, execution
    )
    return library.evaluated(result), result


@stage_task
def ask_judge(
    answers: dict[str, DatasetRef],
    prompts: DatasetRef,
    task: TaskSpec,
    judge: JudgeSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[DatasetRef, StageResult]:
    """Return the verdicts on the student's responses beside those of others."""
    from distillery.evaluation.judge import judge_answers

    result = judge_answers(answers, prompts, task, judge, store, execution)
    return result.dataset("verdicts"), result


@stage_task
def compare_models(
    evaluated: Evaluated,
    judged: DatasetRef | None,
    lineage: Lineage,
    teacher: TeacherSpec,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[tuple[Comparison, ReportRef], StageResult]:
    """Return the comparison and its report; the table is an artifact with a Markdown twin."""
    from distillery.evaluation.comparison import compare_models, read_comparison
    from distillery.evaluation.markdown import markdown
    from distillery.evaluation.tables import main_rows

    result = compare_models(
        evaluated,
        judged,
        lineage,
        task=task,
        evaluation=evaluation,
        declared=teacher.declared if isinstance(teacher, OpenAITeacher) else None,
        store=store,
        execution=execution,
    )
    report = result.report("report")
    comparison = read_comparison(report, Store(store.root))
    publish_table(
        f"comparison-{task.name}",
        main_rows(comparison),
        markdown(comparison) + f"\n\n[Report]({Store(store.root).address(report, 'report.html')})",
        "All contestants on the same held-out rows",
    )
    return (comparison, report), result


@prefect_task(name="find_champion", task_run_name="find_champion", persist_result=False)
def find_champion(
    student: ModelRef, task: TaskSpec, gate: GateSpec, store: StoreSpec
) -> ModelRef | None:
    """Return the promoted student that ``student`` would replace, if its files are there."""
    from distillery.registry.aliases import find_rival

    rival = find_rival(student, task, gate.alias, Store(store.root))
    return rival if rival and Store(store.root).holds(rival) else None


@prefect_task(name="promote_student", task_run_name="promote_student", persist_result=False)
def promote_student(
    comparison: Comparison, lineage: Lineage, task: TaskSpec, gate: GateSpec, store: StoreSpec
) -> Promotion:
    """Return the gate's verdict; a student that passes is published under the gate's alias."""
    from distillery.registry import aliases

    promotion = aliases.promote_student(comparison, lineage, task, gate, Store(store.root))
    lines = [f"- {'✓' if check.passed else '✗'} {check.sentence}" for check in promotion.checks]
    verdict = "Promoted" if promotion.promoted else "Not promoted"
    publish_markdown(
        f"promotion-{task.name}",
        f"**{verdict}** as `{gate.alias}` of `{task.name}`\n\n" + "\n".join(lines),
        f"{verdict}: every condition of the gate",
    )
    return promotion
