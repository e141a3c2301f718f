"""Generation: the teacher answers the training and validation prompts, chunk by chunk.

A chunk first looks into the ledger, then claims and asks what is missing. The stage is sealed
from the ledger when every prompt has a response in a final state.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from distillery.data.chat import load_messages
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from distillery.teacher import Request, ResponseSchema, Sampling, make_request, teacher_identity
from distillery.teacher.choice import Sample, choose
from distillery.teacher.prompt import TeacherPrompt, prompt_inputs
from distillery.teacher.session import AskedFor, TeacherSession, Totals
from schemas.errors import TeacherError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec

if TYPE_CHECKING:
    from distillery.ledger import Ledger, LedgerRow

LOGIC_VERSION = 4
ANSWERED_SPLITS = ("train", "validation")

CHUNKS_AT_A_TIME = 3
"""A few share one channel to the endpoint, so that its queue does not run dry where one ends and
the next begins. How much is in flight is the channel's business."""

ROWS_PER_BATCH = 50_000
"""Prompts that are asked in one batch: as OpenAI allows."""

_NAMED_PROMPTS = 5
_COLLECT_ROWS = 2048
_COLUMNS = ["prompt_id", "split", "messages"]


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


def generation_stage(prompts: DatasetRef, teacher: TeacherSpec, task: TaskSpec) -> Stage:
    """Return the stage that answers ``prompts``; where and how fast ``teacher`` runs is no part.

    Of the prompts only those that are answered count, and gold rows that are shown as examples: new
    test or selection rows make nobody answer or learn again.
    """
    schema = ResponseSchema.of(teacher, task)
    samples = teacher.samples
    read = ANSWERED_SPLITS if teacher.examples is None else (*ANSWERED_SPLITS, "gold")
    choice = {
        "choice": samples.choice,
        "task_type": task.type,
        "answer_format": task.answer_format,
    }
    return Stage(
        name=StageName.GENERATE_RESPONSES,
        logic_version=LOGIC_VERSION,
        inputs={"prompts": prompts.identities(*read), "teacher": teacher_identity(teacher)},
        spec={
            "teacher": dataclasses.asdict(Sampling.of(teacher)),
            "response_schema": schema and dataclasses.asdict(schema),
            "prompt": prompt_inputs(teacher, task),
            "num_samples": samples.num_samples,
            **(choice if samples.num_samples > 1 else {}),
        },
    )


def rows_per_chunk(teacher: TeacherSpec, execution: ExecutionSpec) -> int:
    """Return how many prompts one chunk has: as many as fill a batch where that takes a day.

    >>> from schemas.teacher import TransformersTeacher
    >>> rows_per_chunk(TransformersTeacher(model="here"), ExecutionSpec(chunk_rows=10))
    10
    """
    rows = execution.chunk_rows
    return max(rows, ROWS_PER_BATCH) if teacher.in_batches else rows


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
    prompts: DatasetRef, teacher: TeacherSpec, task: TaskSpec, store: StoreSpec
) -> TeacherSession:
    """Return the session in which the chunks of ``prompts`` are answered; close it after use."""
    purpose = generation_stage(prompts, teacher, task).fingerprint
    return TeacherSession(teacher, store, purpose=purpose)


