"""The first half of the spine: rows of prompts in, a trained student out.

A function, not a flow: `distill_student` and every trial of `sweep_students` go through it.
"""

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
from schemas.refs import Lineage
from tasks.dataset import filter_responses, release_dataset
from tasks.dispatch import dispatch
from tasks.prompts import check_prompts, load_prompts, validate_prompts
from tasks.training import choose_objective

TRAIN_BASELINE, TRAIN_STUDENT = StageName.TRAIN_BASELINE, StageName.TRAIN_STUDENT


def teach_student(recipe: Recipe) -> Lineage:
    """Return the student that ``recipe`` describes, taught by its teacher, and what it rests on."""
    task, data, teacher, student = recipe.task, recipe.data, recipe.teacher, recipe.student
    training, store, execution = recipe.training, recipe.store, recipe.execution
    judged_by = (recipe.evaluation, recipe.export, recipe.gate)
    check_recipe(task, data, teacher, student, training, store, execution, *judged_by)
    chosen = choose_objective(teacher, student, training)
    generate = dispatch(generate_responses, generation_stage, store, execution)
    score = dispatch(score_soft_targets, scoring_stage, store, execution)
    prune = dispatch(prune_student, pruning_stage, store, execution)
    train = dispatch(train_student, training_stage, store, execution)

    loaded = load_prompts(task, data, store, execution)
    rows = validate_prompts(loaded, task, data, store, execution)
    read_by = (teacher, student, chosen.training)
    check_prompts(rows.prompts, task, data, *read_by, store, execution, recipe.evaluation)
    responses = generate(rows.prompts, teacher, task).dataset("responses")
    filtered = filter_responses(responses, task, recipe.filters, store, execution)
    training_set = release_dataset(filtered, task, recipe.filters, store, execution)

    # What it is before it learns from the teacher is what it starts from, and its baseline. A
    # pretrained student is its own, as it comes; a new one first learns the gold rows.
    start = baseline = first = soft_targets = None
    if student.kind == "pruned":
        start = baseline = prune(training_set, student).model("model")
    if student.kind == "from_scratch":
        gold = training.on_gold_rows()
        baseline = train(TRAIN_BASELINE, rows.gold, rows.prompts, student, gold).model("model")
    if chosen.first is not None:
        learnt = (training_set, rows.prompts, student, chosen.first)
        start = first = train(TRAIN_STUDENT, *learnt, start=start).model("model")
    if chosen.needs_scores:
        scored = score(training_set, rows.prompts, teacher, task, chosen.training)
        soft_targets = scored.dataset("soft_targets")
    trained = train(
        name=TRAIN_STUDENT,
        rows=training_set,
        prompts=rows.prompts,
        student=student,
        training=chosen.training,
        soft_targets=soft_targets,
        teacher=teacher,
        task=task,
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
