"""Tasks: answer a chunk of prompts, collect the responses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from distillery.models.hardware import cpu_threads
from distillery.storage.stage import Stage, StageResult
from distillery.teacher import collection
from distillery.teacher import generation as library
from distillery.teacher.local import release_models
from distillery.teacher.session import Totals
from distillery.teacher.summary import panel_shares, progress_note, shares_markdown, summary
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.panel import AnyTeacher
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from tasks.artifacts import ProgressReport, pairs_markdown, progress_report, publish_markdown
from tasks.stage import stage_task


@contextmanager
def answering(
    prompts: DatasetRef, teacher: AnyTeacher, task: TaskSpec, store: StoreSpec, num_rows: int
) -> Iterator[tuple[library.AnySession, ProgressReport]]:
    """Yield what the chunks share: the session with the teacher, and the report on its progress.

    Of a panel the rows count that have their response, whoever was asked for it.
    """
    num_responses = num_rows * (1 if teacher.is_panel else teacher.samples.num_samples)
    with (
        library.open_session(prompts, teacher, task, store) as session,
        progress_report("generate_responses", "Teacher responses", num_responses) as progress,
    ):
        progress.update(0, note=lambda: progress_note(session))
        yield session, progress


@task(name="generate_chunk", task_run_name="prompts from {chunk.start}", persist_result=False)
def generate_chunk(
    chunk: library.Chunk,
    shared: tuple[library.AnySession, ProgressReport],
    task: TaskSpec,
    execution: ExecutionSpec,
) -> dict[str, int] | State[None]:
    """Return the number of responses by state, of a chunk whose responses are in the ledger."""
    session, progress = shared
    if session.failed_with is not None:
        return Completed(name="Skipped", message="Another chunk met what this one would meet.")

    def show(num_done: int) -> None:
        progress.update(
            num_done,
            part=chunk.start,
            note=lambda: progress_note(session),
            num_free=0 if session.teacher.is_panel else session.totals.from_ledger,
        )

    with cpu_threads(execution):
        return library.generate_chunk(chunk, session, task, on_progress=show)


@stage_task
def collect_responses(
    stage: Stage,
    prompts: DatasetRef,
    teacher: AnyTeacher,
    task: TaskSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    totals: Totals,
) -> tuple[DatasetRef, StageResult]:
    """Return the responses of all chunks as one data set; a local teacher leaves the memory."""
    result = collection.collect_responses(stage, prompts, teacher, task, store, execution, totals)
    release_models()
    facts: Any = result.manifest.facts["generation"]
    took = summary(result.manifest.counts, facts, teacher)
    said = pairs_markdown("teacher responses", took)
    if (shares := panel_shares(result.manifest)) is not None:
        said += "\n\n" + shares_markdown(shares)
    publish_markdown(
        "responses",
        said,
        "Teacher responses by state, where they came from, and what they cost",
    )
    return result.dataset("responses"), result
