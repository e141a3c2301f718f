"""Responses leave a ledger as JSON lines, and come into another."""

import contextlib
import dataclasses
import gzip
import itertools
import json
import math
import os
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pydantic
import sqlalchemy as sa

from distillery.ledger.commits import Writer
from distillery.ledger.database import Database
from distillery.ledger.reports import teachers
from distillery.ledger.rows import LedgerRow
from distillery.ledger.tables import responses
from distillery.storage.fingerprint import sha256
from schemas.errors import InputDataError, StoreError

_ROWS_PER_BATCH = 500
_STATES = ("ok", "empty", "truncated", "malformed", "refused", "failed")
_row = pydantic.TypeAdapter(LedgerRow)


def export_rows(database: Database, path: Path, teacher: str | None) -> int:
    """Write rows to ``path``, one JSON object per line, and return their number.

    The file appears when it is complete.

    Raises:
        StoreError: The file cannot be written, or the ledger cannot be read.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")

    def work(connection: sa.Connection) -> int:
        num_rows = 0
        with (
            _opened(path, "wt", at=partial) as file,
            contextlib.closing(_rows(connection, teacher)) as rows,
        ):
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                num_rows += 1
        partial.replace(path)
        return num_rows

    try:
        return database.read(work)
    except OSError as error:
        raise StoreError(
            f"cannot write {str(path)!r}: {error.strerror}. Name a file in a folder that exists, "
            "has space and may be written to."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def import_rows(database: Database, writer: Writer, path: Path) -> tuple[int, int]:
    """Return how many rows of a file were taken in, and of how many what was there is kept.

    A row is taken in when it is new, or better than what is there: nearer to ok.

    Raises:
        InputDataError: The file cannot be read, or a line is no row; the rows before it stay.
    """
    num_added = num_rows = 0
    for batch in _batches(_read(path)):
        num_added += database.write(lambda c, batch=batch: writer.prefer(c, batch))  # type: ignore[misc]
        num_rows += len(batch)
    return num_added, num_rows - num_added


def _rows(connection: sa.Connection, teacher: str | None) -> Generator[dict[str, Any]]:
    query = sa.select(responses)
    if teacher is not None:
        query = query.where(responses.c.teacher_id.in_(teachers(connection, teacher)))
    with connection.execute(query.execution_options(yield_per=_ROWS_PER_BATCH)) as found:
        yield from map(dict, found.mappings())


def _batches(rows: Iterable[LedgerRow]) -> Iterator[list[LedgerRow]]:
    """Yield lists of rows; when a row cannot be read, those before it come first."""
    iterator = iter(rows)
    while True:
        batch: list[LedgerRow] = []
        try:
            batch.extend(itertools.islice(iterator, _ROWS_PER_BATCH))
        except InputDataError:
            yield batch
            raise
        if not batch:
            return
        yield batch


def _read(path: Path) -> Iterator[LedgerRow]:
    try:
        with _opened(path, "rt") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _parsed(line, path, number)
    except UnicodeDecodeError as error:
        raise InputDataError(
            f"{str(path)!r} is not UTF-8 text ({error.reason}). Import a file that export wrote."
        ) from error
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputDataError(
            f"cannot read {str(path)!r}: {reason}. Name a file that export wrote."
        ) from error


def _parsed(line: str, path: Path, number: int) -> LedgerRow:
    try:
        row = _row.validate_json(line.strip(), strict=True)
        problem = _problem(row)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        problem = f"{place}: {first['msg']}" if place else first["msg"]
    if problem is None:
        return row
    raise InputDataError(
        f"line {number} of {str(path)!r} is no row of a ledger: {problem}. The rows before it are "
        "in the ledger. Correct or remove it, then import again."
    )


def _problem(row: LedgerRow) -> str | None:
    """Return what is wrong with a row of the right types, or None."""
    if row.state not in _STATES:
        return f"state {row.state!r} is none of {', '.join(_STATES)}"
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if isinstance(value, int | float) and not (math.isfinite(value) and 0 <= value < 2**63):
            return f"{field.name} is {value!r}, which nothing can count"
    try:
        identity, body = json.loads(row.teacher), json.loads(row.request)
        is_whole = row.teacher_id == sha256(identity)
        is_whole = is_whole and row.request_hash == sha256({"teacher": identity, **body})
        is_whole = is_whole and row.prompt_hash == sha256(body["messages"])
    except (ValueError, TypeError, KeyError) as error:
        return f"teacher or request is not what a ledger holds ({error})"
    return None if is_whole else "its hashes are not those of its teacher, request and messages"


def _opened(path: Path, mode: str, *, at: Path | None = None) -> IO[str]:
    """Return ``path``, or what stands ``at`` another until it is complete, opened as text."""
    opener: Any = gzip.open if path.name.endswith(".gz") else open
    file: IO[str] = opener(at or path, mode, encoding="utf-8", newline="\n")
    return file
