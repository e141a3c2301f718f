"""What all stage tasks share: the state `Cached` for reused results, and retries."""

import functools
import logging
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from prefect import task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from distillery.storage.stage import Stage, StageResult, find_stage
from schemas.errors import TeacherError, TrialPruned
from schemas.execution import ExecutionSpec, StoreSpec

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("distillery.run")

# What would fail the same way again is not retried, and attempts at a row belong to the
# ledger. What is left is infrastructure: a lost connection to the store or the ledger.
_RETRIES = 2
_RETRY_DELAY_S = 5
_LOST = re.compile(r"^(Endpoint|Server|Client)?(Connect\w*|Disconnected|ReadTimeout)\w*Error$")
"""Names under which botocore and aiohttp raise it; their classes share no base."""


def _is_infrastructure(_task: object, _run: object, state: State[object]) -> bool:
    """Return whether a lost connection is behind the failure."""
    error = state.result(raise_on_failure=False)
    while isinstance(error, BaseException) and not isinstance(error, TeacherError):
        if isinstance(error, ConnectionError | TimeoutError) or _LOST.search(type(error).__name__):
            return True
        error = error.__cause__
    return False


def stage_task(function: Callable[P, tuple[R, StageResult]]) -> Callable[P, R]:
    """Return ``function`` as a task whose run ends `Cached` when the store had the result.

    ``function`` returns what flows on and the stage's result. Prefect keeps no copy of either: the
    manifest in the store is the one cache.
    """

    @task(
        name=function.__name__,
        task_run_name=function.__name__,
        retries=_RETRIES,
        retry_delay_seconds=_RETRY_DELAY_S,
        retry_condition_fn=_is_infrastructure,
        persist_result=False,
    )
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R | State[R]:
        try:
            return ended(*function(*args, **kwargs))
        except TrialPruned as given_up:
            return pruned(given_up)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return cast("R", result_of(run(*args, **kwargs, return_state=True)))

    return call


PRUNED = "Pruned"
"""State of a run whose trial was given up by its sweep: nothing has failed."""


def pruned(given_up: TrialPruned) -> State[Any]:
    """Return the state `Pruned`, in which a run ends that its sweep gives up."""
    return Completed(name=PRUNED, message=str(given_up))


def result_of(state: State[Any]) -> Any:
    """Return the result of a run that ended in ``state``.

    Raises:
        TrialPruned: It was given up.
    """
    if state.name == PRUNED:
        raise TrialPruned(state.message)
    return state.result()


def ended(value: R, result: StageResult) -> R | State[R]:
    """Return ``value``, in the state `Cached` when the stage's result was reused."""
    logger.info(result.sentence)
    if not result.reused:
        return value
    message = f"{result.manifest.stage} {result.manifest.fingerprint[:12]} was in the store."
    return Completed(name="Cached", message=message, data=value)


@task(name="look_up_stage", task_run_name="look up {stage.name}", persist_result=False)
def _look_up(
    stage: Stage, store: StoreSpec, execution: ExecutionSpec
) -> StageResult | State[StageResult] | None:
    found = find_stage(stage, store, execution)
    return ended(found, found) if found else None


def look_up_stage(stage: Stage, store: StoreSpec, execution: ExecutionSpec) -> StageResult | None:
    """Return the finished result of ``stage``, or None when it has to be done."""
    state = _look_up(stage, store, execution, return_state=True)
    return cast("StageResult | None", state.result())
