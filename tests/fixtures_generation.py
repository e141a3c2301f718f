"""Prompts in a store, and the stage in which a scripted endpoint answers them."""

import collections
import functools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from distillery.data.chat import Message, content_hash, dump_messages
from distillery.ledger import Ledger, LedgerRow
from distillery.storage.fingerprint import canonical_json, sha256
from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from distillery.teacher.collection import collect_responses
from distillery.teacher.generation import (
    generate_chunk,
    generation_stage,
    open_session,
    plan_chunks,
)
from distillery.teacher.http.openai import EndpointTeacher
from distillery.teacher.session import AskedFor, Totals
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.frames import PromptFrame, arrow_schema
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from schemas.teacher import OpenAITeacher
from tests.stub_endpoint import StubEndpoint

TASK = TaskSpec(name="questions", type="classification")

Row = tuple[str, str] | tuple[str, str, str]


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts of milliseconds, where a run makes them of half a second."""
    quick = functools.partial(EndpointTeacher, backoff_s=0.01)
    monkeypatch.setattr("distillery.teacher.http.openai.EndpointTeacher", quick)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request is sent because an answer comes late: on a busy machine any of them may.

    The first one goes alone until it is answered.
    """
    monkeypatch.setattr("distillery.teacher.http.gate._REFUSED_WITHIN_S", 60.0)


def write_prompts(store: StoreSpec, rows: list[Row], *, batch: int = 4) -> DatasetRef:
    """Store prompts given as (split, content) or (split, content, reference).

    They are p0, p1, ... in row groups of ``batch`` rows.
    """
    schema = arrow_schema(PromptFrame)
    full = []
    for n, (split, content, *reference) in enumerate(rows):
        asked = [Message(role="user", content=content)]
        right = canonical_json(reference) if reference else None
        asks = content_hash(asked)
        full.append((f"p{n}", split, dump_messages(asked), right, asks, asks, None, n + 1))

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(full), batch):
            columns = zip(*full[start : start + batch], strict=True)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    fingerprint = sha256(rows)
    path = f"prompts/{fingerprint[:12]}/y"
    with Store(store.root).row_writer(path, schema) as writer:
        for rows_of_group in batches():
            writer.write(rows_of_group)
    return writer.ref(fingerprint)


def train_prompts(store: StoreSpec, count: int, *, prefix: str = "q") -> DatasetRef:
    """Store the training prompts q0, q1, ..."""
    return write_prompts(store, [("train", f"{prefix}{n}") for n in range(count)])


def endpoint(stub: StubEndpoint, **changes: Any) -> OpenAITeacher:
    settings: dict[str, Any] = {"model": "big", "base_url": stub.base_url, "concurrency": 2}
    return OpenAITeacher(**settings | changes)


def answer(
    prompts: DatasetRef,
    teacher: Any,
    store: StoreSpec,
    *,
    task: TaskSpec = TASK,
    chunk_rows: int = 1000,
) -> Totals:
    """Have the prompts answered, chunk after chunk; nothing is sealed."""
    with open_session(prompts, teacher, task, store) as session:
        for chunk in plan_chunks(prompts, chunk_rows, store):
            generate_chunk(chunk, session, task)
        return session.totals


def run_all(
    prompts: DatasetRef,
    teacher: Any,
    store: StoreSpec,
    *,
    task: TaskSpec = TASK,
    chunk_rows: int = 1000,
    force: bool = False,
) -> StageResult:
    """Have the prompts answered and return the sealed stage."""
    totals = answer(prompts, teacher, store, task=task, chunk_rows=chunk_rows)
    stage = generation_stage(prompts, teacher, task)
    execution = ExecutionSpec(force=(StageName.GENERATE_RESPONSES,) if force else ())
    return collect_responses(stage, prompts, teacher, task, store, execution, totals)


def is_sealed(prompts: DatasetRef, teacher: Any, store: StoreSpec, task: TaskSpec = TASK) -> bool:
    stage = generation_stage(prompts, teacher, task)
    return Store(store.root).find(stage.name, stage.fingerprint) is not None


def rows_of(result: StageResult, store: StoreSpec) -> list[dict[str, Any]]:
    batches = Store(store.root).batches(result.dataset("responses"))
    return [row for batch in batches for row in batch.to_pylist()]


def ledger_rows(
    prompts: DatasetRef, teacher: Any, store: StoreSpec, task: TaskSpec = TASK
) -> dict[str, LedgerRow]:
    """Return what the ledger has for the prompts' first samples, by prompt id."""
    from distillery.teacher.generation import prompt_requests

    wanted = AskedFor()
    for request in prompt_requests(prompts, teacher, task, store):
        if request.sample_index == 0:
            wanted.add([request])
    with Ledger.open(store) as ledger:
        found = ledger.get(wanted.requests)
    return {wanted.requests[h].prompt_id: row for h, row in found.items()}


def contents(stub: StubEndpoint) -> "collections.Counter[str]":
    """Return how often each prompt was asked."""
    return collections.Counter(body["messages"][0]["content"] for body in stub.requests)
