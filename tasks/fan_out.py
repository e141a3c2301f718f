"""Chunks of prompts on a Ray cluster: each worker has a session of its own with the teacher."""

import os
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from prefect import task, unmapped
from prefect.runtime import flow_run

from distillery.teacher import generation as library
from distillery.teacher.session import Totals
from schemas.execution import RaySpec, StoreSpec
from schemas.panel import AnyTeacher
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from tasks.artifacts import progress_report


class Answered(NamedTuple):
    """What a worker has done by the end of a chunk."""

    start: int
    """Where the chunk starts."""

    num_responses: int
    """Responses of the chunk."""

    worker: str
    """Host and process."""

    totals: Totals
    """What the worker has done so far, over all its chunks."""


def answer_on_ray(
    chunks: Sequence[library.Chunk],
    prompts: DatasetRef,
    teacher: AnyTeacher,
    task: TaskSpec,
    store: StoreSpec,
    ray: RaySpec,
) -> Totals:
    """Have ``chunks`` answered on the cluster of ``ray``, and return what that took.

    Raises:
        TeacherError: A chunk could not be answered; what others answer meanwhile is kept.
    """
    from prefect_ray import RayTaskRunner

    settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    runner = RayTaskRunner(
        address=ray.address, init_kwargs=settings | {"num_cpus": ray.num_workers}
    )
    latest: dict[str, Totals] = {}
    num_rows = sum(chunk.num_rows for chunk in chunks)
    with runner, progress_report("generate_responses", "Teacher responses", num_rows) as progress:
        shared = {"prompts": prompts, "teacher": teacher, "task": task, "store": store}
        inputs: dict[str, Any] = {name: unmapped(value) for name, value in shared.items()}
        inputs |= {"chunk": chunks, "run": unmapped(str(flow_run.get_id()))}
        for future in runner.map(answer_chunk, inputs):
            answered: Answered = future.result()
            progress.update(answered.num_responses, part=answered.start)
            before = latest.get(answered.worker, Totals())
            latest[answered.worker] = max(before, answered.totals, key=_num_handled)
    return Totals.of_all(latest.values())


def _num_handled(totals: Totals) -> int:
    return totals.asked + totals.from_ledger


@task(name="answer_chunk", task_run_name="prompts from {chunk.start}", persist_result=False)
def answer_chunk(
    chunk: library.Chunk,
    prompts: DatasetRef,
    teacher: AnyTeacher,
    task: TaskSpec,
    store: StoreSpec,
    run: str,
) -> Answered:
    """Return what this worker has done for ``run``, once the responses of ``chunk`` are kept."""
    session = library.workers_session(run, prompts, teacher, task, store)
    by_state = library.generate_chunk(chunk, session, task)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    return Answered(chunk.start, sum(by_state.values()), worker, session.totals)
