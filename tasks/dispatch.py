"""The one way to run a stage that loads a model: here, or on its own deployment."""

import logging
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, cast
from uuid import UUID

from prefect import Flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelling
from prefect.utilities.callables import get_call_parameters
from pydantic_core import to_jsonable_python

from distillery.storage.fingerprint import sha256
from distillery.storage.stage import Stage, StageResult
from distillery.storage.store import Store
from schemas.errors import CrashedError, StageError, TrialPruned
from schemas.execution import ExecutionSpec, StoreSpec
from tasks.stage import PRUNED, look_up_stage, result_of

P = ParamSpec("P")

logger = logging.getLogger("distillery.run")

_POLL_S = 2
# A worker that died, or memory that ran out: the next try goes on from the last checkpoint.
_MOST_CRASHES = 3
# Prefect answers a query with at most 200 runs.
_KEYS_PER_QUERY = 150


def dispatch(
    child: Flow[Concatenate[StoreSpec, ExecutionSpec, P], Any],
    stage_of: Callable[P, Stage],
    store: StoreSpec,
    execution: ExecutionSpec,
) -> Callable[P, StageResult]:
    """Return the function that does the stage of the flow ``child``: it reuses, or makes now.

    The flow and ``stage_of`` take the same inputs by the same names, which mypy checks, and both
    are called with all of them: an input that only one of the two knows is an error, and never
    falls out of the fingerprint.

    Args:
        child: Flow that does the stage; its deployment has the flow's name.
        stage_of: Library function that returns what the child will make.
        store: Where the result will be.
        execution: `mode` says where the child runs.

    Raises:
        TrialPruned: A sweep gives up the trial that this run is.
        StageError: The child ended without sealing the stage, or did not end in time.
    """

    def run(*inputs: P.args, **named: P.kwargs) -> StageResult:
        stage = stage_of(*inputs, **named)
        if found := look_up_stage(stage, store, execution):
            return found
        here = execution.model_copy(update={"mode": "inline"})
        if execution.mode == "inline":
            ended: Any = child(store, here, *inputs, **named, return_state=True)
            result_of(ended)
        else:
            parameters = get_call_parameters(child.fn, (store, here, *inputs), named)
            run_on_pool.with_options(task_run_name=f"run {child.name}")(
                f"{child.name}/{child.name}",
                _jsonable(parameters),
                idempotency_key=_key(stage, store, execution),
                timeout_s=execution.child_timeout_s,
            )
        manifest = Store(store.root).find(stage.name, stage.fingerprint)
        if manifest is None:
            raise StageError(
                f"flow {child.name!r} ended but sealed no {stage.name} "
                f"{stage.fingerprint[:12]!r} in {store.root!r}. Parent and child have to see the "
                "same store: set store.root to a place that both reach."
            )
        return StageResult(manifest, reused=False)

    return run


def _key(stage: Stage, store: StoreSpec, execution: ExecutionSpec) -> str:
    """Return what makes two dispatches the same: fingerprint, store, and the run when forced."""
    forced = f"-{this_run.get_id()}" if execution.forces(stage.name) else ""
    return f"{stage.fingerprint}-{sha256(store.root)[:8]}{forced}"


def _jsonable(parameters: dict[str, Any]) -> dict[str, Any]:
    jsonable: dict[str, Any] = to_jsonable_python(parameters)
    return jsonable


@task(name="run_on_pool", persist_result=False)
def run_on_pool(
    deployment: str, parameters: dict[str, Any], *, idempotency_key: str, timeout_s: float
) -> None:
    """Run ``deployment`` until it completes; a run of it that is under way is waited for.

    The n-th try has the key `{idempotency_key}-{n}`. Prefect returns the same run for the same
    key, also a failed one: so tries that ended (and left no manifest) are passed over, and one
    that is still queued or running, because its parent was killed, is found again. A run that
    crashed, which is infrastructure, is retried here.
    """
    for num_crashes in range(1, _MOST_CRASHES + 1):
        run = cast(
            FlowRun,
            run_deployment(
                deployment,
                parameters=parameters,
                idempotency_key=f"{idempotency_key}-{_next_try(idempotency_key)}",
                timeout=timeout_s,
                poll_interval=_POLL_S,
            ),
        )
        if run.state is None or not run.state.is_final():
            _cancel(run.id)
            raise StageError(
                f"deployment {deployment!r} did not end within execution.child_timeout_s="
                f"{timeout_s:g} and was cancelled. See that a worker serves its work pool, or "
                "raise the limit."
            )
        if run.state.is_completed():
            if run.state.name == PRUNED:
                raise TrialPruned(run.state.message)
            return
        ended = f"{run.state.name}: {(run.state.message or 'no message').rstrip('.')}"
        if not (has_crashed := run.state.is_crashed()):
            break
        logger.warning(
            "%s %r, %d of %d: %s", deployment, run.name, num_crashes, _MOST_CRASHES, ended
        )
    raise (CrashedError if has_crashed else StageError)(
        f"deployment {deployment!r} ended as {ended}. Correct the cause (see the logs of flow run "
        f"{run.name!r}) and rerun; finished stages are kept."
    )


def _next_try(key: str) -> int:
    """Return the number after that of the last try with this key that has ended."""
    first = 0
    with get_client(sync_client=True) as client:
        while True:
            numbers = {f"{key}-{n}": n for n in range(first, first + _KEYS_PER_QUERY)}
            condition = FlowRunFilterIdempotencyKey(any_=list(numbers))
            runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(idempotency_key=condition))
            ended = [
                numbers[run.idempotency_key or ""]
                for run in runs
                if run.state and run.state.is_final()
            ]
            if first + _KEYS_PER_QUERY - 1 not in ended:
                return max(ended, default=first - 1) + 1
            first += _KEYS_PER_QUERY


def _cancel(run_id: UUID) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Cancelling())
