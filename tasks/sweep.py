"""Tasks: check a sweep, weigh a trial's student, report on all of them."""

from typing import NamedTuple

from prefect import task as prefect_task
from pydantic import JsonValue

from distillery.storage.links import file_link
from distillery.storage.stage import StageResult
from distillery.sweep.study import Study
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.recipe import Recipe
from schemas.refs import DatasetRef, Lineage, ModelRef, ReportRef
from schemas.sweep import SweepRecipe, Trial
from tasks.artifacts import publish_table
from tasks.stage import stage_task


class Outcome(NamedTuple):
    """How a sweep ended."""

    trials: tuple[Trial, ...]
    winner: Trial
    recipe: Recipe
    report: ReportRef


@prefect_task(name="check_sweep", task_run_name="check_sweep", persist_result=False)
def check_sweep(recipe: SweepRecipe) -> None:
    """Return when every trial could work; nothing is spent."""
    from distillery.preflight import sweep

    sweep.check_sweep(recipe)


@stage_task
def weigh_student(
    lineage: Lineage,
    answers: DatasetRef,
    recipe: SweepRecipe,
    study: str,
    values: dict[str, JsonValue],
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[ModelRef, StageResult]:
    """Return a trial's student; what it is worth is in the store."""
    from distillery.sweep import trial

    result = trial.weigh_student(lineage, answers, recipe, study, values, store, execution)
    return result.model("student"), result


@stage_task
def report_sweep(
    recipe: SweepRecipe,
    study: Study,
    asked: list[DatasetRef],
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[Outcome, StageResult]:
    """Return how a sweep ended, and its report; the table is an artifact with a Markdown twin."""
    from distillery.storage.store import Store
    from distillery.sweep import report as library
    from distillery.sweep.space import applied
    from distillery.sweep.winner import winner

    trials = study.trials()
    best = winner(trials, recipe.sweep)
    assert best is not None  # a sweep whose trials all fail has stopped
    result = library.report_sweep(recipe, study, best, asked, store, execution)
    report = result.report("report")
    text = Store(store.root).read_bytes(f"{report.uri}/report.md") or b""
    publish_table(
        f"sweep-{recipe.task.name}",
        library.trial_rows(recipe, trials, best),
        file_link("Report", report, "report.html", store) + "\n\n" + text.decode(),
        "All trials of the sweep",
    )
    return Outcome(trials, best, applied(recipe, best.values), report), result
