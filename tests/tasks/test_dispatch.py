"""What a dispatched flow takes is what its stage is identified by, name by name."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from prefect import Flow

from distillery.evaluation.performance import performance_stage
from distillery.objectives.soft.stage import scoring_stage
from distillery.storage.stage import Stage
from distillery.teacher.generation import generation_stage
from distillery.training import training_stage
from flows.evaluate_models import evaluate_models
from flows.generate_responses import generate_responses
from flows.score_soft_targets import score_soft_targets
from flows.train_student import train_student
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from tasks.dispatch import dispatch

PAIRS: list[tuple[Flow[..., Any], Callable[..., Stage]]] = [
    (generate_responses, generation_stage),
    (score_soft_targets, scoring_stage),
    (train_student, training_stage),
    (evaluate_models, performance_stage),
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
