"""Flow: one trial of a sweep, all of it in this process; runs on the GPU work pool."""

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import JsonValue

from distillery.sweep.trial import trial_contestant, trial_recipe
from distillery.sweep.trials import noting_failure, refuse_other_rows
from flows.teach_student import read_prompts, teach_student
from schemas.errors import TrialPruned
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import ModelRef
from schemas.sweep import SweepRecipe
from tasks.evaluation import answer_selection_prompts
from tasks.stage import pruned
from tasks.sweep import weigh_student


@flow(name="try-student", flow_run_name="trial {execution.trial.number}")
def try_student(
    store: StoreSpec,
    execution: ExecutionSpec,
    recipe: SweepRecipe,
    study: str,
    values: dict[str, JsonValue],
) -> ModelRef | State[ModelRef]:
    """Return the student of ``recipe`` with ``values``, taught and judged by the selection rows."""
    try:
        with noting_failure(store, execution):
            untouched = trial_recipe(recipe, {}, store, execution)
            refuse_other_rows(recipe, read_prompts(untouched).prompts, study)
            tried = trial_recipe(recipe, values, store, execution)
            lineage = teach_student(tried)
            answers = answer_selection_prompts(
                trial_contestant(tried, lineage),
                lineage.prompts.prompts,
                tried.task,
                tried.evaluation,
                store,
                execution,
            )
            return weigh_student(lineage, answers, recipe, study, values, store, execution)
    except TrialPruned as given_up:
        return pruned(given_up)
