"""Tasks: ask and time the contestants, compare them, promote the student."""

from dataclasses import replace
from typing import Any, Literal

from prefect import task as prefect_task

from distillery.storage.links import file_link
from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from schemas.comparison import Comparison
from schemas.contestants import TEACHER, ContestantSpec
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.gate import GateSpec
from schemas.judge import JudgeSpec
from schemas.panel import AnyTeacher
from schemas.promotion import Approval, Promotion, Verdict
from schemas.refs import DatasetRef, Evaluated, Lineage, ModelRef, ReportRef
from schemas.task import TaskSpec
from tasks.approval import ask_for_approval
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
    asked = (contestant, prompts, task, evaluation, store, execution)
    return _answered("test", "answer_test_prompts", *asked)


@stage_task
def answer_selection_prompts(
    contestant: ContestantSpec,
    prompts: DatasetRef,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[DatasetRef, StageResult]:
    """Return a student's answers to the selection rows, scored; the test rows are not touched."""
    asked = (contestant, prompts, task, evaluation, store, execution)
    return _answered("selection", "answer_selection", *asked)


def _answered(
    split: Literal["test", "selection"], key: str, contestant: ContestantSpec, *asked: Any
) -> tuple[DatasetRef, StageResult]:
    """Return a contestant's answers to the rows of ``split``; progress is the artifact ``key``."""
    from distillery.evaluation.answers import answer_questions

    title = f"{split.capitalize()} rows answered by the {contestant.name}"
    with progress_report(f"{key} {contestant.name}", title) as progress:
        result = answer_questions(contestant, *asked, split=split, on_progress=progress.update)
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

    title = "Pairs of responses judged"
    with progress_report(f"ask_judge {task.name}", title) as progress:
        result = judge_answers(
            answers, prompts, task, judge, store, execution, on_progress=progress.update
        )
    return result.dataset("verdicts"), result


@stage_task
def compare_models(
    evaluated: Evaluated,
    judged: DatasetRef | None,
    lineage: Lineage,
    teacher: AnyTeacher,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[tuple[Comparison, ReportRef], StageResult]:
    """Return the comparison and its report; the table is an artifact with a Markdown twin."""
    from distillery.evaluation.comparison import compare_models, read_comparison
    from distillery.evaluation.cost import Prices
    from distillery.evaluation.markdown import markdown
    from distillery.evaluation.tables import main_rows
    from distillery.teacher.summary import panel_shares

    answered = Store(store.root).manifest_of(evaluated.answers[TEACHER])
    shares = panel_shares(answered) if answered else None
    result = compare_models(
        evaluated,
        judged,
        lineage,
        task=task,
        evaluation=evaluation,
        declared=None if teacher.is_panel else teacher.declared,
        prices=Prices.of(teacher, evaluation.machine_price, shares),
        store=store,
        execution=execution,
    )
    report = result.report("report")
    comparison = read_comparison(report, Store(store.root))
    publish_table(
        f"comparison-{task.name}",
        main_rows(comparison),
        file_link("Report", report, "report.html", store) + "\n\n" + markdown(comparison),
        "All contestants on the same held-out rows",
    )
    return (comparison, report), result


@prefect_task(name="find_champion", task_run_name="find_champion", persist_result=False)
def find_champion(
    student: ModelRef, task: TaskSpec, gate: GateSpec, store: StoreSpec
) -> ModelRef | None:
    """Return the promoted student that ``student`` would replace, if its files are there."""
    from distillery.registry.promotion import find_rival

    rival = find_rival(student, task, gate, store)
    return rival if rival and Store(store.root).holds(rival) else None


@prefect_task(name="check_gate", task_run_name="check_gate", persist_result=False)
def check_gate(
    comparison: Comparison, lineage: Lineage, task: TaskSpec, gate: GateSpec, store: StoreSpec
) -> Verdict:
    """Return what the gate says of the student and its exported forms."""
    from distillery.registry.promotion import check_student

    return check_student(comparison, lineage, task, gate, store)


@prefect_task(name="publish_student", task_run_name="publish_student", persist_result=False)
def publish_student(
    comparison: Comparison,
    lineage: Lineage,
    task: TaskSpec,
    gate: GateSpec,
    store: StoreSpec,
    approval: Approval | None,
) -> Promotion:
    """Return the gate's verdict; a student that passes is published under the gate's alias."""
    from distillery.registry import promotion as library

    promotion = library.promote_student(comparison, lineage, task, gate, store, approval)
    lines = [_line(check.passed, check.sentence) for check in promotion.checks]
    if promotion.approval is not None:
        lines.append(_line(promotion.approval.approved, promotion.approval.sentence))
    for name, checks in promotion.forms.items():
        lines += ["", f"**{name}**", ""]
        lines += [_line(check.passed, check.sentence) for check in checks]
    verdict = "Promoted" if promotion.promoted else "Not promoted"
    publish_markdown(
        f"promotion-{task.name}",
        f"**{verdict}** as `{gate.alias}` of `{task.name}`\n\n" + "\n".join(lines),
        f"{verdict}: every condition of the gate",
    )
    return promotion


def _line(passed: bool, sentence: str) -> str:
    return f"- {'✓' if passed else '✗'} {sentence}"


def promote_student(
    comparison: Comparison, lineage: Lineage, task: TaskSpec, gate: GateSpec, store: StoreSpec
) -> Promotion:
    """Return the gate's verdict; a student that passes, and a person approves, is published.

    A person is asked once every condition holds, if the gate says so. The conditions are checked
    again afterwards: another student may have been promoted while the person was asked.
    """
    verdict = check_gate(comparison, lineage, task, gate, store)
    approval = verdict.approval
    if verdict.passed and approval is None and gate.approval_timeout_s is not None:
        alias = f"{task.name}/{gate.alias}"
        approval = ask_for_approval(verdict, alias, gate.approval_timeout_s)
    return publish_student(comparison, lineage, task, gate, store, approval)