def generate_chunk(
    chunk: Chunk,
    session: TeacherSession,
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
    requests_of = _request_maker(chunk.prompts, session.teacher, task, session.store)
    asked_for = AskedFor()
    for batch in _slice(Store(session.store.root), chunk):
        rows = [row for row in batch.to_pylist() if row["split"] in ANSWERED_SPLITS]
        for requests in requests_of(rows):
            asked_for.add(requests)
    return session.answer(asked_for, on_progress=on_progress)


def prompt_requests(
    prompts: DatasetRef, teacher: TeacherSpec, task: TaskSpec, store: StoreSpec
) -> Iterator[Request]:
    """Yield all requests for training and validation prompts, prompt by prompt, every sample."""
    requests_of = _request_maker(prompts, teacher, task, store)
    for batch in Store(store.root).batches(
        prompts, splits=ANSWERED_SPLITS, batch_rows=_COLLECT_ROWS
    ):
        for requests in requests_of(batch.select(_COLUMNS).to_pylist()):
            yield from requests


def collect_responses(
    stage: Stage,
    prompts: DatasetRef,
    teacher: TeacherSpec,
    task: TaskSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    totals: Totals,
) -> StageResult:
    """Return the sealed stage with the output `responses`, one row per prompt, in order.

    Args:
        stage: What :func:`generation_stage` gives.
        prompts: The prompts that were answered.
        teacher: Who answered.
        task: Which sample is chosen may depend on it.
        store: Store and ledger.
        execution: How the run is carried out.
        totals: What the asking took; kept in the manifest as `facts.generation`.

    Raises:
        TeacherError: Some prompts have no response in a final state; the stage stays unsealed.
    """
    from distillery.ledger import Ledger
    from schemas.frames import ResponseFrame, arrow_schema

    def work(attempt: Attempt) -> None:
        with Ledger.open(store) as ledger:
            collection = _Collection(prompts, teacher, task, store, ledger)
            with attempt.row_writer("responses", arrow_schema(ResponseFrame)) as writer:
                for batch in collection.batches(Store(store.root)):
                    writer.write(batch)
        if collection.num_missing:
            raise TeacherError(collection.missing_message(totals))
        attempt.counts |= {
            **collection.by_state,
            "from_ledger": totals.from_ledger,
            "asked": totals.asked,
        }
        # The asking went on before this attempt at collecting.
        attempt.timings_s["asking"] = attempt.timings_s["total"] = totals.seconds or 0.0
        attempt.cost, attempt.currency = totals.cost, totals.currency
        attempt.facts["bill"] = {**collection.bill}
        attempt.facts["generation"] = totals.facts() | {
            "models_reported": [*sorted(collection.models_reported)]
        }

    return run_stage(stage, store, execution, work)


def _request_maker(
    prompts: DatasetRef, teacher: TeacherSpec, task: TaskSpec, store: StoreSpec
) -> Callable[[list[dict[str, Any]]], list[list[Request]]]:
    """Return what makes the requests of rows of ``prompts``: of each row one per sample."""
    identity, sampling = teacher_identity(teacher), Sampling.of(teacher)
    schema = ResponseSchema.of(teacher, task)
    prompt = TeacherPrompt(teacher, task, prompts, store)

    def make(rows: list[dict[str, Any]]) -> list[list[Request]]:
        laid = prompt.around([load_messages(row["messages"]) for row in rows])
        return [
            [
                make_request(
                    identity,
                    messages,
                    sampling,
                    response_schema=schema,
                    sample_index=sample_index,
                    prompt_id=row["prompt_id"],
                )
                for sample_index in range(teacher.samples.num_samples)
            ]
            for row, messages in zip(rows, laid, strict=True)
        ]

    return make


class _Collection:
    """Joins prompts with their responses, batch by batch, and counts on the way."""

    def __init__(
        self,
        prompts: DatasetRef,
        teacher: TeacherSpec,
        task: TaskSpec,
        store: StoreSpec,
        ledger: "Ledger",
    ) -> None:
        self._prompts, self._teacher, self._task, self._ledger = prompts, teacher, task, ledger
        self._requests_of = _request_maker(prompts, teacher, task, store)
        self.by_state: collections.Counter[str] = collections.Counter()
        self.models_reported: set[str] = set()
        self.bill = {"responses": 0, "prompt_tokens": 0, "completion_tokens": 0}
        """What all samples took, over all attempts, from the ledger or not."""
        self.num_missing = 0
        self._first_missing: list[str] = []

    def batches(self, store: Store) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the output; rows without a response are counted and left out."""
        import pandas as pd

        from schemas.frames import ResponseFrame, arrow_schema, check_frame

        schema = arrow_schema(ResponseFrame)
        for batch in store.batches(self._prompts, splits=ANSWERED_SPLITS, batch_rows=_COLLECT_ROWS):
            joined = self._join_all(batch.select(_COLUMNS).to_pylist())
            if joined:
                frame = pd.DataFrame(joined, columns=schema.names)
                frame["agreement"] = frame["agreement"].astype("float64")
                check_frame(frame, ResponseFrame)
                yield pa.RecordBatch.from_pandas(frame, schema=schema, preserve_index=False)

    def _join_all(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        hashes = [[request.request_hash for request in made] for made in self._requests_of(rows)]
        found = self._ledger.get({request_hash for wanted in hashes for request_hash in wanted})
        most = self._teacher.max_new_tokens
        joined = []
        for row, wanted in zip(rows, hashes, strict=True):
            responses = [found[h] for h in wanted if h in found and found[h].is_final(most)]
            if len(responses) == len(wanted):
                joined.append(self._join(row, responses))
                continue
            self.num_missing += 1
            if self.num_missing <= _NAMED_PROMPTS:
                self._first_missing.append(row["prompt_id"])
        return joined

    def _join(self, row: dict[str, Any], responses: list["LedgerRow"]) -> dict[str, Any]:
        """Return one row of the output. Tokens that the endpoint did not count are 0."""
        samples = [Sample(response.state, response.text) for response in responses]
        chosen = choose(samples, self._teacher.samples.choice, task=self._task)
        response = responses[chosen.index]
        self.bill["responses"] += len(responses)
        self.bill["prompt_tokens"] += sum(r.billed_prompt_tokens for r in responses)
        self.bill["completion_tokens"] += sum(r.billed_completion_tokens for r in responses)
        self.by_state[response.state] += 1
        self.models_reported |= {r.model_reported for r in responses if r.model_reported}
        return {
            **{name: row[name] for name in ("prompt_id", "split", "messages")},
            "response": response.text,
            "reasoning": response.reasoning or None,
            "state": response.state,
            "prompt_tokens": response.prompt_tokens or 0,
            "completion_tokens": response.completion_tokens or 0,
            "request_hash": response.request_hash,
            "sample_index": chosen.index,
            "agreement": chosen.agreement,
            "repaired": response.repaired,
        }

    def missing_message(self, totals: Totals) -> str:
        """Return what to say about prompts without a response."""
        num_rows = self.num_missing + self.by_state.total()
        last = f" Last error: {totals.last_error!r}." if totals.last_error else ""
        return (
            f"{self.num_missing} of {num_rows} prompts have no response yet, the first of them "
            f"{self._first_missing}.{last} The {self.by_state.total()} finished responses are "
            "kept. Run again: only the missing ones are asked."
        )


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
