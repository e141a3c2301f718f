"""Refuse a sweep that cannot work before anything is spent."""

from distillery.objectives.choice import choose_objective
from distillery.preflight.models import check_models
from distillery.preflight.recipe import check_recipe
from distillery.storage.fingerprint import canonical_json, reading_files_once
from distillery.sweep.sameness import unread_parameters
from distillery.sweep.space import applied, edges, space_problems
from distillery.task_types import task_type
from schemas.base import nearest
from schemas.errors import DistilleryError, RecipeError
from schemas.recipe import Recipe
from schemas.sweep import SweepRecipe

# Whose files, templates and prompts a trial would open.
_OPENED = ("task.", "teacher.", "student.", "training.objective.")


def check_sweep(recipe: SweepRecipe) -> None:
    """Return when every trial of a sweep could work; otherwise raise one error with all problems.

    Every choice of every parameter is tried by itself as a whole recipe, and so are both ends of a
    range: what two of them make together, a trial finds out.

    Raises:
        RecipeError: Each problem on its own line, with the one thing to do.
    """
    problems = _about_the_sweep(recipe)
    with reading_files_once():
        try:
            _check(recipe)
        except DistilleryError as error:
            problems.append(str(error))
        space = space_problems(recipe)
        problems += space or _unread(recipe)
        if not problems:
            problems += _impossible_values(recipe)
    if problems:
        raise RecipeError("\n".join(problems))


def _about_the_sweep(recipe: SweepRecipe) -> list[str]:
    sweep, kind = recipe.sweep, task_type(recipe.task)
    problems = []
    if recipe.data.selection is None:
        problems.append(
            "data.selection is missing, so students could only be chosen by the test rows, which "
            "would then tell nobody anything. Add labelled rows that are in no other split."
        )
    of_the_set = (name for name, metric in kind.of_the_set.items() if metric.more_is_better)
    known = (*kind.metrics, *of_the_set)
    if sweep.metric is not None and sweep.metric not in known:
        problems.append(
            f"sweep.metric is {sweep.metric!r}, which task.type {recipe.task.type.value!r} does "
            f"not have.{nearest(sweep.metric, list(known))} Choose one of {', '.join(known)}."
        )
    if sweep.parallel_trials > 1 and recipe.execution.mode == "inline":
        problems.append(
            f"sweep.parallel_trials is {sweep.parallel_trials}, but this process trains one model "
            "at a time. Set execution.mode to deployment, or sweep.parallel_trials to 1."
        )
    return problems


def _check(recipe: Recipe) -> None:
    """Raise what a run of ``recipe`` would be refused for."""
    task, data, teacher, student = recipe.task, recipe.data, recipe.teacher, recipe.student
    made = (student, recipe.training, recipe.store, recipe.execution)
    others = (recipe.evaluation, recipe.export, recipe.gate, recipe.filters)
    check_recipe(task, data, teacher, *made, *others)
    choose_objective(teacher, student, recipe.training)


def _open(recipe: Recipe) -> None:
    """Raise what models that are made as ``recipe`` says would be refused for."""
    models = (recipe.student, recipe.teacher, recipe.task, recipe.data, recipe.execution)
    if problems := check_models(*models, recipe.training, recipe.evaluation):
        raise RecipeError("\n".join(problems))


def _unread(recipe: SweepRecipe) -> list[str]:
    return [
        f"sweep.parameters.{number} varies {parameter.field!r}, which does not change what is "
        "learnt, so every trial would be the same student. Remove it."
        for number, parameter in unread_parameters(recipe)
    ]


def _impossible_values(recipe: SweepRecipe) -> list[str]:
    problems = []
    for number, parameter in enumerate(recipe.sweep.parameters):
        for value in edges(parameter):
            try:
                tried = applied(recipe, {parameter.field: value})
                _check(tried)
                field = f"{parameter.field}."
                if any(field.startswith(each) or each.startswith(field) for each in _OPENED):
                    _open(tried)
            except DistilleryError as error:
                made = f"{parameter.field}={canonical_json(value)}"
                problems.append(f"sweep.parameters.{number}: with {made}: {error}")
    return problems
