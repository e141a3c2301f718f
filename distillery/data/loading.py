"""Load the prompts of all splits: rows of the sources become messages and references."""

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from distillery.data.chat import (
    Message,
    MessageError,
    content_hash,
    dump_messages,
    parse_messages,
    refuse_tools,
)
from distillery.data.sources import SourceRow, check_source, read_source, source_identity
from distillery.storage.fingerprint import canonical_json, sha256
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.task_types import TaskType, task_type
from distillery.task_types.prompt_templates import as_text, render_prompt, template_columns
from schemas.data import ColumnMap, DataSpec, FileSource, LogSource, Table
from schemas.errors import DistilleryError, InputDataError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.filters import DropReason
from schemas.frames import LABELLED, SPLITS
from schemas.task import TaskSpec

_LOGIC_VERSION = 7
_BATCH_ROWS = 4096

_LOADED_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("split", pa.string()),
        ("messages", pa.string()),
        ("references", pa.string()),
        ("content_hash", pa.string()),
        ("conversation", pa.string()),
        ("cluster", pa.string()),
        ("slices", pa.string()),
        ("source_row", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


def load_prompts(
    task: TaskSpec, data: DataSpec, store: StoreSpec, execution: ExecutionSpec
) -> StageResult:
    """Return the rows of all sources as one data set `prompts`, unreadable ones marked.

    Raises:
        InputDataError: A source is missing, empty, or lacks a column.
    """
    kind = task_type(task)
    present = _tables(data)
    stage = Stage(
        StageName.LOAD_PROMPTS,
        _LOGIC_VERSION,
        inputs=_identities(present, kind, data),
        spec={"data": data, "task_type": task.type},
    )

    def work(attempt: Attempt) -> None:
        with attempt.row_writer("prompts", _LOADED_SCHEMA) as writer:
            for split, source in present.items():
                check_source(source, _required(source, split, kind, data))
                read = read_source(source, seed=data.seed)
                rows = chain.from_iterable(
                    load_rows(row, split, source, kind, data) for row in read
                )
                attempt.counts[split] = 0
                while batch := list(islice(rows, _BATCH_ROWS)):
                    attempt.counts[split] += len(batch)
                    writer.write(pa.RecordBatch.from_pylist(batch, schema=_LOADED_SCHEMA))

    return run_stage(stage, store, execution, work)


def _tables(data: DataSpec) -> dict[str, Table]:
    """Return the sources by split; those that are logs have been read by `distillery.logs`."""
    sources: dict[str, Table | LogSource | None] = {s: getattr(data, s) for s in SPLITS}
    assert not any(isinstance(source, LogSource) for source in sources.values())
    return {s: found for s, found in sources.items() if found and not isinstance(found, LogSource)}


def _identities(sources: dict[str, Table], kind: TaskType, data: DataSpec) -> dict[str, str]:
    """Return the identity of every source, or raise one error with all that is wrong with them.

    The columns of a hub data set are looked at when it is read: it may not be on this disk.
    """
    identities: dict[str, str] = {}
    problems: list[str] = []
    for split, source in sources.items():
        try:
            if isinstance(source, FileSource):
                check_source(source, _required(source, split, kind, data))
            identities[split] = source_identity(source)
        except DistilleryError as error:
            problems.append(f"data.{split}: {error}")
    if problems:
        raise InputDataError("\n".join(problems))
    return identities


def _required(source: Table, split: str, kind: TaskType, data: DataSpec) -> tuple[str, ...]:
    """Return the columns that the source has to have."""
    columns = source.columns
    required = tuple(
        columns.of(name)
        for name in prompt_fields(columns, kind, data)
        if data.prompt_template is not None or name in kind.fields or getattr(columns, name)
    )
    if columns.messages:
        required += (columns.messages,)
    required += tuple(named for named in (columns.id, columns.cluster) if named)
    if columns.reference and split in LABELLED:
        required += (columns.reference,)
    return required + columns.slices


def prompt_fields(columns: ColumnMap, kind: TaskType, data: DataSpec) -> tuple[str, ...]:
    """Return the fields that prompts are made of; none where messages hold them whole."""
    if columns.messages:
        return ()
    if data.prompt_template is not None:
        return template_columns(data.prompt_template)
    return kind.fields + kind.optional_fields


def load_rows(
    row: SourceRow, split: str, source: Table, kind: TaskType, data: DataSpec
) -> Iterator[dict[str, Any]]:
    """Yield what one source row becomes, in the columns of ``_LOADED_SCHEMA``."""
    columns, values = source.columns, row.values
    loaded: dict[str, Any] = {"split": split, "source_row": row.number}
    if row.problem:
        yield loaded | {"reason": DropReason.UNREADABLE_ROW.value, "detail": row.problem}
        return
    given = values.get(columns.id) if columns.id else f"{split}-{row.number}"
    loaded["prompt_id"] = None if given is None else as_text(given)
    cluster = values.get(columns.cluster) if columns.cluster else None
    loaded["cluster"] = None if cluster is None else as_text(cluster)
    if columns.slices:
        loaded["slices"] = _slices(values, columns)
    if columns.reference and split in LABELLED:
        loaded |= _labelled(values.get(columns.reference), source, kind)
        if "reason" in loaded:
            yield loaded
            return
    if not columns.messages:
        messages = [Message(role="user", content=_prompt(values, source, kind, data))]
        yield _asked(loaded, messages, content_hash(messages), data)
        return
    try:
        refuse_tools(values)
        conversation = parse_messages(values.get(columns.messages))
    except MessageError as error:
        yield loaded | {"reason": DropReason.MALFORMED_MESSAGES.value, "detail": str(error)}
        return
    prompts = _prompts(conversation, data)
    for messages, answer in prompts:
        asked = _asked(loaded, messages, content_hash(prompts[-1][0]), data)
        if data.turns == "every" and loaded["prompt_id"]:
            asked["prompt_id"] = f"{loaded['prompt_id']}-turn-{len(messages)}"
        if answer is not None and split in LABELLED and "references" not in asked:
            asked |= _labelled(answer, source, kind)
        yield asked


def _slices(values: Mapping[str, Any], columns: ColumnMap) -> str:
    """Return the columns that divide the rows, as text, as canonical JSON."""
    found = {name: values.get(name) for name in columns.slices}
    return canonical_json({n: None if v is None else as_text(v) for n, v in found.items()})


def _prompts(conversation: list[Message], data: DataSpec) -> list[tuple[list[Message], str | None]]:
    """Return the prompts in a conversation, each with the turn of the assistant that follows."""
    ends = [at for at, turn in enumerate(conversation) if turn["role"] == "assistant"]
    if not ends or (data.turns == "last" and ends[-1] != len(conversation) - 1):
        return [(conversation, None)]
    answered = ends if data.turns == "every" else ends[-1:]
    return [(conversation[:at], conversation[at]["content"]) for at in answered]


def _prompt(values: Mapping[str, Any], source: Table, kind: TaskType, data: DataSpec) -> str:
    """Return the text of a row without messages."""
    names = prompt_fields(source.columns, kind, data)
    found = {name: kind.shown(name, values.get(source.columns.of(name))) for name in names}
    if data.prompt_template is not None:
        return render_prompt(data.prompt_template, found)
    return kind.prompt(found)


def _labelled(value: Any, source: Table, kind: TaskType) -> dict[str, str]:
    """Return the column with the right answers in a value, or why they cannot be used."""
    try:
        return {"references": _references(value, source, kind)}
    except ValueError as error:
        return {"reason": DropReason.REFERENCE_NOT_IN_FORMAT.value, "detail": str(error)}


def _references(value: Any, source: Table, kind: TaskType) -> str:
    """Return the right answers in a value as canonical JSON, under the names of the recipe.

    Raises:
        ValueError: It is of the wrong kind, or not in the source's label map.
    """
    if source.label_map and value is not None:
        if as_text(value) not in source.label_map and isinstance(value, float):
            # pandas writes whole numbers as 1.0 once one of a column is missing.
            value = int(value) if value.is_integer() else value
        if as_text(value) not in source.label_map:
            raise ValueError(
                f"the reference {as_text(value)!r:.80} is not in label_map, which has "
                f"{', '.join(map(repr, source.label_map)):.200}"
            )
        value = source.label_map[as_text(value)]
    return canonical_json(kind.references(value))


def _asked(
    loaded: Mapping[str, Any], messages: list[Message], conversation: str, data: DataSpec
) -> dict[str, Any]:
    """Return the columns of a row that asks ``messages``, beside those that are ``loaded``.

    Rows of one ``conversation`` are set aside for validation together, and are one cluster unless
    the source says what is.
    """
    messages = list(messages)
    if data.system_prompt and messages[0]["role"] != "system":
        messages.insert(0, Message(role="system", content=data.system_prompt))
    asked = dict(loaded) | {
        "messages": dump_messages(messages),
        "content_hash": content_hash(messages),
        "conversation": conversation,
        "cluster": loaded["cluster"] or conversation,
    }
    if not messages[-1]["content"].strip():
        asked |= {"reason": DropReason.EMPTY_PROMPT.value, "detail": "the prompt has no text"}
    if loaded["split"] == "train" and data.validation is None and is_set_aside(conversation, data):
        asked["split"] = "validation"
    return asked


def is_set_aside(content: str, data: DataSpec) -> bool:
    """Return whether a row belongs to the validation split, by its content.

    So a row stays where it is when others come or go, and equal prompts stay together.
    """
    draw = int(sha256([data.seed, content])[:8], 16) / 2**32
    return draw < data.validation_fraction
