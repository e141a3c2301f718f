"""Generation: the teacher answers the training and validation prompts, chunk by chunk.

A chunk first looks into the ledger, then claims and asks what is missing. The stage is sealed
from the ledger when every prompt has a response in a final state.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from distillery.storage.stage import Stage
from distillery.storage.store import Store
from distillery.teacher import Request, teacher_identity
from distillery.teacher.panel.rounds import panel_inputs
from distillery.teacher.panel.session import PanelSession
from distillery.teacher.requests import Asker, asking_inputs
from distillery.teacher.session import AskedFor, TeacherSession
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.panel import AnyTeacher, PanelTeacher
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec

LOGIC_VERSION = 5
ANSWERED_SPLITS = ("train", "validation")

CHUNKS_AT_A_TIME = 3
"""A few share one channel to the endpoint, so that its queue does not run dry where one ends and
the next begins. How much is in flight is the channel's business."""

ROWS_PER_BATCH = 50_000
"""Prompts that are asked in one batch: as OpenAI allows."""

AnySession = TeacherSession | PanelSession
"""Who answers, with a ledger and a budget."""

_workers_sessions: dict[str, AnySession] = {}

_BATCH_ROWS = 2048
_COLUMNS = ["prompt_id", "split", "messages", "slices"]


class Chunk(BaseModel):
    """A run of prompts that one task has answered."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    prompts: DatasetRef
    """The data set."""

    start: int
    """Position of the first row, counted over all splits."""

    stop: int
    """Position after the last row."""

    num_rows: int
    """Rows between them that are answered, those of `train` and `validation`."""


def generation_stage(prompts: DatasetRef, teacher: AnyTeacher, task: TaskSpec) -> Stage:
    """Return the stage that answers ``prompts``; where and how fast ``teacher`` runs is no part.

    Of the prompts only those that are answered count, and gold rows that are shown as examples: new
    test or selection rows make nobody answer or learn again.
    """
    if teacher.is_panel:
        return _panel_stage(prompts, teacher, task)
    return Stage(
        name=StageName.GENERATE_RESPONSES,
        logic_version=LOGIC_VERSION,
        inputs={
            "prompts": prompts.identities(*_read_splits(teacher)),
            "teacher": teacher_identity(teacher),
        },
        spec=asking_inputs(teacher, task),
    )


def rows_per_chunk(teacher: AnyTeacher, execution: ExecutionSpec) -> int:
    """Return how many prompts one chunk has: as many as fill a batch where that takes a day.

    >>> from schemas.teacher import TransformersTeacher
    >>> rows_per_chunk(TransformersTeacher(model="here"), ExecutionSpec(chunk_rows=10))
    10
    """
    rows = execution.chunk_rows
    return max(rows, ROWS_PER_BATCH) if teacher.in_batches else rows


def _panel_stage(prompts: DatasetRef, panel: PanelTeacher, task: TaskSpec) -> Stage:
    read = {split for each in panel.teachers for split in _read_splits(each.teacher)}
    inputs: dict[str, Any] = {
        "prompts": prompts.identities(*sorted(read)),
        "teacher": teacher_identity(panel),
    }
    if panel.reads_columns:
        inputs["columns"] = prompts.fingerprint  # the hashes of the splits are of what is asked
    return Stage(
        name=StageName.GENERATE_RESPONSES,
        logic_version=LOGIC_VERSION,
        inputs=inputs,
        spec=panel_inputs(panel, task),
    )


def _read_splits(teacher: TeacherSpec) -> tuple[str, ...]:
    """Return the splits whose rows decide what a teacher is asked."""
    return ANSWERED_SPLITS if teacher.examples is None else (*ANSWERED_SPLITS, "gold")


def plan_chunks(prompts: DatasetRef, chunk_rows: int, store: StoreSpec) -> list[Chunk]:
    """Return chunks of up to ``chunk_rows`` training and validation prompts, in order.

    Only the column `split` is read.
    """
    found, num_rows = [np.empty(0, np.int64)], 0
    for batch in Store(store.root).dataset(prompts).to_batches(columns=["split"]):
        is_answered = pc.is_in(batch.column("split"), value_set=pa.array(ANSWERED_SPLITS))
        found.append(num_rows + np.flatnonzero(is_answered))
        num_rows += batch.num_rows
    answered = np.concatenate(found)
    parts = [answered[i : i + chunk_rows] for i in range(0, len(answered), chunk_rows)]
    return [
        Chunk(prompts=prompts, start=part[0], stop=part[-1] + 1, num_rows=len(part))
        for part in parts
    ]


def open_session(
    prompts: DatasetRef, teacher: AnyTeacher, task: TaskSpec, store: StoreSpec
) -> AnySession:
    """Return the session in which the chunks of ``prompts`` are answered; close it after use."""
    purpose = generation_stage(prompts, teacher, task).fingerprint
    if teacher.is_panel:
        return PanelSession(teacher, task, prompts, store, purpose=purpose)
    return TeacherSession(teacher, store, purpose=purpose)


def workers_session(
    run: str, prompts: DatasetRef, teacher: AnyTeacher, task: TaskSpec, store: StoreSpec
) -> AnySession:
    """Return the one session that this process has for ``run``; it ends with the process.

    For workers of a cluster, which live as long as they like and answer one chunk at a time.
    """
    if run not in _workers_sessions:
        _workers_sessions[run] = open_session(prompts, teacher, task, store)
    return _workers_sessions[run]


def generate_chunk(
    chunk: Chunk,
    session: AnySession,
    task: TaskSpec,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Have the rows of ``chunk`` answered and return the number of responses by state.

    What the ledger has is not asked. What another run is asking just now is waited for, or taken
    over when that run dies. Every response is committed as it arrives, so nothing is lost when
    this is killed. Rows with the same messages share one request.

    Args:
        chunk: Which rows.
        session: Who answers; shared by all chunks.
        task: What the responses have to look like.
        on_progress: Called with the number of rows that have their response.

    Raises:
        RecipeError: The teacher cannot be used as the recipe describes it.
        TeacherError: The teacher cannot answer anything.
        BudgetError: A cap of `teacher.budget` is reached.
        StoreError: Store or ledger cannot be read or written.
    """
    rows = [
        row
        for batch in _slice(Store(session.store.root), chunk)
        for row in batch.to_pylist()
        if row["split"] in ANSWERED_SPLITS
    ]
    if isinstance(session, PanelSession):
        return session.answer_rows(rows, on_progress=on_progress)
    asked_for = AskedFor()
    for requests in Asker(session.teacher, task, chunk.prompts, session.store).requests(rows):
        asked_for.add(requests)
    return session.answer(asked_for, on_progress=on_progress)


