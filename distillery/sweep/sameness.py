"""Whether a field that trials vary makes them different students, by the fingerprints."""

from collections.abc import Iterator

from distillery.filters.prompts import prompt_filtering_stage
from distillery.filters.responses import response_filtering_stage
from distillery.objectives.choice import decided
from distillery.objectives.soft.stage import scoring_stage
from distillery.storage.stage import Stage
from distillery.sweep.space import Values, applied, edges
from distillery.teacher.generation import generation_stage
from distillery.training import training_stage
from distillery.training.pruning import pruning_stage
from schemas.errors import DistilleryError
from schemas.execution import StageName
from schemas.objectives import AutoObjective, SoftTargets
from schemas.recipe import Recipe
from schemas.refs import DatasetRef, ModelRef, PromptSet
from schemas.student import PrunedStudent
from schemas.sweep import Parameter, SweepRecipe

TRAIN_STUDENT = StageName.TRAIN_STUDENT


def unread_parameters(recipe: SweepRecipe) -> Iterator[tuple[int, Parameter]]:
    """Yield the parameters, with their numbers, whose values all make the same student.

    They are changed alone, and beside each value of another parameter: a divergence's own setting
    counts only where it is chosen. What cannot be a recipe is left to those who refuse it.
    """
    for number, parameter in enumerate(recipe.sweep.parameters):
        others = [each for each in recipe.sweep.parameters if each is not parameter]
        beside: list[Values] = [{}]
        beside += [{other.field: value} for other in others for value in edges(other)]
        if not any(_matters(recipe, parameter, values) for values in beside):
            yield number, parameter


def _matters(recipe: SweepRecipe, parameter: Parameter, beside: Values) -> bool:
    """Return whether two values of ``parameter`` make two students, ``beside`` other values."""
    first = None
    for value in edges(parameter):
        try:
            identity = student_identity(applied(recipe, {**beside, parameter.field: value}))
        except DistilleryError:
            return not beside
        first = first or identity
        if identity != first:
            return True
    return False


def student_identity(recipe: Recipe) -> str:
    """Return the fingerprint that the student of ``recipe`` will have, whatever its prompts are.

    The stages of `flows/teach_student.py`, over rows that nobody has read. An objective `auto` is
    taken as soft targets, which read most of what it says.
    """
    task, teacher, student, training = recipe.task, recipe.teacher, recipe.student, recipe.training
    if isinstance(training.objective, AutoObjective):
        soft = training.objective.made(SoftTargets)
        training = training.model_copy(update={"objective": soft})
        if teacher.is_panel:  # whose probabilities nobody learns from
            training = training.with_hard_targets()
    chosen = decided(training, "")
    unread = DatasetRef(uri="", fingerprint="", num_rows=0, columns=())
    valid = PromptSet(prompts=unread, gold=unread, quarantined=unread)
    prompts = _rows(prompt_filtering_stage(valid, recipe.filters))
    responses = _rows(generation_stage(prompts, teacher, task))
    rows = _rows(response_filtering_stage(responses, prompts, task, recipe.filters))
    soft_targets = start = None
    single = None if teacher.is_panel else teacher
    if chosen.needs_scores and single is not None:
        soft_targets = _rows(scoring_stage(rows, prompts, single, task, chosen.training))
    if isinstance(student, PrunedStudent):
        start = _model(pruning_stage(rows, student))
    if chosen.first is not None:
        learnt = (TRAIN_STUDENT, rows, prompts, student, chosen.first)
        start = _model(training_stage(*learnt, start=start))
    return training_stage(
        TRAIN_STUDENT,
        rows,
        prompts,
        student,
        chosen.training,
        soft_targets,
        single,
        task,
        start,
    ).fingerprint


def _rows(made_by: Stage) -> DatasetRef:
    return DatasetRef(uri="", fingerprint=made_by.fingerprint, num_rows=0, columns=())


def _model(made_by: Stage) -> ModelRef:
    return ModelRef(uri=made_by.fingerprint, fingerprint=made_by.fingerprint, num_parameters=0)
