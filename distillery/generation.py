"""Generation: the teacher answers the training and validation prompts, chunk by chunk.

A chunk first looks into the ledger, then claims and asks what is missing. The stage is sealed
from the ledger when every prompt has a response in a final state.
"""

import collections
import dataclasses
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from distillery.fingerprint import sha256
from distillery.stage import Attempt, Stage, StageResult, run_stage
from distillery.store import Store
from distillery.teacher import (
    Request,
    Response,
    Sampling,
    make_request,
    open_teacher,
    teacher_identity,
)
from distillery.teacher.protocol import request_body
from schemas.errors import TeacherError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef
from schemas.teacher import TeacherSpec

if TYPE_CHECKING:
    from distillery.ledger import Ledger, LedgerRow

logger = logging.getLogger(__name__)

LOGIC_VERSION = 1
ANSWERED_SPLITS = ("train", "validation")

# A run that was killed keeps others from its requests for so long.
CLAIM_TTL_S = 60.0
_POLL_S = 0.5
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


class ChunkCounts(BaseModel):
    """What became of the rows of a chunk; `by_state` and `unfinished` add up to `num_rows`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_rows: int
    """Rows of the chunk."""

    from_ledger: int
    """Rows answered without asking the teacher for them."""

    asked: int
    """Requests that the teacher was asked, answered or not."""

    by_state: dict[str, int]
    """Rows by the state of their response."""

    unfinished: int
    """Rows that got no response in all attempts."""

    first_error: str | None = None
    """What went wrong with the first of these."""


def generation_stage(prompts: DatasetRef, teacher: TeacherSpec) -> Stage:
    """Return the stage that answers ``prompts``; where and how fast ``teacher`` runs is no part."""
    return Stage(
        name=StageName.GENERATE_RESPONSES,
        logic_version=LOGIC_VERSION,
        inputs={"prompts": prompts.fingerprint, "teacher": teacher_identity(teacher)},
        spec={"teacher": dataclasses.asdict(Sampling.of(teacher))},
    )


def plan_chunks(prompts: DatasetRef, chunk_rows: int, store: StoreSpec) -> list[Chunk]:
    """Return chunks of up to ``chunk_rows`` training and validation prompts, in order.

    Only the column `split` is read.
    """
    chunks: list[Chunk] = []
    start = stop = num_rows = position = 0
    for batch in Store(store.root).dataset(prompts).to_batches(columns=["split"]):
        for split in batch.column("split").to_pylist():
            position += 1
            if split not in ANSWERED_SPLITS:
                continue
            if num_rows == chunk_rows:
                chunks.append(Chunk(prompts=prompts, start=start, stop=stop, num_rows=num_rows))
                num_rows = 0
            if num_rows == 0:
                start = position - 1
            stop, num_rows = position, num_rows + 1
    if num_rows:
        chunks.append(Chunk(prompts=prompts, start=start, stop=stop, num_rows=num_rows))
    return chunks


def generate_chunk(
    chunk: Chunk,
    teacher: TeacherSpec,
    store: StoreSpec,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> ChunkCounts:
    """Have the rows of ``chunk`` answered and return what became of them.

    What the ledger has is not asked. What another run is asking just now is waited for, or taken
    over when its claim expires. Every response is committed as it arrives, so nothing is lost
    when this is killed. Rows with the same messages share one request.

    Args:
        chunk: Which rows.
        teacher: Who answers.
        store: Where prompts and ledger are.
        on_progress: Called with the rows done so far and those in all.

    Raises:
        RecipeError: The teacher cannot be used as the recipe describes it.
        TeacherError: The teacher cannot answer anything.
        StoreError: Store or ledger cannot be read or written.
    """
    requests: dict[str, Request] = {}
    num_rows: collections.Counter[str] = collections.Counter()
    for request in _chunk_requests(chunk, teacher, Store(store.root)):
        requests.setdefault(request.request_hash, request)
        num_rows[request.request_hash] += 1
    from distillery.ledger import Ledger

    with Ledger.open(store) as ledger:
        return answer_requests(requests, num_rows, teacher, ledger, on_progress=on_progress)


def answer_requests(
    requests: dict[str, Request],
    num_rows: collections.Counter[str],
    teacher: TeacherSpec,
    ledger: "Ledger",
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> ChunkCounts:
    """Bring ``requests`` to a response in the ledger and return what became of their rows.

    Args:
        requests: By their hash.
        num_rows: How many rows wait for each.
        teacher: Who answers what the ledger does not have.
        ledger: Where responses are looked up and committed.
        on_progress: Called with the rows done so far and those in all.
    """
    asking = _Asking(teacher, ledger, requests, num_rows, on_progress)
    asking.run()
    return asking.counts()


class _Asking:
    """The requests of one chunk on their way to a response."""

    def __init__(
        self,
        teacher: TeacherSpec,
        ledger: "Ledger",
        requests: dict[str, Request],
        num_rows: collections.Counter[str],
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self._teacher = open_teacher(teacher)
        self._identity = self._teacher.identity
        self._ledger = ledger
        self._requests = requests
        self._num_rows = num_rows
        self._on_progress = on_progress
        self._states: dict[str, str] = {}
        self._asked: set[str] = set()
        self._num_answered = 0
        self._num_done = 0
        self._first_error: str | None = None
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"

    def run(self) -> None:
        """Bring every request to a final state, or to the end of its attempts."""
        waits = 0
        while True:
            self._look_up()
            left = [h for h in self._requests if h not in self._states and h not in self._asked]
            if not left:
                return
            if claimed := self._ledger.claim(left, self._owner, CLAIM_TTL_S):
                with self._ledger.holding(self._owner, CLAIM_TTL_S):
                    self._ask([self._requests[h] for h in left if h in claimed])
                continue
            if waits == 0:
                logger.info("waiting for %d requests that another run is asking", len(left))
            waits += 1
            time.sleep(_POLL_S)

    def _look_up(self) -> None:
        """Take over the states of responses that are in the ledger by now."""
        missing = [h for h in self._requests if h not in self._states]
        for request_hash, row in self._ledger.get(missing).items():
            self._note(request_hash, row.state)

    def _ask(self, requests: list[Request]) -> None:
        """Ask the teacher for what this owner has claimed."""
        self._asked.update(request.request_hash for request in requests)
        unfinished = self._teacher.answer(requests, self._commit)
        if unfinished and self._first_error is None:
            self._first_error = unfinished[0].error

    def _commit(self, response: Response) -> None:
        self._ledger.commit(_ledger_row(self._identity, response))
        self._num_answered += 1
        self._note(response.request.request_hash, response.state)

    def _note(self, request_hash: str, state: str) -> None:
        self._states[request_hash] = state
        self._num_done += self._num_rows[request_hash]
        if self._on_progress is not None:
            self._on_progress(self._num_done, self._num_rows.total())

    def counts(self) -> ChunkCounts:
        """Return what became of the rows."""
        by_state: collections.Counter[str] = collections.Counter()
        for request_hash, state in self._states.items():
            by_state[state] += self._num_rows[request_hash]
        return ChunkCounts(
            num_rows=self._num_rows.total(),
            from_ledger=by_state.total() - self._num_answered,
            asked=len(self._asked),
            by_state=dict(by_state),
            unfinished=self._num_rows.total() - by_state.total(),
            first_error=self._first_error,
        )


def collect_responses(
    stage: Stage,
    prompts: DatasetRef,
    teacher: TeacherSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    chunks: Sequence[ChunkCounts],
) -> StageResult:
    """Return the sealed stage with the output `responses`, one row per prompt, in order.

    Raises:
        TeacherError: Some prompts have no response in a final state; the stage stays unsealed.
    """
    from distillery.ledger import Ledger
    from schemas.frames import ResponseFrame, arrow_schema

    def work(attempt: Attempt) -> None:
        with Ledger.open(store) as ledger:
            collection = _Collection(teacher, ledger)
            batches = collection.batches(Store(store.root), prompts)
            attempt.write_rows("responses", batches, arrow_schema(ResponseFrame))
        if collection.num_missing:
            raise TeacherError(collection.missing_message(chunks))
        attempt.counts |= {
            **collection.by_state,
            "from_ledger": sum(chunk.from_ledger for chunk in chunks),
            "asked": sum(chunk.asked for chunk in chunks),
        }
        attempt.facts["models_reported"] = [*sorted(collection.models_reported)]

    return run_stage(stage, store, execution, work)


class _Collection:
    """Joins prompts with their responses, batch by batch, and counts on the way."""

    def __init__(self, teacher: TeacherSpec, ledger: "Ledger") -> None:
        self._identity = teacher_identity(teacher)
        self._sampling = Sampling.of(teacher)
        self._ledger = ledger
        self.by_state: collections.Counter[str] = collections.Counter()
        self.models_reported: set[str] = set()
        self.num_missing = 0
        self._first_missing: list[str] = []

    def batches(self, store: Store, prompts: DatasetRef) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the output; rows without a response are counted and left out."""
        import pandas as pd

        from schemas.frames import ResponseFrame, arrow_schema, check_frame

        schema = arrow_schema(ResponseFrame)
        for batch in store.batches(prompts, splits=ANSWERED_SPLITS, batch_rows=_COLLECT_ROWS):
            rows = batch.select(_COLUMNS).to_pylist()
            hashes = [
                _row_request(self._identity, self._sampling, row).request_hash for row in rows
            ]
            responses = self._ledger.get(hashes)
            pairs = zip(rows, map(responses.get, hashes), strict=True)
            if joined := [self._join(row, response) for row, response in pairs if response]:
                frame = pd.DataFrame(joined, columns=schema.names)
                check_frame(frame, ResponseFrame)
                yield pa.RecordBatch.from_pandas(frame, schema=schema, preserve_index=False)
            missing = [row for row, h in zip(rows, hashes, strict=True) if h not in responses]
            self.num_missing += len(missing)
            room = _NAMED_PROMPTS - len(self._first_missing)
            self._first_missing += [row["prompt_id"] for row in missing[:room]]

    def _join(self, row: dict[str, Any], response: "LedgerRow") -> dict[str, Any]:
        """Return one row of the output. Tokens that the endpoint did not count are 0."""
        self.by_state[response.state] += 1
        if response.model_reported is not None:
            self.models_reported.add(response.model_reported)
        return {
            **row,
            "response": response.text,
            "state": response.state,
            "prompt_tokens": response.prompt_tokens or 0,
            "completion_tokens": response.completion_tokens or 0,
            "request_hash": response.request_hash,
        }

    def missing_message(self, chunks: Sequence[ChunkCounts]) -> str:
        """Return what to say about prompts without a response."""
        num_rows = self.num_missing + self.by_state.total()
        errors = [chunk.first_error for chunk in chunks if chunk.first_error is not None]
        last = f" Last error: {errors[-1]!r}." if errors else ""
        return (
            f"{self.num_missing} of {num_rows} prompts have no response yet, the first of them "
            f"{self._first_missing}.{last} The {self.by_state.total()} finished responses are "
            "kept. Run again: only the missing ones are asked."
        )


