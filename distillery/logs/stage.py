"""Logs are read into the store: what is new, redacted, a part of it; then they are sources."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import fsspec
import numpy as np
from pydantic import JsonValue

from distillery.data.sources import (
    SourceRow,
    expand_variables,
    read_source,
    source_identity,
)
from distillery.ledger import Ledger
from distillery.logs.entries import Entry, read_entry
from distillery.logs.redaction import Redactor
from distillery.logs.sampling import choose_rows
from distillery.models.embedding import embedding_identity
from distillery.storage.scratch import scratch_folder
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from schemas.data import DataSpec, FileSource, LogSource
from schemas.errors import InputDataError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.frames import SPLITS
from schemas.refs import PromptSet

logger = logging.getLogger(__name__)

_LOGIC_VERSION = 1
_FILE = "rows.jsonl"
_MOST_NAMED = 5


def read_logs(data: DataSpec, store: StoreSpec, execution: ExecutionSpec) -> DataSpec:
    """Return ``data`` with the logs in it as files of the store, read and redacted.

    Raises:
        InputDataError: A log is missing, or has nothing new.
        RecipeError: What is to redact it is not installed.
        StoreError: The ledger, which keeps the watermarks, cannot be used.
    """
    read: dict[str, FileSource] = {}
    for split in SPLITS:
        source = getattr(data, split)
        if isinstance(source, LogSource):
            read[split] = _read(split, source, data.seed, store, execution)
    return data.model_copy(update=read)


def finish_logs(rows: PromptSet, store: StoreSpec) -> None:
    """Move the watermarks of the logs that ``rows`` came from: the run on them has finished."""
    opened = Store(store.root)
    validated = opened.manifest_of(rows.quarantined)
    loaded = validated and opened.find(StageName.LOAD_PROMPTS, str(validated.inputs["loaded"]))
    if loaded:
        with Ledger.open(store) as ledger:
            ledger.readings.finish([str(identity) for identity in loaded.inputs.values()])


def _read(
    split: str, source: LogSource, seed: int, store: StoreSpec, execution: ExecutionSpec
) -> FileSource:
    """Return the file that a log becomes."""
    name, since = source.watermark, None
    if name is not None and not execution.forces(StageName.READ_LOGS):
        with Ledger.open(store) as ledger:
            since = ledger.readings.since(name)
    paths = _paths(source, split)
    model = source.sample.model if source.sample else None
    stage = Stage(
        StageName.READ_LOGS,
        _LOGIC_VERSION,
        inputs={
            "log": _content_hash(paths),
            **({"embedding": embedding_identity(model)} if model else {}),
        },
        spec={
            "source": source,
            "is_timed": name is not None,
            "since": since,
            "seed": seed if source.sample else None,
        },
    )

    def work(attempt: Attempt) -> None:
        _write(attempt, split, source, paths, since, seed)

    result = run_stage(stage, store, execution, work)
    made = FileSource(
        path=Store(store.root).path(f"{result.report('rows').uri}/{_FILE}"),
        format="jsonl",
        columns=source.columns,
    )
    _tell(split, result, since)
    newest = result.manifest.facts["newest"]
    if name is not None and isinstance(newest, float):
        with Ledger.open(store) as ledger:
            ledger.readings.note(source_identity(made), name, newest)
    return made


def _write(
    attempt: Attempt,
    split: str,
    source: LogSource,
    paths: list[str],
    since: float | None,
    seed: int,
) -> None:
    """Write the rows that are taken, redacted, as JSONL; count the rest."""
    num_rows, newest, now, unreadable = 0, None, time.time(), list[JsonValue]()
    for entry in _entries(source, paths, since):
        num_rows += 1
        if isinstance(entry, str):
            unreadable.append(entry)
        # A clock that is ahead must not hide what comes before its time.
        elif entry.time_s is not None and entry.time_s <= now:
            newest = max(newest or 0.0, entry.time_s)
    if not num_rows:
        raise InputDataError(_nothing_new(split, source, since))
    taken = np.ones(num_rows, bool)
    if source.sample is not None:

        def asked() -> Iterator[str]:
            for entry in _entries(source, paths, since):
                yield entry.asked if isinstance(entry, Entry) else ""

        taken = choose_rows(asked, num_rows, source.sample, seed)
    redactor = Redactor(source.redact)
    with scratch_folder("log") as folder:
        with (folder / _FILE).open("w", encoding="utf-8") as file:
            for entry, is_taken in zip(_entries(source, paths, since), taken, strict=True):
                if not is_taken:
                    continue
                row: Any = entry
                if isinstance(entry, Entry):
                    redacted = redactor.redact(entry)
                    if redacted is None:
                        continue
                    row = redacted.row()
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        attempt.add_folder("rows", folder)
    attempt.counts |= {
        "rows": int(taken.sum()) - redactor.num_dropped,
        "not_sampled": int((~taken).sum()),
        "redacted": redactor.num_redacted,
        "dropped": redactor.num_dropped,
        "unreadable": len(unreadable),
    }
    attempt.facts |= {"newest": newest, "unreadable": unreadable[:_MOST_NAMED]}


def _entries(source: LogSource, paths: list[str], since: float | None) -> Iterator[Entry | str]:
    """Yield what is newer than ``since``; of a line that cannot be read, why, without its text.

    Such a line is never passed over: it is put aside with the other rows that cannot be used.
    """
    for path in paths:
        for row in read_source(FileSource(path=path, format="jsonl"), seed=0):
            entry = _entry(row, source, path)
            if isinstance(entry, str) or since is None or (entry.time_s or 0.0) > since:
                yield entry


def _entry(row: SourceRow, source: LogSource, path: str) -> Entry | str:
    place = f"line {row.number} of {path.rsplit('/', 1)[-1]}"
    if row.problem:
        return f"{place} cannot be read"
    entry = read_entry(row.values, source.timestamp)
    if source.watermark is not None and entry.time_s is None:
        return f"{place} has no timestamp"
    return entry


def _paths(source: LogSource, split: str) -> list[str]:
    """Return the files of a log, in the order of their names."""
    path = expand_variables(source.path)
    if "*" not in path:
        return [path]
    found = [file.full_name for file in fsspec.open_files(path)]
    if not found:
        raise InputDataError(f"no file matches {path!r}. Correct data.{split}.path.")
    return sorted(found)


def _content_hash(paths: list[str]) -> str:
    """Return a hash of what the files hold, in order."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(source_identity(FileSource(path=path, format="jsonl")).encode())
    return whole.hexdigest()


def _nothing_new(split: str, source: LogSource, since: float | None) -> str:
    path = expand_variables(source.path)
    if since is None:
        return f"log {path!r} has no rows. Name a file that has some in data.{split}.path."
    return (
        f"log {path!r} has no rows after {_moment(since)}, up to which runs have read it under the "
        f"watermark {source.watermark!r}. Run again when there are some, or read all of it again "
        "with execution.force=[read_logs]."
    )


def _tell(split: str, result: StageResult, since: float | None) -> None:
    counts = ", ".join(f"{n:,} {name}" for name, n in result.manifest.counts.items() if n)
    after = f" after {_moment(since)}" if since is not None else ""
    logger.info("read_logs (%s): %s%s", split, counts, after)
    if unreadable := result.manifest.facts["unreadable"]:
        logger.warning(
            "data.%s: lines that are put aside, the first of them: %s", split, unreadable
        )


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
