"""Sources: rows from JSONL, CSV, Parquet or the Hugging Face hub, one at a time."""

import csv
import hashlib
import heapq
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from distillery.storage.fingerprint import sha256
from schemas.data import FileSource, HubSource, Source
from schemas.errors import InputDataError, RecipeError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}

# A CSV cell may hold a whole document; Python's own limit is 128 KiB.
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class SourceRow:
    """One row as it stands in the source."""

    number: int
    """Line of a JSONL or CSV file, row of anything else; from 1."""

    values: dict[str, Any]
    """The columns; empty when the row cannot be read."""

    problem: str | None = None
    """Why the row cannot be read, or None."""


def expand_variables(text: str) -> str:
    """Return ``text`` with ``${NAME}`` and ``${NAME:-default}`` replaced from the environment.

    Raises:
        RecipeError: A variable is not set and has no default.

    >>> expand_variables("${NO_SUCH_VARIABLE:-data}/train.csv")
    'data/train.csv'
    """

    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name) or default
        if found is None:
            raise RecipeError(
                f"path {text!r} needs the environment variable {name}, which is not set or empty. "
                "Set it, or override the path."
            )
        return found

    return _VARIABLE.sub(value, text)


def source_identity(source: Source) -> str:
    """Return a hash of the content that ``source`` points to, without its place."""
    if isinstance(source, HubSource):
        return sha256([source.dataset, source.revision, source.name, source.split])
    with _open(source) as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return sha256([content, _format(source)])


def check_source(source: Source, required: tuple[str, ...]) -> None:
    """Return when ``source`` has rows, and the columns ``required`` in its first readable one.

    Raises:
        InputDataError: The source is missing, empty, of unknown format, or lacks a column.
    """
    place = source.dataset if isinstance(source, HubSource) else expand_variables(source.path)
    num_rows = 0
    for row in _reader(source)():
        num_rows += 1
        if row.problem is None:
            if missing := [name for name in required if name not in row.values]:
                raise InputDataError(
                    f"{place!r} has no column {missing[0]!r}; it has "
                    f"{', '.join(map(repr, row.values))}. Correct the columns or the "
                    "prompt_template of the recipe's data section."
                )
            return
    if not num_rows:
        raise InputDataError(f"{place!r} has no rows. Name a file that has some.")


def read_source(source: Source, *, seed: int) -> Iterator[SourceRow]:
    """Yield the rows of ``source``, a sample of them by ``seed`` when ``max_rows`` is set.

    Rows that cannot be read are yielded with their problem, so that one run names them all.

    Raises:
        InputDataError: The source is missing or of unknown format.
    """
    reader = _reader(source)
    chosen = _sample(reader, source.max_rows, seed) if source.max_rows else None
    for row in reader():
        if chosen is None or row.number in chosen:
            yield row


def _sample(reader: Callable[[], Iterator[SourceRow]], size: int, seed: int) -> set[int]:
    """Return the numbers of ``size`` rows, the same ones for the same file and seed."""
    keyed = ((sha256([seed, row.number]), row.number) for row in reader())
    return {number for _, number in heapq.nsmallest(size, keyed)}


def _reader(source: Source) -> Callable[[], Iterator[SourceRow]]:
    """Return a function that starts reading the source from its first row."""
    if isinstance(source, HubSource):
        return lambda: _read_hub(source)
    readers = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}
    read = readers[_format(source)]
    return lambda: read(source)


def _format(source: FileSource) -> str:
    """Return the format of a file: what the recipe says, otherwise by its ending."""
    path = expand_variables(source.path)
    ending = os.path.splitext(path)[1].lower()
    kind = _FORMATS.get(ending) if source.format == "auto" else source.format
    if kind is None:
        raise InputDataError(
            f"{path!r} ends in {ending!r}, which tells no format. Set format to jsonl, csv or "
            "parquet."
        )
    return kind


def _open(source: FileSource) -> Any:
    path = expand_variables(source.path)
    try:
        return fsspec.open(path, "rb").open()
    except FileNotFoundError:
        raise InputDataError(
            f"data file {path!r} does not exist (working folder {os.getcwd()!r}). Correct "
            "the path of the recipe's data section."
        ) from None
    except (OSError, ValueError, ImportError) as error:
        raise InputDataError(
            f"data file {path!r} cannot be opened: {error}. Correct the path of the recipe's data "
            "section."
        ) from error


def _read_jsonl(source: FileSource) -> Iterator[SourceRow]:
    with _open(source) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if b"\\u" in line:
                    json.dumps(values, ensure_ascii=False).encode()  # half an emoji cannot be kept
            except ValueError as error:
                yield SourceRow(number, {}, f"line {number} is not JSON: {error}")
                continue
            if isinstance(values, dict):
                yield SourceRow(number, values)
            else:
                yield SourceRow(number, {}, f"line {number} is {type(values).__name__}, no object")


def _read_csv(source: FileSource) -> Iterator[SourceRow]:
    with _open(source) as file:
        # What is not UTF-8 comes as surrogates, by which its rows are told.
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text, strict=True)
        header: list[str] | None = None
        while True:
            number = reader.line_num + 1
            try:
                row = next(reader)
                "".join(row).encode()
            except StopIteration:
                return
            except (csv.Error, UnicodeEncodeError) as error:
                problem = "not UTF-8" if isinstance(error, UnicodeError) else f"not CSV: {error}"
                yield SourceRow(number, {}, f"line {number} is {problem}")
                continue
            if not row:
                continue
            if header is None:
                header = _header(row, source)
            elif len(row) != len(header):
                problem = f"line {number} has {len(row)} columns, the header {len(header)}"
                yield SourceRow(number, {}, problem)
            else:
                yield SourceRow(number, dict(zip(header, row, strict=True)))


def _header(row: list[str], source: FileSource) -> list[str]:
    if twice := [name for name, count in Counter(row).items() if count > 1]:
        raise InputDataError(
            f"data file {expand_variables(source.path)!r} has the column {twice[0]!r} twice, so it "
            "is not clear which one is meant. Rename one."
        )
    return row


def _read_parquet(source: FileSource) -> Iterator[SourceRow]:
    number = 0
    with _open(source) as file:
        try:
            batches = pq.ParquetFile(file).iter_batches()
            for batch in batches:
                for values in batch.to_pylist():
                    number += 1
                    yield SourceRow(number, values)
        except (pa.ArrowException, OSError) as error:
            raise InputDataError(
                f"data file {expand_variables(source.path)!r} is not whole Parquet: {error}. Write "
                "it again, or set its format."
            ) from error


def _read_hub(source: HubSource) -> Iterator[SourceRow]:
    import datasets

    try:
        rows = datasets.load_dataset(
            source.dataset, source.name, revision=source.revision, split=source.split
        )
    except (FileNotFoundError, ValueError) as error:
        raise InputDataError(
            f"data set {source.dataset!r} cannot be loaded: {error}. Correct the recipe's data "
            "section."
        ) from error
    for number, values in enumerate(rows, start=1):
        yield SourceRow(number, dict(values))
