"""Sources: rows from JSONL, CSV, Parquet or the Hugging Face hub, one at a time."""

import codecs
import contextlib
import csv
import hashlib
import heapq
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from distillery.data.chat import is_whole
from distillery.storage.fingerprint import sha256
from schemas.data import FileSource, HubSource, Table
from schemas.errors import InputDataError, RecipeError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".parquet": "parquet",
}
_ENOUGH_DELIMITERS = 3  # fewer are met in a cell of two lines by chance

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


def source_identity(source: Table) -> str:
    """Return a hash of the content that ``source`` points to, without its place."""
    if isinstance(source, HubSource):
        return sha256([source.dataset, source.revision, source.name, source.split])
    with _open(source) as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return sha256([content, _format(source)])


def check_source(source: Table, required: tuple[str, ...]) -> None:
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


def read_source(source: Table, *, seed: int) -> Iterator[SourceRow]:
    """Yield the rows of ``source``, a sample of them by ``seed`` when ``max_rows`` is set.

    Rows that cannot be read are yielded with their problem, so that one run names them all.

    Raises:
        InputDataError: The source is missing or of unknown format.
    """
    reader = _reader(source)
    chosen = _sample(reader, source.max_rows, seed) if source.max_rows else None
    for row in reader():
        if chosen is None or row.number in chosen:
            values = {name: None if _is_nan(value) else value for name, value in row.values.items()}
            yield replace(row, values=values)


def _is_nan(value: Any) -> bool:
    """Return whether ``value`` is NaN, which pandas writes where there is nothing."""
    return isinstance(value, float) and math.isnan(value)


def _sample(reader: Callable[[], Iterator[SourceRow]], size: int, seed: int) -> set[int]:
    """Return the numbers of ``size`` rows, the same ones for the same file and seed."""
    keyed = ((sha256([seed, row.number]), row.number) for row in reader())
    return {number for _, number in heapq.nsmallest(size, keyed)}


def _reader(source: Table) -> Callable[[], Iterator[SourceRow]]:
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
            f"{path!r} ends in {ending!r}, from which no format follows. Set format to jsonl, csv "
            "or parquet."
        )
    return kind


def _open(source: FileSource) -> Any:
    path = expand_variables(source.path)
    try:
        return fsspec.open(path, "rb", compression="infer").open()
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


@contextlib.contextmanager
def _text_lines(source: FileSource, newline: str) -> Iterator[Iterator[str]]:
    """Yield the lines of a file, decoded; what is not text in its encoding comes as surrogates."""
    with _open(source) as file:
        encoding = source.encoding or _encoding(file)
        yield io.TextIOWrapper(file, encoding, errors="surrogateescape", newline=newline)


