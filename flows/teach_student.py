"""The first half of the spine: rows of prompts in, a trained student out.

A function, not a flow: `distill_student` and every trial of `sweep_students` go through it.
"""

from typing import NamedTuple

from distillery.objectives.choice import ChosenObjective
from distillery.objectives.soft.stage import scoring_stage
from distillery.preflight.recipe import check_recipe
from distillery.teacher.generation import generation_stage
from distillery.training import training_stage
from distillery.training.pruning import pruning_stage
from flows.generate_responses import generate_responses
from flows.prune_student import prune_student
from flows.score_soft_targets import score_soft_targets
from flows.train_student import train_student
from schemas.execution import StageName
from schemas.recipe import Recipe
from schemas.refs import DatasetRef, FilteredSet, Lineage, PromptSet
from tasks.dataset import filter_responses, release_dataset
from tasks.dispatch import dispatch
from tasks.prompts import check_prompts, filter_prompts, load_prompts, validate_prompts
from tasks.training import choose_objective

TRAIN_BASELINE, TRAIN_STUDENT = StageName.TRAIN_BASELINE, StageName.TRAIN_STUDENT


class Material(NamedTuple):
    """What there is to learn from, and how."""

    responses: DatasetRef
    filtered: FilteredSet
    training_set: DatasetRef
    soft_targets: DatasetRef | None
    chosen: ChosenObjective


def read_prompts(recipe: Recipe) -> PromptSet:
    """Return the valid rows of ``recipe``, which could work with them."""
    task, data, teacher, student = recipe.task, recipe.data, recipe.teacher, recipe.student
    training, store, execution = recipe.training, recipe.store, recipe.execution
    others = (recipe.evaluation, recipe.export, recipe.gate, recipe.filters)
    check_recipe(task, data, teacher, student, training, store, execution, *others)
    loaded = load_prompts(task, data, store, execution)
    valid = validate_prompts(loaded, task, data, store, execution)
    return filter_prompts(valid, task, recipe.filters, store, execution)


def gather_material(recipe: Recipe, rows: PromptSet) -> Material:
    """Return what a student of ``recipe`` learns from: all that its teacher says is there then."""
    task, data, teacher, student = recipe.task, recipe.data, recipe.teacher, recipe.student
    training, store, execution = recipe.training, recipe.store, recipe.execution
    chosen = choose_objective(teacher, student, training)
    generate = dispatch(generate_responses, generation_stage, store, execution)
    score = dispatch(score_soft_targets, scoring_stage, store, execution)

    read_by = (teacher, student, chosen.training)
    judged_by = (recipe.evaluation, recipe.filters)
    check_prompts(rows.prompts, task, data, *read_by, store, execution, *judged_by)
    responses = generate(rows.prompts, teacher, task).dataset("responses")
    filtered = filter_responses(responses, rows.prompts, task, recipe.filters, store, execution)
    training_set = release_dataset(filtered, rows, teacher, task, recipe.filters, store, execution)
    soft_targets = None
    if chosen.needs_scores:
        assert not teacher.is_panel  # its members share no probabilities
        scored = score(training_set, rows.prompts, teacher, task, chosen.training)
        soft_targets = scored.dataset("soft_targets")
    return Material(responses, filtered, training_set, soft_targets, chosen)


def teach_student(recipe: Recipe) -> Lineage:
    """Return the student that ``recipe`` describes, taught by its teacher, and what it rests on."""
    student, store, execution = recipe.student, recipe.store, recipe.execution
    rows = read_prompts(recipe)
    responses, filtered, training_set, soft_targets, chosen = gather_material(recipe, rows)
    prune = dispatch(prune_student, pruning_stage, store, execution)
    train = dispatch(train_student, training_stage, store, execution)
    # Only the curve of the training itself says whether a trial is worth its time.
    unwatched = execution.model_copy(update={"trial": None})
    prepare = dispatch(train_student, training_stage, store, unwatched)

    # What it is before it learns from the teacher is what it starts from, and its baseline. A
    # pretrained student is its own, as it comes; a new one first learns the gold rows.
    start = baseline = first = None
    if student.kind == "pruned":
        start = baseline = prune(training_set, student).model("model")
    if student.kind == "from_scratch" and execution.trial is None:
        gold = recipe.training.on_gold_rows()
        baseline = prepare(TRAIN_BASELINE, rows.gold, rows.prompts, student, gold).model("model")
    if chosen.first is not None:
        learnt = (training_set, rows.prompts, student, chosen.first)
        start = first = prepare(TRAIN_STUDENT, *learnt, start=start).model("model")
    trained = train(
        name=TRAIN_STUDENT,
        rows=training_set,
        prompts=rows.prompts,
        student=student,
        training=chosen.training,
        soft_targets=soft_targets,
        teacher=None if recipe.teacher.is_panel else recipe.teacher,
        task=recipe.task,
        start=start,
        because=chosen.because,
    )
    return Lineage(
        prompts=rows,
        responses=responses,
        filtered=filtered,
        training_set=training_set,
        soft_targets=soft_targets,
        baseline=baseline,
        first=first,
        student=trained.model("model"),
    )
