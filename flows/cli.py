"""The command line: ``python -m flows.distill_student RECIPE [section.key=value ...]``."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import psutil
from prefect.states import State
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape

from distillery.store import Store
from distillery.tables import findings, terminal_table
from schemas.distillation import Distillation
from schemas.errors import DistilleryError, StageError
from schemas.recipe import Recipe, TeacherTrainingRecipe, load_recipe
from schemas.refs import ModelRef

logger = logging.getLogger("distillery.run")

_LOG_COLUMNS = 110
_TABLE_COLUMNS = 100

# Where there is no terminal, rich assumes 80 columns, too few for the table.
console = Console(
    highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _LOG_COLUMNS
)


def run_distillation() -> None:
    """Run the spine on a recipe and print the comparison, the verdict and where things are."""
    from flows.distill_student import distill_student

    recipe, state = _run(distill_student, Recipe)
    outcome: Distillation = state.result()
    store = Store(recipe.store.root)
    console.print()
    console.print(terminal_table(outcome.comparison, narrow=console.width < _TABLE_COLUMNS))
    for finding in findings(outcome.comparison):
        mark = {True: "[green]✓[/] ", False: "[yellow]✗[/] ", None: "  "}[finding.met]
        console.print(mark + escape(finding.text))
    alias = f"{recipe.task.name}/{recipe.gate.alias}"
    verdict = "[green]Promoted" if outcome.promotion.promoted else "[yellow]Not promoted"
    console.print(f"\n{verdict}[/] to {alias}")
    for check in outcome.promotion.checks:
        if not check.passed:
            console.print(f"  {escape(check.sentence)}")
    console.print(f"Report:  {_place(store, outcome.report.uri)}/report.html")
    console.print(f"Student: {_place(store, outcome.student.uri)}")


def _place(store: Store, uri: str) -> str:
    """Return where something is: a URL, or a path, relative where it is below this folder."""
    if not store.is_local:
        return f"{store.root}/{uri}"
    path, here = store.path(uri), Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def run_teacher_training() -> None:
    """Train a teacher by a recipe and print where it is."""
    from flows.train_teacher import train_teacher

    recipe, state = _run(train_teacher, TeacherTrainingRecipe)
    model: ModelRef = state.result()
    console.print(f"Teacher: {recipe.output} ({model.num_parameters:,} parameters)")


def _run(flow: Callable[..., Any], kind: type[BaseModel]) -> tuple[Any, State[Any]]:
    """Return the recipe of the command line and the completed state of ``flow`` run on it."""
    parser = argparse.ArgumentParser(prog=f"python -m {flow.__module__}", description=flow.__doc__)
    parser.add_argument("recipe", help="YAML file, such as recipes/demo.yaml")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="laid over the recipe, deeply; the value is YAML (training.epochs=3)",
    )
    arguments = parser.parse_args()
    _show_only_our_log()
    signal.signal(signal.SIGINT, _stop)
    if not os.environ.get("PREFECT_API_URL"):
        logger.info("starting a temporary Prefect server (about 10 s the first time)")
    try:
        recipe = load_recipe(arguments.recipe, arguments.overrides, kind)
        sections = {name: getattr(recipe, name) for name in kind.model_fields}
        state: State[Any] = flow(**sections, return_state=True)
    except DistilleryError as error:
        _fail(error)
    except RuntimeError as error:
        if "Failed to reach API" not in str(error):
            raise
        _fail(
            StageError(
                f"there is no Prefect server at {os.environ.get('PREFECT_API_URL')!r}. Start it "
                "(`make up`), or `unset PREFECT_API_URL` to run without one."
            )
        )
    if not state.is_completed():
        error = state.result(raise_on_failure=False)
        if isinstance(error, DistilleryError):
            _fail(error)
        state.result()
    return recipe, state


def _stop(*_: object) -> NoReturn:
    """End at once on Ctrl-C, with the temporary server.

    A terminal's Ctrl-C reaches that server too, and Prefect would go on asking it for minutes.
    What is finished is in the store and the ledger, so there is nothing to wind up.
    """
    for child in psutil.Process().children(recursive=True):
        child.terminate()
    print("\nstopped; run the same command again to go on from here", file=sys.stderr, flush=True)
    os._exit(130)


def _fail(error: DistilleryError) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[red]{type(error).__name__}:[/] {escape(str(error))}"
    )
    sys.exit(1)


def _show_only_our_log() -> None:
    """Print one line per stage, and of Prefect's own log only warnings that are not ours.

    A failed run's error is printed once, at the end, without the orchestrator's traceback.
    """
    for name in (None, "prefect"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_is_worth_showing)
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    logging.getLogger("distillery").addHandler(lines)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    if record.name.startswith(("distillery", "prefect.flow_runs", "prefect.task_runs")):
        return False
    return record.levelno >= logging.WARNING
