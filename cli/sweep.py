"""The verb `sweep`: try many students, then run the spine on the best recipe."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from cli.console import console
from cli.runs import load, place, print_distillation, print_plan, run_flow
from schemas.sweep import ChoiceParameter, SweepRecipe

if TYPE_CHECKING:
    from prefect import Flow

    from schemas.sweep import Sweep


def run_sweep(path: str, overrides: Sequence[str], *, plan: bool) -> None:
    """Run a sweep and print its trials, the winner's comparison and verdict, and where things are.

    With ``plan`` print what would be tried and what the teacher would be asked for it.
    """
    recipe = load(path, overrides, SweepRecipe)
    if plan:
        _print_sweep_plan(recipe)
        return
    outcome = run_flow(recipe, _sweep, with_ui=recipe.gate.approval_timeout_s is not None)
    from distillery.storage.store import Store
    from distillery.sweep.report import states_sentence, terminal_trials, verdict

    store, out = Store(recipe.store.root), console()
    out.print()
    out.print(terminal_trials(recipe, outcome.trials, outcome.winner))
    out.print(escape(states_sentence(outcome.trials)))
    out.print(f"[green]{escape(verdict(recipe, outcome.trials, outcome.winner))}[/]")
    print_distillation(recipe, outcome.distillation)
    report = place(store, outcome.report.uri)
    out.print(f"Sweep:   {report}/report.html")
    out.print(f"Recipe:  {report}/recipe.yaml")


def _print_sweep_plan(recipe: SweepRecipe) -> None:
    from distillery.preflight.sweep import check_sweep
    from distillery.sweep.space import asks_by_trial

    check_sweep(recipe)
    sweep, out = recipe.sweep, console()
    out.print(f"up to {sweep.num_trials} trials, {sweep.parallel_trials} at a time, which vary")
    for parameter in sweep.parameters:
        if isinstance(parameter, ChoiceParameter):
            said = "one of " + ", ".join(map(json.dumps, parameter.choices))
        else:
            said = f"{parameter.low:g} to {parameter.high:g}{', logarithmic' * parameter.log}"
        out.print(f"  {parameter.field}: {escape(said)}")
    if asks_by_trial(recipe):
        out.print(
            "What follows is for the recipe as it stands. Every other teacher or prompt that a "
            "trial draws costs as much again, and teacher.budget caps each one separately."
        )
    print_plan(recipe)


def _sweep() -> "Flow[..., Sweep]":
    from flows.sweep_students import sweep_students

    return sweep_students
