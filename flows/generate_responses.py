"""Flow: the teacher answers the training and validation prompts."""

from typing import Any

from prefect import flow, unmapped
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import opaque

from distillery.teacher.generation import (
    CHUNKS_AT_A_TIME,
    generation_stage,
    plan_chunks,
    rows_per_chunk,
)
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.panel import AnyTeacher
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from tasks.fan_out import answer_on_ray
from tasks.generation import answering, collect_responses, generate_chunk
from tasks.stage import look_up_stage

_FEW_AT_A_TIME: Any = ThreadPoolTaskRunner(max_workers=CHUNKS_AT_A_TIME)


@flow(name="generate-responses", flow_run_name="{task.name}", task_runner=_FEW_AT_A_TIME)
def generate_responses(
    store: StoreSpec,
    execution: ExecutionSpec,
    prompts: DatasetRef,
    teacher: AnyTeacher,
    task: TaskSpec,
) -> DatasetRef:
    """Return the responses to the training and validation prompts, each row in a final state.

    Responses are in the ledger as they arrive: a run that was killed asks only for the rest.
    """
    stage = generation_stage(prompts, teacher, task)
    if found := look_up_stage(stage, store, execution):
        return found.dataset("responses")
    chunks = plan_chunks(prompts, rows_per_chunk(teacher, execution), store)
    if execution.ray is not None:
        totals = answer_on_ray(chunks, prompts, teacher, task, store, execution.ray)
    else:
        num_rows = sum(chunk.num_rows for chunk in chunks)
        with answering(prompts, teacher, task, store, num_rows) as shared:
            futures = generate_chunk.map(
                chunks, unmapped(opaque(shared)), unmapped(task), unmapped(execution)
            )
            wait(futures)
            futures.result()
        totals = shared[0].totals
    return collect_responses(stage, prompts, teacher, task, store, execution, totals)
