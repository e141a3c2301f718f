"""The verb of `distillery gate`."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from cli.console import console
from distillery.registry.simulation import World, decidable, promotion_rate, rows_needed
from distillery.task_types import task_type
from schemas.errors import RecipeError
from schemas.gate import GateSpec
from schemas.recipe import GenerationRecipe, load_recipe

_ROWS = (100, 300, 1000, 3000, 10_000)
_RETENTIONS = (-0.04, -0.02, 0.0, 0.02, 0.04, 0.06)  # beside the bound
_GAINS = (-0.04, -0.02, -0.01, 0.0, 0.01, 0.02, 0.04)  # student minus champion
_GOOD_RETENTION, _GOOD_GAIN = 0.04, 0.02


def simulate_gate(
    path: str,
    overrides: Sequence[str],
    *,
    rows: Sequence[int] | None,
    teacher: float,
    correlation: float,
    champion: float | None,
    num_simulations: int,
) -> None:
    """Print in how many comparisons the gate opens, by true quality of the student and test rows.

    Args:
        path: The recipe, of which gate, task and the intervals of the evaluation are read.
        overrides: Laid over it.
        rows: Numbers of test rows.
        teacher: Share that the teacher gets right.
        correlation: Between the mistakes of two models.
        champion: Share of the teacher's accuracy that the champion keeps.
        num_simulations: Comparisons per cell.
    """
    recipe = load_recipe(path, overrides, GenerationRecipe)
    gate, evaluation, sizes = recipe.gate, recipe.evaluation, list(rows or _ROWS)
    primary = task_type(recipe.task).primary
    if champion is not None and not 0 < teacher * champion < 1:
        raise RecipeError(
            f"a champion that keeps {champion:g} of a teacher that is right in {teacher:g} would "
            f"be right in {teacher * champion:g} of all cases, which is not a share between 0 and "
            "1. Correct --champion."
        )
    asked = decidable(gate, primary)
    bound = gate.min_retention
    kept = (1 + bound) / 2 if champion is None else champion

    def alone(retention: float) -> World:
        return World(teacher, teacher * retention, correlation=correlation)

    def beside(gain: float) -> World:
        return World(teacher, teacher * kept + gain, teacher * kept, correlation)

    def cells(world: World) -> list[str]:
        rates = (
            promotion_rate(asked, world, evaluation, num_rows=size, num_simulations=num_simulations)
            for size in sizes
        )
        return [f"{rate * 100:.1f} %" for rate in rates]

    def needed(world: World) -> str:
        size = rows_needed(asked, world, evaluation, num_simulations=num_simulations)
        return "more than 10,000" if size is None else f"about {size:,}"

    out = console()
    out.print(
        f"{num_simulations:,} comparisons per cell; the teacher is right in {teacher:.0%}, the "
        f"mistakes of two models have a correlation of {correlation:g}; "
        f"{evaluation.confidence:.0%} intervals, {evaluation.bootstrap_samples:,} resamples."
    )
    for line in _provisos(gate, primary):
        out.print(escape(line))
    out.print()
    out.print(
        "Promoted, while there is no champion, by what the student truly keeps of the teacher:"
    )
    table = Table("student / teacher", *(f"{size:,} rows" for size in sizes))
    for offset in _RETENTIONS:
        retention = bound + offset
        if 0 < teacher * retention < 1:
            table.add_row(f"{retention:.2f}{_note(offset)}", *cells(alone(retention)))
    out.print(table)
    good = min(1.0, bound + _GOOD_RETENTION)
    if 0 < teacher * good < 1:
        rows_text = needed(alone(good))
        out.print(f"One that keeps {good:.2f} is promoted in 4 of 5 from {rows_text} test rows on.")
    if gate.max_loss_to_champion is None or not 0 < teacher * kept < 1:
        return
    out.print()
    out.print(
        f"Promoted in place of a champion that keeps {kept:.2f} of the teacher, by how much better "
        "the student truly is:"
    )
    table = Table("student - champion", *(f"{size:,} rows" for size in sizes))
    for gain in _GAINS:
        if 0 < beside(gain).student < 1:
            table.add_row(f"{gain * 100:+.0f} points", *cells(beside(gain)))
    out.print(table)
    if 0 < beside(_GOOD_GAIN).student < 1:
        out.print(
            f"One that is {_GOOD_GAIN * 100:.0f} points better is promoted in 4 of 5 from "
            f"{needed(beside(_GOOD_GAIN))} test rows on."
        )


def _note(offset: float) -> str:
    return "" if offset else " (the bound)"


def _provisos(gate: GateSpec, primary: str) -> list[str]:
    """Return what the simulation does not decide."""
    asked = decidable(gate, primary)
    left = [
        f"gate.{name}"
        for name in type(gate).model_fields
        if name.startswith(("max_", "min_")) and getattr(gate, name) != getattr(asked, name)
    ]
    left += ["gate.regressions_against"] * bool(gate.regressions_against)
    num_left = len(gate.conditions) - len(asked.conditions)
    left += [f"{num_left} of gate.conditions"] * bool(num_left)
    lines = [f"Taken to hold: {', '.join(left)}."] if left else []
    if primary != "accuracy":
        lines.append(
            f"{primary} is simulated as right or wrong, which spreads more than scores between: "
            "with as many rows the gate holds back fewer good students than this."
        )
    return lines