def _encoding(file: Any) -> str:
    """Return the encoding that a byte order mark tells; UTF-8 where there is none."""
    begin = file.read(4)
    file.seek(0)
    return "utf-16" if begin[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _not_text(number: int, source: FileSource) -> SourceRow:
    encoding = source.encoding or "UTF-8"
    problem = f"line {number} is not {encoding}. Save the file as UTF-8, or set its encoding"
    return SourceRow(number, {}, problem)


def _read_jsonl(source: FileSource) -> Iterator[SourceRow]:
    with _text_lines(source, newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if not is_whole(line):
                yield _not_text(number, source)
                continue
            try:
                values = json.loads(line)
            except ValueError as error:
                yield SourceRow(number, {}, f"line {number} is not JSON: {error}")
                continue
            if not isinstance(values, dict):
                found = type(values).__name__
                yield SourceRow(number, {}, f"line {number} is a JSON {found}, not an object")
            elif "\\u" in line and not is_whole(json.dumps(values, ensure_ascii=False)):
                yield SourceRow(number, {}, f"line {number} has half a character (\\ud800 or like)")
            else:
                yield SourceRow(number, values)


def _read_csv(source: FileSource) -> Iterator[SourceRow]:
    with _text_lines(source, newline="") as file:
        lines = _Lines(file)
        delimiter = source.delimiter or _delimiter(lines.first(), source)
        reader = csv.reader(lines, strict=True, delimiter=delimiter)
        header: list[str] | None = None
        while True:
            number = lines.begin_record()
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield from _broken_record(number, lines, error)
                continue
            if not is_whole("".join(row)):
                yield _not_text(number, source)
            elif not row:
                continue
            elif header is None:
                header = _header(row, source)
            elif len(row) != len(header):
                problem = f"line {number} has {len(row)} columns, the header {len(header)}"
                yield SourceRow(number, {}, problem)
            elif lines.look_like_rows(delimiter, len(header)):
                yield from _broken_record(number, lines, None)
            else:
                yield SourceRow(number, dict(zip(header, row, strict=True)))


class _Lines:
    """The lines of a CSV file; it remembers those of the record that is being read."""

    def __init__(self, file: Iterator[str]) -> None:
        self._file, self._next_number = file, 1
        self._ahead: list[str] = []
        self._saw_long_cells = False
        self.record: list[str] = []

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._ahead.pop() if self._ahead else next(self._file)
        self.record.append(line)
        self._next_number += 1
        return line

    def begin_record(self) -> int:
        """Return the number of the line with which the next record begins."""
        self.record = []
        return self._next_number

    def first(self) -> str:
        """Return the first line that is not empty; it is read all the same."""
        for line in self._file:
            if line.strip():
                self._ahead.append(line)
                return line
            self._next_number += 1
        return ""

    def look_like_rows(self, delimiter: str, num_columns: int) -> bool:
        """Return whether the lines of this record are rows that an unclosed quote has swallowed.

        So it is when each line by itself has all columns. In a file where other cells do span
        lines it may be chance, and the quotes are believed.
        """
        lines = self.record
        if len(lines) < 2 or self._saw_long_cells:
            return False
        by_themselves = all(line.count(delimiter) == num_columns - 1 for line in lines)
        if by_themselves and len(lines) * (num_columns - 1) >= _ENOUGH_DELIMITERS:
            return True
        self._saw_long_cells = True
        return False


def _broken_record(number: int, lines: _Lines, error: csv.Error | None) -> Iterator[SourceRow]:
    """Yield every line of a record that cannot be read; a quote that never closes takes many."""
    is_swallowed = error is None or len(lines.record) > 1
    why = f"a quote opens in line {number} and does not close there" if is_swallowed else error
    yield SourceRow(number, {}, f"line {number} is not CSV: {why}")
    for follower in range(number + 1, number + len(lines.record)):
        yield SourceRow(follower, {}, f"line {follower} is lost: {why}")


def _delimiter(first_line: str, source: FileSource) -> str:
    """Return what separates the columns: a tab in .tsv files, otherwise what the header has most.

    >>> _delimiter("id;question, as asked;label", FileSource(path="a.csv"))
    ';'
    """
    if expand_variables(source.path).lower().endswith((".tsv", ".tab")):
        return "\t"
    unquoted = re.sub(r'"[^"]*"', "", first_line)
    return max(",;\t|", key=unquoted.count)


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
            parquet = pq.ParquetFile(file)
            names = _label_names(_features(parquet.schema_arrow))
            for batch in parquet.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield SourceRow(number, _with_names(values, names))
        except (pa.ArrowException, OSError) as error:
            raise InputDataError(
                f"data file {expand_variables(source.path)!r} is not whole Parquet: {error}. Write "
                "it again, or set its format."
            ) from error


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Return the features that the library `datasets` writes into a Parquet file's schema."""
    text = (schema.metadata or {}).get(b"huggingface")
    return json.loads(text).get("info", {}).get("features") or {} if text else {}


def _label_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of the labels of each ClassLabel column, in the order of their numbers."""
    return {
        column: feature["names"]
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("names")
    }


def _with_names(values: dict[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    """Return ``values`` with label names in place of label numbers; -1 means unlabelled.

    >>> _with_names({"text": "a", "label": 1}, {"label": ["entailment", "neutral"]})
    {'text': 'a', 'label': 'neutral'}
    """
    named = {
        column: labels[number] if 0 <= number < len(labels) else None
        for column, labels in names.items()
        if isinstance(number := values.get(column), int)
    }
    return values | named


def _read_hub(source: HubSource) -> Iterator[SourceRow]:
    import datasets

    try:
        rows = datasets.load_dataset(
            source.dataset, source.name, revision=source.revision, split=source.split
        )
    # RuntimeError: a loading script, which `datasets` no longer runs. OSError: no network.
    except (OSError, ValueError, RuntimeError) as error:
        raise InputDataError(
            f"data set {source.dataset!r} cannot be loaded: {_one_line(error)}. Correct the "
            "recipe's data section, or save the split as Parquet and name that file."
        ) from error
    names = _label_names(rows.features.to_dict())
    for number, values in enumerate(rows, start=1):
        yield SourceRow(number, _with_names(dict(values), names))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