def prompt_requests(
    prompts: DatasetRef, teacher: TeacherSpec, task: TaskSpec, store: StoreSpec
) -> Iterator[Request]:
    """Yield all requests for training and validation prompts, prompt by prompt, every sample."""
    asker = Asker(teacher, task, prompts, store)
    for rows in prompt_rows(prompts, store):
        for requests in asker.requests(rows):
            yield from requests


def prompt_rows(prompts: DatasetRef, store: StoreSpec) -> Iterator[list[dict[str, Any]]]:
    """Yield the training and validation prompts, batch by batch."""
    batches = Store(store.root).batches(prompts, splits=ANSWERED_SPLITS, batch_rows=_BATCH_ROWS)
    for batch in batches:
        yield batch.select(_COLUMNS).to_pylist()


def _slice(store: Store, chunk: Chunk) -> Iterator[pa.RecordBatch]:
    """Yield the rows from ``chunk.start`` to ``chunk.stop``.

    Row groups outside are skipped by their footers: with a thousand chunks, reading the data set
    up to each chunk would read it five hundred times.
    """
    position = 0
    for fragment in store.dataset(chunk.prompts).get_fragments():
        for group in fragment.split_by_row_group():
            num_rows = group.row_groups[0].num_rows
            first, last = chunk.start - position, chunk.stop - position
            position += num_rows
            if first >= num_rows or last <= 0:
                continue
            table = group.to_table(columns=_COLUMNS)
            first, last = max(first, 0), min(last, num_rows)
            yield from table.slice(first, last - first).to_batches()
