"""Flow: every contestant answers the test rows, then all are timed together."""

from prefect import flow

from distillery.evaluation.harness import takes_harness
from schemas.contestants import ContestantSpec
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef, Evaluated
from schemas.task import TaskSpec
from tasks.evaluation import answer_test_prompts, measure_performance, run_lm_eval


@flow(name="evaluate-models", flow_run_name="{task.name}")
def evaluate_models(
    store: StoreSpec,
    execution: ExecutionSpec,
    prompts: DatasetRef,
    contestants: tuple[ContestantSpec, ...],
    task: TaskSpec,
    evaluation: EvaluationSpec,
) -> Evaluated:
    """Return everybody's answers to the test rows, with their speed and size measured."""
    answers = {
        contestant.name: answer_test_prompts(
            contestant, prompts, task, evaluation, store, execution
        )
        for contestant in contestants
    }
    harness = {
        contestant.name: run_lm_eval(contestant, evaluation, store, execution)
        for contestant in contestants
        if takes_harness(contestant, evaluation)
    }
    return measure_performance(
        answers, harness, prompts, contestants, task, evaluation, store, execution
    )
