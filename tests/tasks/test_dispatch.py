"""What a dispatched flow takes is what its stage is identified by, name by name."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow, flow
from prefect.client.schemas.objects import State

from distillery.evaluation.performance import performance_stage
from distillery.objectives.soft.stage import scoring_stage
from distillery.storage.stage import Stage, StageResult
from distillery.sweep.trial import trial_stage
from distillery.teacher.generation import generation_stage
from distillery.training import training_stage
from distillery.training.pruning import pruning_stage
from flows.evaluate_models import evaluate_models
from flows.generate_responses import generate_responses
from flows.prune_student import prune_student
from flows.score_soft_targets import score_soft_targets
from flows.train_student import train_student
from flows.try_student import try_student
from schemas.errors import TrialPruned
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from tasks.dispatch import dispatch
from tasks.stage import pruned, stage_task

PAIRS: list[tuple[Flow[..., Any], Callable[..., Stage]]] = [
    (generate_responses, generation_stage),
    (score_soft_targets, scoring_stage),
    (train_student, training_stage),
    (evaluate_models, performance_stage),
    (prune_student, pruning_stage),
    (try_student, trial_stage),
]


@pytest.mark.parametrize(("flow", "stage"), PAIRS, ids=lambda value: getattr(value, "name", None))
def test_flow_and_stage_take_the_same_inputs(
    flow: Flow[..., Any], stage: Callable[..., Stage]
) -> None:
    first, second, *inputs = inspect.signature(flow.fn).parameters.values()
    assert (first.name, second.name) == ("store", "execution")
    taken = [(item.name, item.annotation, item.default) for item in inputs]
    expected = inspect.signature(stage).parameters.values()
    assert taken == [(item.name, item.annotation, item.default) for item in expected]


def test_an_input_that_the_stage_does_not_know_is_an_error() -> None:
    def child(store: StoreSpec, execution: ExecutionSpec, rows: str, extra: str = "") -> None: ...

    def stage_of(rows: str) -> Stage:
        return Stage(StageName.LOAD_PROMPTS, 1, inputs={"rows": rows}, spec={})

    run: Callable[..., Any] = dispatch(Flow(child), stage_of, StoreSpec(), ExecutionSpec())
    with pytest.raises(TypeError, match="unexpected keyword argument 'extra'"):
        run("a", extra="b")


def test_a_child_that_is_given_up_says_so_and_has_not_failed(
    tmp_path: Path, prefect_server: str
) -> None:
    @stage_task
    def train() -> tuple[str, StageResult]:
        raise TrialPruned("worse than others")

    @flow
    def child(store: StoreSpec, execution: ExecutionSpec) -> State[Any] | None:
        try:
            train()
        except TrialPruned as given_up:
            return pruned(given_up)
        return None

    def stage_of() -> Stage:
        return Stage(StageName.TRAIN_STUDENT, 1, inputs={}, spec={})

    @flow
    def parent() -> str:
        store = StoreSpec(root=str(tmp_path))
        run: Callable[..., Any] = dispatch(child, stage_of, store, ExecutionSpec())
        with pytest.raises(TrialPruned, match="worse than others"):
            run()
        return "went on"

    assert parent() == "went on"
    state: Any = child(StoreSpec(), ExecutionSpec(), return_state=True)
    assert (state.name, state.message, state.is_failed()) == ("Pruned", "worse than others", False)
