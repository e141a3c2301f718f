"""Flow: the teacher answers the training and validation prompts."""

import threading

from prefect import flow, unmapped
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import opaque

from distillery.generation import generation_stage, plan_chunks
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef
from schemas.teacher import TeacherSpec
from tasks.artifacts import progress_report
from tasks.generation import collect_responses, generate_chunk
from tasks.stage import look_up_stage


# One chunk at a time: `teacher.concurrency` is what an endpoint bears, and a wrong key costs one
# request. A chunk is large enough to keep the endpoint busy.
@flow(name="generate-responses", task_runner=ThreadPoolTaskRunner(max_workers=1))
def generate_responses(
    prompts: DatasetRef,
    teacher: TeacherSpec,
    store: StoreSpec = StoreSpec(),
    execution: ExecutionSpec = ExecutionSpec(),
) -> DatasetRef:
    """Return the responses to the training and validation prompts, each row in a final state.

    Responses are in the ledger as they arrive: a run that was killed asks only for the rest.
    """
    stage = generation_stage(prompts, teacher)
    if found := look_up_stage(stage, store, execution):
        return found.dataset("responses")
    chunks = plan_chunks(prompts, execution.chunk_rows, store)
    num_rows = sum(chunk.num_rows for chunk in chunks)
    with progress_report("generate_responses", "Prompts answered", num_rows) as progress:
        futures = generate_chunk.map(
            chunks,
            unmapped(teacher),
            unmapped(store),
            unmapped(execution),
            unmapped(opaque(progress)),
            unmapped(opaque(threading.Event())),
        )
        wait(futures)
    return collect_responses(stage, prompts, teacher, store, execution, futures.result())
