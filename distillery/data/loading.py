"""Load the prompts of all splits: rows of the sources become messages and references."""

from itertools import islice
from typing import Any

import pyarrow as pa

from distillery.data.chat import (
    Message,
    MessageError,
    as_text,
    content_hash,
    dump_messages,
    parse_messages,
    render_prompt,
    template_columns,
)
from distillery.data.sources import SourceRow, check_source, read_source, source_identity
from distillery.storage.fingerprint import sha256
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from schemas.data import DataSpec, FileSource, Source
from schemas.errors import DistilleryError, InputDataError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.filters import DropReason
from schemas.frames import SPLITS

_LOGIC_VERSION = 2
_BATCH_ROWS = 4096

_LOADED_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("split", pa.string()),
        ("messages", pa.string()),
        ("reference", pa.string()),
        ("content_hash", pa.string()),
        ("source_row", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


def load_prompts(data: DataSpec, store: StoreSpec, execution: ExecutionSpec) -> StageResult:
    """Return the rows of all sources as one data set `prompts`, unreadable ones marked.

    Raises:
        InputDataError: A source is missing, empty, or lacks a column.
    """
    sources: dict[str, Source | None] = {split: getattr(data, split) for split in SPLITS}
    present = {split: source for split, source in sources.items() if source is not None}
    stage = Stage(
        StageName.LOAD_PROMPTS,
        _LOGIC_VERSION,
        inputs=_identities(present, data),
        spec={"data": data},
    )

    def work(attempt: Attempt) -> None:
        with attempt.row_writer("prompts", _LOADED_SCHEMA) as writer:
            for split, source in present.items():
                check_source(source, _required(source, split, data))
                read = read_source(source, seed=data.seed)
                rows = (_load_row(row, split, source, data) for row in read)
                attempt.counts[split] = 0
                while batch := list(islice(rows, _BATCH_ROWS)):
                    attempt.counts[split] += len(batch)
                    writer.write(pa.RecordBatch.from_pylist(batch, schema=_LOADED_SCHEMA))

    return run_stage(stage, store, execution, work)


def _identities(sources: dict[str, Source], data: DataSpec) -> dict[str, str]:
    """Return the identity of every source, or raise one error with all that is wrong with them.

    The columns of a hub data set are looked at when it is read: it may not be on this disk.
    """
    identities: dict[str, str] = {}
    problems: list[str] = []
    for split, source in sources.items():
        try:
            if isinstance(source, FileSource):
                check_source(source, _required(source, split, data))
            identities[split] = source_identity(source)
        except DistilleryError as error:
            problems.append(f"data.{split}: {error}")
    if problems:
        raise InputDataError("\n".join(problems))
    return identities


def _required(source: Source, split: str, data: DataSpec) -> tuple[str, ...]:
    """Return the columns that the source has to have."""
    columns = source.columns
    required = (columns.messages,) if columns.messages else template_columns(data.prompt_template)
    if columns.id:
        required += (columns.id,)
    if columns.reference and split in ("gold", "test"):
        required += (columns.reference,)
    return required


def _load_row(row: SourceRow, split: str, source: Source, data: DataSpec) -> dict[str, Any]:
    """Return one source row in the columns of ``_LOADED_SCHEMA``."""
    columns, values = source.columns, row.values
    loaded: dict[str, Any] = {"split": split, "source_row": row.number}
    if row.problem:
        return loaded | {"reason": DropReason.UNREADABLE_ROW.value, "detail": row.problem}
    given = values.get(columns.id) if columns.id else f"{split}-{row.number}"
    loaded["prompt_id"] = _text(given)
    if columns.reference and split in ("gold", "test"):
        loaded["reference"] = _text(values.get(columns.reference))
    try:
        if columns.messages:
            messages = parse_messages(values.get(columns.messages))
            if messages[-1]["role"] == "assistant":
                answered = messages.pop()["content"]
                if split in ("gold", "test"):
                    loaded.setdefault("reference", answered)
                if not messages or messages[-1]["role"] != "user":
                    raise MessageError("the assistant's last turn does not follow a user's")
        else:
            prompt = render_prompt(data.prompt_template, values)
            messages = [Message(role="user", content=prompt)]
    except MessageError as error:
        return loaded | {"reason": DropReason.MALFORMED_MESSAGES.value, "detail": str(error)}
    if data.system_prompt and messages[0]["role"] != "system":
        messages.insert(0, Message(role="system", content=data.system_prompt))
    loaded["messages"] = dump_messages(messages)
    loaded["content_hash"] = content_hash(messages)
    if not messages[-1]["content"].strip():
        loaded |= {"reason": DropReason.EMPTY_PROMPT.value, "detail": "the prompt has no text"}
    if split == "train" and data.validation is None and is_set_aside(loaded["content_hash"], data):
        loaded["split"] = "validation"
    return loaded


def _text(value: Any) -> str | None:
    return None if value is None else as_text(value)


def is_set_aside(content: str, data: DataSpec) -> bool:
    """Return whether a row belongs to the validation split, by its content.

    So a row stays where it is when others come or go, and equal prompts stay together.
    """
    draw = int(sha256([data.seed, content])[:8], 16) / 2**32
    return draw < data.validation_fraction
