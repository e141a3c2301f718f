"""The command line: ``python -m flows.distill_student RECIPE [section.key=value ...]``."""

import argparse
import contextlib
import inspect
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil
from prefect import Flow
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape

from distillery.evaluation.tables import findings, terminal_table
from distillery.storage.store import Store
from schemas.distillation import Distillation
from schemas.errors import DistilleryError, StageError
from schemas.generation import Generation
from schemas.recipe import GenerationRecipe, Recipe, RecipeT, TeacherTrainingRecipe, load_recipe
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

    parser = _parser("flows.distill_student", distill_student)
    _add_plan(parser)
    with _clear_errors():
        arguments, recipe = _arguments(parser, Recipe)
        if arguments.plan:
            _print_plan(recipe)
            return
        outcome: Distillation = _run(distill_student, recipe)
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


def run_generation() -> None:
    """Have the prompts of a recipe answered; print what it took and where the responses are."""
    from distillery.teacher.summary import check_jsonl, summary, write_jsonl
    from flows.answer_prompts import answer_prompts

    parser = _parser("flows.generate_responses", answer_prompts)
    _add_plan(parser)
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="write the responses there too")
    with _clear_errors():
        arguments, recipe = _arguments(parser, GenerationRecipe)
        if arguments.plan:
            _print_plan(recipe)
            return
        if arguments.jsonl:
            check_jsonl(arguments.jsonl, recipe.data)
        outcome: Generation = _run(answer_prompts, recipe)
        console.print()
        made_at = outcome.made_at if outcome.reused else None
        took = summary(outcome.counts, outcome.facts, recipe.teacher, reused_from=made_at)
        for label, text in took:
            console.print(f"{label:<17}{escape(text)}")
        store = Store(recipe.store.root)
        console.print(f"\nParquet: {escape(_place(store, outcome.responses.uri))}")
        if arguments.jsonl:
            num_rows = write_jsonl(outcome.responses, store, arguments.jsonl)
            console.print(f"JSONL:   {escape(str(arguments.jsonl))} ({num_rows:,} rows)")


def _place(store: Store, uri: str) -> str:
    """Return where something is: a URL, or a path, relative where it is below this folder."""
    if not store.is_local:
        return f"{store.root}/{uri}"
    path, here = store.path(uri), Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def run_teacher_training() -> None:
    """Train a teacher by a recipe and print where it is."""
    from flows.train_teacher import train_teacher

    with _clear_errors():
        _, recipe = _arguments(_parser("flows.train_teacher", train_teacher), TeacherTrainingRecipe)
        model: ModelRef = _run(train_teacher, recipe)
    console.print(f"Teacher: {recipe.output} ({model.num_parameters:,} parameters)")


def _parser(module: str, flow: Flow[..., Any]) -> argparse.ArgumentParser:
    """Return the parser of ``python -m module``, which takes a recipe and overrides."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=flow.__doc__)
    parser.add_argument("recipe", help="YAML file, such as recipes/demo.yaml")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="section.key=value",
        help="laid over the recipe, deeply; the value is YAML (training.epochs=3)",
    )
    return parser


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plan",
        action="store_true",
        help="ask nothing; say what the teacher would be asked, its cost and its time",
    )


def _arguments(
    parser: argparse.ArgumentParser, kind: type[RecipeT]
) -> tuple[argparse.Namespace, RecipeT]:
    """Return the command line and the recipe that it names."""
    # Overrides may stand on either side of an option.
    arguments = parser.parse_intermixed_args()
    _show_only_our_log()
    signal.signal(signal.SIGINT, _stop)
    return arguments, load_recipe(arguments.recipe, arguments.overrides, kind)


def _run(flow: Flow[..., Any], recipe: BaseModel) -> Any:
    """Return what ``flow`` returns for the sections of ``recipe`` that it takes."""
    if not os.environ.get("PREFECT_API_URL"):
        logger.info("starting a temporary Prefect server (about 10 s the first time)")
    sections = {name: getattr(recipe, name) for name in inspect.signature(flow.fn).parameters}
    return flow(**sections, return_state=True).result()


def _print_plan(recipe: GenerationRecipe) -> None:
    """Print what a run would ask its teacher."""
    from distillery.preflight.recipe import check_generation_recipe, check_recipe
    from distillery.teacher.plan import plan_recipe, sentences

    task, data, teacher, store = recipe.task, recipe.data, recipe.teacher, recipe.store
    if isinstance(recipe, Recipe):
        check_recipe(task, data, teacher, recipe.student, store)
    else:
        check_generation_recipe(task, data, teacher, store)
    for line in sentences(plan_recipe(recipe)):
        console.print(escape(line))


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """End with one clear message and status 1 on what a user can meet."""
    try:
        yield
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
