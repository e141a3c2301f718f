"""The verbs that run a flow: distil, generate, train a teacher."""

import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from rich.markup import escape

from cli.console import console, show_only_our_log, silence_prefect
from cli.server import TemporaryServer, without_collections
from flows.environment import api_url, prefect_home
from schemas.recipe import GenerationRecipe, Recipe, RecipeT, TeacherTrainingRecipe, load_recipe

if TYPE_CHECKING:
    from prefect import Flow
    from pydantic import BaseModel

    from distillery.storage.store import Store
    from schemas.distillation import Distillation
    from schemas.generation import Generation
    from schemas.refs import ModelRef

R = TypeVar("R")

logger = logging.getLogger("distillery.run")

_TABLE_COLUMNS = 100


def run_distillation(path: str, overrides: Sequence[str], *, plan: bool) -> None:
    """Run the spine on a recipe and print the comparison, the verdict and where things are."""
    recipe = load(path, overrides, Recipe)
    if plan:
        print_plan(recipe)
        return
    outcome = run_flow(recipe, _spine, with_ui=recipe.gate.approval_timeout_s is not None)
    print_distillation(recipe, outcome)


def print_distillation(recipe: Recipe, outcome: "Distillation") -> None:
    """Print the comparison, the verdict and where things are."""
    from distillery.evaluation.drift import drift_sentence
    from distillery.evaluation.findings import findings
    from distillery.evaluation.terminal import terminal_metrics, terminal_table
    from distillery.storage.store import Store

    store, out = Store(recipe.store.root), console()
    out.print()
    out.print(terminal_table(outcome.comparison, narrow=out.width < _TABLE_COLUMNS))
    out.print(terminal_metrics(outcome.comparison))
    for finding in findings(outcome.comparison):
        mark = {True: "[green]✓[/] ", False: "[yellow]✗[/] ", None: "  "}[finding.met]
        out.print(mark + escape(finding.text))
    alias = f"{recipe.task.name}/{recipe.gate.alias}"
    verdict = "[green]Promoted" if outcome.promotion.promoted else "[yellow]Not promoted"
    out.print(f"\n{verdict}[/] to {alias}")
    for check in outcome.promotion.checks:
        if not check.passed:
            out.print(f"  {escape(check.sentence)}")
    if outcome.promotion.approval is not None:
        out.print(f"  {escape(outcome.promotion.approval.sentence)}")
    for name, checks in outcome.promotion.forms.items():
        failed = [check.sentence for check in checks if not check.passed]
        out.print(f"  {name}: {'not published: ' if failed else 'meets every condition'}", end="")
        out.print(escape("; ".join(failed)))
    if outcome.drift is not None:
        out.print(escape(drift_sentence(outcome.drift)))
    out.print(f"Report:  {place(store, outcome.report.uri)}/report.html")
    out.print(f"Student: {place(store, outcome.student.uri)}")


def run_generation(path: str, overrides: Sequence[str], *, plan: bool, jsonl: Path | None) -> None:
    """Have the prompts of a recipe answered; print what it took and where the responses are."""
    recipe = load(path, overrides, GenerationRecipe)
    if plan:
        print_plan(recipe)
        return
    from distillery.storage.store import Store
    from distillery.teacher.summary import check_jsonl, summary, write_jsonl

    if jsonl:
        check_jsonl(jsonl, recipe.data)
    outcome = run_flow(recipe, _generation)
    store, out = Store(recipe.store.root), console()
    out.print()
    made_at = outcome.made_at if outcome.reused else None
    took = summary(outcome.counts, outcome.facts, recipe.teacher, reused_from=made_at)
    for label, text in took:
        out.print(f"{label:<17}{escape(text)}")
    out.print(f"\nParquet: {escape(place(store, outcome.responses.uri))}")
    if jsonl:
        num_rows = write_jsonl(outcome.responses, store, jsonl)
        out.print(f"JSONL:   {escape(str(jsonl))} ({num_rows:,} rows)")


def run_teacher_training(path: str, overrides: Sequence[str]) -> None:
    """Train a teacher by a recipe and print where it is."""
    recipe = load(path, overrides, TeacherTrainingRecipe)
    model = run_flow(recipe, _teacher_training)
    console().print(f"Teacher: {recipe.output} ({model.num_parameters:,} parameters)")


def _spine() -> "Flow[..., Distillation]":
    from flows.distill_student import distill_student

    return distill_student


def _generation() -> "Flow[..., Generation]":
    from flows.answer_prompts import answer_prompts

    return answer_prompts


def _teacher_training() -> "Flow[..., ModelRef]":
    from flows.train_teacher import train_teacher

    return train_teacher


def load(path: str, overrides: Sequence[str], kind: type[RecipeT]) -> RecipeT:
    """Return the recipe, with our log and our Ctrl-C in place."""
    show_only_our_log()
    signal.signal(signal.SIGINT, _stop)
    return load_recipe(path, overrides, kind)


def run_flow(
    recipe: "BaseModel", load_flow: Callable[[], "Flow[..., R]"], *, with_ui: bool = False
) -> R:
    """Return what a flow returns for the sections of ``recipe`` that it takes.

    The flow is imported here, while the temporary server starts beside it. One ``with_ui`` can be
    opened in a browser of this machine, where a person is asked something.
    """
    server = None
    if api_url() is None:
        logger.info("starting a temporary Prefect server (about 10 s the first time)")
        server = TemporaryServer(prefect_home(), with_ui=with_ui)
    with without_collections():
        flow = load_flow()
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    silence_prefect()

    # Nobody watches a temporary server for heartbeats, and their thread costs each flow a second.
    settings = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None} if server else {}
    sections = {name: getattr(recipe, name) for name in inspect.signature(flow.fn).parameters}
    if server:
        server.wait()
    with temporary_settings(settings):
        state: Any = flow(**sections, return_state=True)
        return cast("R", state.result())


def place(store: "Store", uri: str) -> str:
    """Return where something is: a URL, or a path, relative where it is below this folder."""
    if not store.is_local:
        return f"{store.root}/{uri}"
    path, here = store.path(uri), Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def print_plan(recipe: GenerationRecipe) -> None:
    """Print what a run would ask its teacher; refuse what the run would refuse."""
    from distillery.objectives.choice import choose_objective
    from distillery.preflight.plan import plan_recipe, sentences
    from distillery.preflight.recipe import check_recipe

    task, data, teacher = recipe.task, recipe.data, recipe.teacher
    store, execution = recipe.store, recipe.execution
    if isinstance(recipe, Recipe):
        made, judged = (recipe.student, recipe.training), (recipe.evaluation, recipe.export)
        check_recipe(
            task, data, teacher, *made, store, execution, *judged, recipe.gate, recipe.filters
        )
        choose_objective(teacher, *made)
    else:
        check_recipe(task, data, teacher, None, None, store, execution, filters=recipe.filters)
    out = console()
    for line in sentences(plan_recipe(recipe)):
        out.print(escape(line))


def _stop(*_: object) -> NoReturn:
    """End at once on Ctrl-C, with the temporary server.

    A terminal's Ctrl-C reaches that server too, and Prefect would go on asking it for minutes.
    What is finished is in the store and the ledger, so there is nothing to wind up.
    """
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.terminate()
    print("\nstopped; run the same command again to go on from here", file=sys.stderr, flush=True)
    os._exit(130)
