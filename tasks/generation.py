"""Tasks: answer a chunk of prompts, collect the responses."""

import threading

from prefect import task
from prefect.states import Completed, State

from distillery import generation as library
from distillery.models import cpu_threads
from distillery.stage import Stage, StageResult
from distillery.teacher.transformers import release_models
from schemas.errors import DistilleryError
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef
from schemas.teacher import TeacherSpec
from tasks.artifacts import ProgressReport, counts_markdown, publish_markdown
from tasks.stage import stage_task


@task(name="generate_chunk", task_run_name="prompts from {chunk.start}", persist_result=False)
def generate_chunk(
    chunk: library.Chunk,
    teacher: TeacherSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    progress: ProgressReport,
    stopped: threading.Event,
) -> library.ChunkCounts | State[None]:
    """Return the counts of a chunk whose responses are in the ledger.

    ``stopped`` is set by the first chunk that meets an error which the others would meet too.
    """
    if stopped.is_set():
        return Completed(name="Skipped", message="Another chunk met what this one would meet.")
    try:
        with cpu_threads(execution):
            return library.generate_chunk(
                chunk,
                teacher,
                store,
                on_progress=lambda done, _: progress.update(done, part=chunk.start),
            )
    except DistilleryError:
        stopped.set()
        raise


@stage_task
def collect_responses(
    stage: Stage,
    prompts: DatasetRef,
    teacher: TeacherSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    counts: list[library.ChunkCounts],
) -> tuple[DatasetRef, StageResult]:
    """Return the responses of all chunks as one data set; a local teacher leaves the memory."""
    result = library.collect_responses(stage, prompts, teacher, store, execution, counts)
    release_models()
    publish_markdown(
        "responses",
        counts_markdown("responses", result.manifest.counts),
        "Teacher responses, by state and by where they came from",
    )
    return result.dataset("responses"), result
