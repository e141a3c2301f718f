"""Rows of prompts and responses for tests of filters, and one filter run over them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from distillery.data.chat import Message, dump_messages
from distillery.data.words import asked_text
from distillery.filters import prompt_filters
from distillery.filters.funnel import Funnel
from distillery.filters.responses import filter_responses
from distillery.storage.stage import StageResult
from distillery.storage.store import Store, new_attempt
from distillery.task_types import task_type
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.filters import FilterSpec
from schemas.frames import PromptFrame, RejectedPromptFrame, ResponseFrame, arrow_schema
from schemas.prompt_filters import PromptFilter
from schemas.refs import DatasetRef
from schemas.task import AnswerFormat, TaskKind, TaskSpec

Row = dict[str, Any]


def response_row(response: str = "fine", **columns: Any) -> Row:
    """Return a row of a ResponseFrame."""
    return {
        "prompt_id": "p",
        "split": "train",
        "messages": '[{"content":"q","role":"user"}]',
        "response": response,
        "reasoning": None,
        "state": "ok" if response.strip() else "empty",
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "request_hash": "0" * 64,
        "sample_index": 0,
        "agreement": None,
        "repaired": False,
        "teacher": "big",
        "chosen_because": None,
    } | columns


def task_with(answer_format: AnswerFormat | None = None) -> TaskSpec:
    """Return a classification task."""
    return TaskSpec(name="t", type=TaskKind.CLASSIFICATION, answer_format=answer_format)


def prompt_row(text: str = "How do I pay?", number: int = 1, **columns: Any) -> Row:
    """Return a row of a PromptFrame."""
    split = columns.get("split", "train")
    return {
        "prompt_id": f"{split}-{number}",
        "split": split,
        "messages": dump_messages([Message(role="user", content=text)]),
        "references": None,
        "content_hash": "0" * 64,
        "cluster": f"{split}-{number}",
        "slices": None,
        "source_row": number,
    } | columns


def prompt_rows(texts: Sequence[str], **columns: Any) -> list[Row]:
    """Return rows of a PromptFrame, numbered from 1."""
    return [prompt_row(text, number, **columns) for number, text in enumerate(texts, start=1)]


def through(
    folder: Path, spec: PromptFilter, rows: Sequence[Row], *, batch_rows: int = 4096
) -> tuple[list[Row], list[Row], Counter[str]]:
    """Return what one filter over prompts keeps, what it drops, and its rewrites by reason.

    Held-out rows are what the others are compared with; they are not among the kept ones.
    """
    [(name, chosen)] = prompt_filters([spec])
    chosen.check()
    chosen.prepare(row for row in rows if row["split"] in ("selection", "test"))
    learnt = [row for row in rows if row["split"] in ("train", "validation")]
    batches = [learnt[at : at + batch_rows] for at in range(0, len(learnt), batch_rows)]
    store, uri = Store(str(folder)), f"rejected/{new_attempt()}"
    with store.row_writer(uri, arrow_schema(RejectedPromptFrame)) as writer:
        funnel = Funnel(task_type(task_with()), PromptFrame, RejectedPromptFrame, writer)
        kept = [row for batch in funnel.passing([(name, chosen)], batches) for row in batch]
    rejected = [row for batch in store.batches(writer.ref(uri)) for row in batch.to_pylist()]
    assert len(kept) + len(rejected) == len(learnt)
    assert {row["filter"] for row in rejected} <= {spec.kind}
    return kept, rejected, funnel.rewrites


def texts_of(rows: Sequence[Row]) -> list[str]:
    """Return what rows ask."""
    return [asked_text(row["messages"]) for row in rows]


def seal_responses(folder: Path, rows: list[Row]) -> DatasetRef:
    """Store rows of a ResponseFrame as a data set of its own."""
    store, schema = Store(str(folder)), arrow_schema(ResponseFrame)
    uri = f"responses/{len(store.list_folders('responses'))}"
    with store.row_writer(uri, schema) as writer:
        writer.write(pa.RecordBatch.from_pylist(rows, schema))
    return writer.ref(uri)


def filter_rows(
    folder: Path,
    rows: list[Row],
    filters: FilterSpec,
    task: TaskSpec,
    prompts: DatasetRef | None = None,
) -> StageResult:
    """Filter rows of a ResponseFrame in the store at ``folder``."""
    responses = seal_responses(folder, rows)
    store = StoreSpec(root=str(folder))
    return filter_responses(responses, prompts or responses, task, filters, store, ExecutionSpec())


def read_rows(folder: Path, ref: DatasetRef) -> list[Row]:
    """Return the rows of a data set."""
    return [row for batch in Store(str(folder)).batches(ref) for row in batch.to_pylist()]
