"""Rows are read one at a time; what cannot be read is named with its line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery.data.sources import check_source, expand_variables, read_source, source_identity
from schemas.data import FileSource, HubSource
from schemas.errors import InputDataError, RecipeError

ROOT = Path(__file__).resolve().parents[2]


def _file(folder: Path, name: str, content: str | bytes) -> FileSource:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return FileSource(path=str(path))


def _rows(source: FileSource) -> list[dict[str, Any]]:
    rows = list(read_source(source, seed=0))
    assert [row.problem for row in rows] == [None] * len(rows)
    return [row.values for row in rows]


def _problems(source: FileSource) -> list[tuple[int, str]]:
    rows = read_source(source, seed=0)
    return [(row.number, row.problem) for row in rows if row.problem is not None]


def test_jsonl_csv_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": 'a, "b"\nc', "label": "x"}, {"text": "é 🙂", "label": "y"}]
    jsonl = _file(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    csv = _file(tmp_path, "a.csv", 'text,label\r\n"a, ""b""\nc",x\r\né 🙂,y\r\n')
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    parquet = FileSource(path=str(tmp_path / "a.parquet"))
    assert _rows(jsonl) == _rows(csv) == _rows(parquet) == rows


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".JSONL"])
def test_the_ending_tells_the_format(tmp_path: Path, ending: str) -> None:
    assert _rows(_file(tmp_path, f"a{ending}", '{"a": 1}')) == [{"a": 1}]


def test_a_set_format_overrules_the_ending(tmp_path: Path) -> None:
    source = _file(tmp_path, "a.txt", "a\n1\n").model_copy(update={"format": "csv"})
    assert _rows(source) == [{"a": "1"}]
    with pytest.raises(
        InputDataError, match=r"ends in '\.txt', from which no format follows\. Set form"
    ):
        check_source(_file(tmp_path, "a.txt", "a\n1\n"), ())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n'),
        ("bom.csv", b"\xef\xbb\xbftext\r\na\r\n\r\nb\r\n"),
        ("unix.csv", b"text\na\n\nb"),
        ("mac.csv", b"text\ra\rb\r"),
    ],
)
def test_byte_order_marks_line_ends_and_empty_lines_do_no_harm(
    tmp_path: Path, name: str, content: bytes
) -> None:
    assert _rows(_file(tmp_path, name, content)) == [{"text": "a"}, {"text": "b"}]


def test_jsonl_lines_that_are_no_rows_are_named(tmp_path: Path) -> None:
    lines = [
        b'{"a": 1}',
        b"{'a': 2}",
        b"",
        b"[3]",
        b'{"a": "\xff"}',
        b'{"a": "\\ud83d"}',
        b'{"a": "\\ud83d\\ude42"}',
    ]
    source = _file(tmp_path, "a.jsonl", b"\n".join(lines))
    numbers, problems = zip(*_problems(source), strict=True)
    assert numbers == (2, 4, 5, 6)
    assert problems[0].startswith("line 2 is not JSON: Expecting property name")
    assert problems[1] == "line 4 is a JSON list, not an object"
    assert problems[2].startswith("line 5 is not UTF-8. Save the file as UTF-8")
    assert problems[3].startswith("line 6 has half a character")
    assert [row.values for row in read_source(source, seed=0) if not row.problem][1] == {"a": "🙂"}


def test_ragged_and_broken_csv_lines_are_named(tmp_path: Path) -> None:
    content = b'id,text\n1,a\n2\n3,b,c\n"4\n5",d\n6,"e"f\n7,\xe9\n8,g\n9,"never closed\n10,h\n'
    source = _file(tmp_path, "a.csv", content)
    assert _problems(source) == [
        (3, "line 3 has 1 columns, the header 2"),
        (4, "line 4 has 3 columns, the header 2"),
        (7, "line 7 is not CSV: ',' expected after '\"'"),
        (8, "line 8 is not UTF-8. Save the file as UTF-8, or set its encoding"),
        (10, "line 10 is not CSV: a quote opens in line 10 and does not close there"),
        (11, "line 11 is lost: a quote opens in line 10 and does not close there"),
    ]
    good = [row for row in read_source(source, seed=0) if not row.problem]
    assert [(row.number, row.values["id"]) for row in good] == [(2, "1"), (5, "4\n5"), (9, "8")]


def _tickets(num_rows: int, changed: dict[int, str]) -> str:
    rows = [changed.get(n, f'{n},"ticket, number {n}",refund') for n in range(1, num_rows + 1)]
    return "\n".join(["id,text,label", *rows]) + "\n"


def test_a_quote_that_never_closes_takes_no_line_silently(tmp_path: Path) -> None:
    content = _tickets(1000, {500: '500,"ticket that opens,refund'}).replace('"ticket, n', "n")
    content = content.replace('",refund', ",refund")  # no other cell is quoted
    source = _file(tmp_path, "a.csv", content)
    problems = _problems(source)
    assert [number for number, _ in problems] == list(range(501, 1002))
    assert (
        problems[0][1] == "line 501 is not CSV: a quote opens in line 501 and does not close there"
    )
    assert (
        problems[-1][1] == "line 1001 is lost: a quote opens in line 501 and does not close there"
    )
    assert sum(not row.problem for row in read_source(source, seed=0)) == 499


def test_a_quote_that_closes_at_the_next_cell_is_named_where_it_opens(tmp_path: Path) -> None:
    source = _file(tmp_path, "a.csv", _tickets(6, {3: '3,"ticket that opens,refund'}))
    assert [number for number, _ in _problems(source)] == [4, 5]
    good = [row.values["id"] for row in read_source(source, seed=0) if not row.problem]
    assert good == ["1", "2", "5", "6"]


def test_tickets_that_an_unclosed_quote_makes_into_one_are_lost_and_named(tmp_path: Path) -> None:
    content = 'id,text,label\n1,a,x\n2,"b,x\n3,c,y\n4,a screen of 5",y\n5,e,x\n'
    source = _file(tmp_path, "a.csv", content)
    assert [number for number, _ in _problems(source)] == [3, 4, 5]
    good = [row.values["id"] for row in read_source(source, seed=0) if not row.problem]
    assert good == ["1", "5"]


def test_cells_that_span_lines_are_read(tmp_path: Path) -> None:
    content = 'id,text\n1,"Dear all,\n\nit is lost, sadly.\nYours, Ann"\n2,"one\ntwo"\n3,c\n'
    cells = [row["text"] for row in _rows(_file(tmp_path, "a.csv", content))]
    assert cells == ["Dear all,\n\nit is lost, sadly.\nYours, Ann", "one\ntwo", "c"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "text\tlabel\nI paid 5, 6 and 7; why?\trefund\n"),
        ("a.tab", "text\tlabel\nI paid 5, 6 and 7; why?\trefund\n"),
        ("a.csv", "text;label\nI paid 5, 6 and 7\\; why?;refund\n".replace("\\;", ",")),
        ("b.csv", "text\tlabel\nI paid 5, 6 and 7; why?\trefund\n"),
        ("c.csv", '\n"text, as asked";label\nhello;refund\n'),
        ("d.csv", b'\xef\xbb\xbftext,label\r\n"a\r\nb",refund\r\n'),
        ("e.csv", "text,label\nétranger,refund\n".encode("utf-16")),
        ("e.jsonl", '{"text": "étranger", "label": "refund"}\n'.encode("utf-16")),
    ],
)
def test_separators_and_encodings_are_told_from_the_file(
    tmp_path: Path, name: str, content: str | bytes
) -> None:
    (row,) = _rows(_file(tmp_path, name, content))
    assert list(row.values())[1] == "refund"
    assert list(row)[1] == "label"


def test_a_named_encoding_and_delimiter_are_used(tmp_path: Path) -> None:
    content = "text|label\nétranger, à Zürich|refund\n".encode("latin-1")
    source = _file(tmp_path, "a.csv", content)
    assert _problems(source)[0][1].startswith("line 2 is not UTF-8. Save the file as UTF-8, or set")
    source = source.model_copy(update={"encoding": "latin-1", "delimiter": "|"})
    assert _rows(source) == [{"text": "étranger, à Zürich", "label": "refund"}]
    with pytest.raises(ValueError, match="'latin-x' is not an encoding that Python knows"):
        FileSource(path="a.csv", encoding="latin-x")


def test_a_column_without_a_name_is_a_column(tmp_path: Path) -> None:
    """As pandas writes its index."""
    assert _rows(_file(tmp_path, "a.csv", ",text\n0,a\n")) == [{"": "0", "text": "a"}]


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    source = _file(tmp_path, "a.csv", "text,text\na,b\n")
    with pytest.raises(InputDataError, match=r"a\.csv' has the column 'text' twice.*Rename one"):
        check_source(source, ("text",))


def test_a_cell_may_hold_a_whole_document(tmp_path: Path) -> None:
    long = "word " * 100_000
    assert _rows(_file(tmp_path, "a.csv", f'text\n"{long}"\n')) == [{"text": long}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_missing_file_is_named_with_the_working_folder(tmp_path: Path, name: str) -> None:
    source = FileSource(path=str(tmp_path / name))
    for use in (lambda: check_source(source, ()), lambda: source_identity(source)):
        with pytest.raises(
            InputDataError, match=rf"{name}' does not exist \(working folder '.*'\)"
        ):
            use()


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("b.jsonl", "\n\n"), ("a.csv", ""), ("b.csv", "text,label\n")],
)
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(InputDataError, match=rf"{name}' has no rows\. Name a file that has some"):
        check_source(_file(tmp_path, name, content), ())


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(InputDataError, match="has no rows"):
        check_source(FileSource(path=str(tmp_path / "a.parquet")), ("text",))


@pytest.mark.parametrize("content", ["", "text\na\n", b"PAR1 cut short PAR1"])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(InputDataError, match=r"a\.parquet' is not whole Parquet: .*Write it agai"):
        check_source(_file(tmp_path, "a.parquet", content), ())


def test_a_folder_is_no_data_file(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"cannot be opened: .*Is a directory"):
        check_source(FileSource(path=str(tmp_path), format="jsonl"), ())


@pytest.mark.parametrize("path", ["gopher://host/a.jsonl", "s4://bucket/a.jsonl"])
def test_an_unknown_protocol_is_refused(path: str) -> None:
    with pytest.raises(InputDataError, match=r"cannot be opened: .*Correct the path"):
        check_source(FileSource(path=path), ())


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    source = _file(tmp_path, "a.csv", "id,question\n1,a\n")
    with pytest.raises(InputDataError, match=r"no column 'text'; it has 'id', 'question'\. Corr"):
        check_source(source, ("id", "text"))


def test_columns_are_looked_for_in_the_first_row_that_can_be_read(tmp_path: Path) -> None:
    source = _file(tmp_path, "a.jsonl", 'broken\n{"text": "a"}\n{}\n')
    check_source(source, ("text",))


def test_variables_stand_for_what_is_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/mnt")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    assert expand_variables("${DATA}/a-${UNSET:-b}-${DATA:-c}.csv") == "/mnt/a-b-/mnt.csv"
    assert expand_variables("${EMPTY:-d}${UNSET:-}") == "d"
    assert expand_variables("$DATA/{x}") == "$DATA/{x}"
    for path in ("${UNSET}/a.csv", "${EMPTY}/a.csv"):
        with pytest.raises(RecipeError, match=r"variable \w+, which is not set or empty\. Set it"):
            expand_variables(path)


def test_variables_are_read_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _file(tmp_path, "a.jsonl", '{"a": 1}')
    monkeypatch.setenv("DATA", str(tmp_path))
    assert _rows(FileSource(path="${DATA}/a.jsonl")) == [{"a": 1}]


def test_identity_is_the_content_and_not_the_place(tmp_path: Path) -> None:
    one, two = _file(tmp_path, "a.jsonl", "{}"), _file(tmp_path, "b.jsonl", "{}")
    assert source_identity(one) == source_identity(two)
    assert source_identity(_file(tmp_path, "b.jsonl", "{} ")) != source_identity(one)


def test_identity_of_a_hub_data_set_is_its_name_revision_and_split() -> None:
    source = HubSource(dataset="o/d", revision="0" * 40, split="train")
    changes = [{"dataset": "o/e"}, {"revision": "1" * 40}, {"split": "test"}, {"name": "en"}]
    identities = [source_identity(source.model_copy(update=change)) for change in changes]
    assert len({source_identity(source), *identities}) == 5
    assert source_identity(source.model_copy(update={"max_rows": 3})) == source_identity(source)


def _sampled(source: FileSource, size: int, seed: int) -> list[int]:
    sampled = source.model_copy(update={"max_rows": size})
    return [row.number for row in read_source(sampled, seed=seed)]


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 60), seed=st.integers(0, 5))
def test_a_sample_is_repeatable_in_order_and_as_large_as_asked(
    tmp_path_factory: pytest.TempPathFactory, size: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("sample")
    source = _file(folder, "a.jsonl", '{"a": 1}\n' * 50)
    sample = _sampled(source, size, seed)
    assert sample == sorted(set(sample))
    assert len(sample) == min(size, 50)
    assert sample == _sampled(source, size, seed)
    assert set(sample) <= set(_sampled(source, size + 1, seed))


def test_another_seed_draws_another_sample(tmp_path: Path) -> None:
    source = _file(tmp_path, "a.jsonl", '{"a": 1}\n' * 200)
    assert len({tuple(_sampled(source, 20, seed)) for seed in range(5)}) == 5


def test_a_hub_data_set_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def missing(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'o/d' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(InputDataError, match=r"'o/d' cannot be loaded: .*doesn't exist"):
        check_source(HubSource(dataset="o/d", revision="0" * 40, split="train"), ())


def test_a_hub_data_set_is_read_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    source = HubSource(dataset="o/d", revision="0" * 40, split="train")
    check_source(source, ("text",))
    assert [(row.number, row.values["text"]) for row in read_source(source, seed=0)] == [
        (1, "a"),
        (2, "b"),
    ]


_STREAM = """
import json, resource, sys
from distillery.data.sources import read_source
from schemas.data import FileSource

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = peak()
num_rows = sum(1 for _ in read_source(FileSource(path=sys.argv[1]), seed=0))
print(num_rows, peak() - before)
"""


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_200_000_rows_stream_in_little_memory(tmp_path: Path, ending: str) -> None:
    text = "x" * 400
    line = json.dumps({"text": text}) if ending == "jsonl" else text
    path = tmp_path / f"a.{ending}"
    path.write_text("text\n" * (ending == "csv") + f"{line}\n" * 200_000)
    done = subprocess.run(
        [sys.executable, "-c", _STREAM, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    num_rows, grown_mib = done.stdout.split()
    assert int(num_rows) == 200_000
    assert float(grown_mib) < 25  # the file is 80 MB; a list of its rows takes 120 MB and more


def test_numbers_of_class_labels_are_read_as_their_names(tmp_path: Path) -> None:
    """As `datasets` writes Parquet: the names are in the schema."""
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features)
    rows.to_parquet(tmp_path / "a.parquet")
    labels = [row["label"] for row in _rows(FileSource(path=str(tmp_path / "a.parquet")))]
    assert labels == ["yes", "no", None]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Dataset scripts are no longer supported, but found d.py"),
        ConnectionError("Couldn't reach 'o/d' on the Hub (OfflineModeIsEnabled)"),
    ],
)
def test_a_hub_data_set_with_a_script_or_without_a_network_is_named(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    import datasets

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        InputDataError, match=r"'o/d' cannot be loaded: .*or save the split as Parq"
    ):
        check_source(HubSource(dataset="o/d", revision="0" * 40, split="train"), ())


def test_class_labels_of_the_hub_are_read_as_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    label = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    rows = datasets.Dataset.from_dict({"text": ["a"], "label": [1]}, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    source = HubSource(dataset="o/d", revision="0" * 40, split="train")
    assert [row.values for row in read_source(source, seed=0)] == [{"text": "a", "label": "yes"}]
