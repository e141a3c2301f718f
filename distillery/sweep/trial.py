"""The stage in which a trial's student is weighed: quality on the selection rows, and costs."""

import itertools
from typing import Any, cast

from pydantic import JsonValue

from distillery.evaluation.answers import questions
from distillery.evaluation.comparison import read_answers, read_judged_rows
from distillery.evaluation.contestants import contestant, trained_contestant
from distillery.evaluation.metrics import metric_sums
from distillery.evaluation.statistics import Bootstrap
from distillery.evaluation.timing import time_models
from distillery.models.hardware import cpu_threads
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.sweep.space import applied
from distillery.task_types import task_type
from schemas.comparison import Interval
from schemas.contestants import STUDENT, TrainedContestant
from schemas.errors import TrainingError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.recipe import Recipe
from schemas.refs import DatasetRef, Lineage
from schemas.sweep import Cost, SweepRecipe

_LOGIC_VERSION = 2


def trial_stage(recipe: SweepRecipe, study: str, values: dict[str, JsonValue]) -> Stage:
    """Return what identifies a trial: its study, whose name says all the rest, and its values."""
    return Stage(
        StageName.TRY_STUDENT, _LOGIC_VERSION, inputs={"study": study, "values": values}, spec={}
    )


def trial_recipe(
    recipe: SweepRecipe, values: dict[str, JsonValue], store: StoreSpec, execution: ExecutionSpec
) -> Recipe:
    """Return the recipe that a trial follows, in this process."""
    return applied(recipe, values).model_copy(update={"store": store, "execution": execution})


def trial_contestant(recipe: Recipe, lineage: Lineage) -> TrainedContestant:
    """Return the trial's student as one who answers."""
    return trained_contestant(recipe.teacher, recipe.student, STUDENT, lineage.student)


def metric_of(recipe: SweepRecipe) -> str:
    """Return the metric that the sweep goes by."""
    return recipe.sweep.metric or task_type(recipe.task).primary


def weigh_student(
    lineage: Lineage,
    answers: DatasetRef,
    recipe: SweepRecipe,
    study: str,
    values: dict[str, JsonValue],
    store: StoreSpec,
    execution: ExecutionSpec,
) -> StageResult:
    """Return what a trial's student is worth; see :func:`worth`.

    The outputs are its model, its answers, and the responses and soft targets that it learnt from.

    Raises:
        TrainingError: None of its answers could be scored.
    """
    tried = applied(recipe, values)
    task, evaluation = tried.task, tried.evaluation
    spec, prompts = trial_contestant(tried, lineage), lineage.prompts.prompts
    metric = metric_of(recipe)

    def work(attempt: Attempt) -> None:
        frame = read_answers(answers, attempt.store)
        rows = read_judged_rows(prompts, attempt.store, "selection")
        clusters = rows.loc[frame.index, "cluster"].tolist()
        sums = metric_sums(frame, task_type(task))[metric]
        quality = Bootstrap(clusters, evaluation).interval(sums)
        if quality is None:
            raise TrainingError(
                f"no answer to the selection rows could be scored in {metric!r}, so nobody knows "
                "what this student is worth. See that data.selection has references."
            )
        attempt.facts["quality"] = quality.model_dump(mode="json")
        conversations = [
            row.conversation
            for row in itertools.islice(
                itertools.chain.from_iterable(questions(prompts, attempt.store, "selection")),
                evaluation.latency_rows + evaluation.latency_warmup,
            )
        ]
        one_by_one = evaluation.model_copy(update={"concurrencies": (1,)})
        asked = contestant(spec, prompts, task, evaluation, store)
        with cpu_threads(execution), asked.opened(attempt.store) as opened:
            speed = time_models({STUDENT: opened}, conversations, one_by_one)[STUDENT]
            assert opened.size is not None  # it is loaded here
            costs = {
                "latency": speed.latency_p50_s,
                "parameters": opened.size.num_parameters,
                "disk_bytes": opened.size.disk_bytes,
            }
        attempt.facts["costs"] = {name: cost for name, cost in costs.items() if cost is not None}
        attempt.counts["rows"] = len(frame)
        attempt.outputs |= {
            "student": lineage.student,
            "answers": answers,
            "responses": lineage.responses,
        }
        if lineage.soft_targets is not None:
            attempt.outputs["soft_targets"] = lineage.soft_targets

    return run_stage(trial_stage(recipe, study, values), store, execution, work)


def worth(tried: StageResult) -> tuple[Interval, dict[Cost, float]]:
    """Return the quality and the costs of a trial's student."""
    facts: Any = tried.manifest.facts
    return Interval.model_validate(facts["quality"]), cast("dict[Cost, float]", facts["costs"])