def _chunk_requests(chunk: Chunk, teacher: TeacherSpec, store: Store) -> Iterator[Request]:
    """Yield the requests of a chunk, row by row; only its row groups are read."""
    identity, sampling = teacher_identity(teacher), Sampling.of(teacher)
    for batch in _slice(store, chunk):
        for row in batch.to_pylist():
            if row["split"] in ANSWERED_SPLITS:
                yield _row_request(identity, sampling, row)


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


def _row_request(identity: dict[str, Any], sampling: Sampling, row: dict[str, Any]) -> Request:
    messages = json.loads(row["messages"])
    return make_request(identity, messages, sampling, prompt_id=row["prompt_id"])


def _ledger_row(identity: dict[str, Any], response: Response) -> "LedgerRow":
    from distillery.ledger import LedgerRow

    request = response.request
    body = request_body(request.messages, request.sampling, request.sample_index)
    return LedgerRow(
        request_hash=request.request_hash,
        teacher_id=sha256(identity),
        teacher=json.dumps(identity, sort_keys=True),
        request=json.dumps(body, sort_keys=True),
        state=response.state,
        text=response.text,
        finish_reason=response.finish_reason,
        prompt_tokens=response.prompt_tokens,
        completion_tokens=response.completion_tokens,
        model_reported=response.model_reported,
        latency_s=response.latency_s,
        attempts=response.attempts,
        error=response.error,
    )
