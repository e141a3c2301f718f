"""Responses move between ledgers, are counted, and are removed for good."""

import contextlib
import gzip
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from distillery.ledger import Ledger
from distillery.ledger import engine as engine_module
from distillery.ledger.tables import claims
from schemas.errors import InputDataError, StoreError
from schemas.execution import StoreSpec
from tests.fixtures_ledger import IDENTITY, failed, kept, row

OTHER = {**IDENTITY, "model": "other/model"}
LOCAL = {"kind": "transformers", "weights": "owner/local@" + "c" * 40, "dtype": "bfloat16"}


@pytest.fixture
def elsewhere(tmp_path: Path) -> StoreSpec:
    return StoreSpec(root=str(tmp_path / "elsewhere"))


# -- export and import -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_exported_rows_are_the_same_in_another_ledger(
    ledger: Ledger, elsewhere: StoreSpec, tmp_path: Path, name: str
) -> None:
    rows = [row(f"naïve 🙂 {n}", cost=None if n % 2 else 0.5) for n in range(1100)]
    rows += [row("cut", state="truncated", repaired=True), failed("later", text="")]
    ledger.commit(*rows)
    assert ledger.export(tmp_path / name) == 1102
    with Ledger.open(elsewhere) as other:
        assert other.import_rows(tmp_path / name) == (1102, 0)
        assert other.get([r.request_hash for r in rows]) == {r.request_hash: r for r in rows}


def test_export_is_json_lines_and_compressed_by_its_name(ledger: Ledger, tmp_path: Path) -> None:
    ledger.commit(row("a"), row("b"))
    ledger.export(tmp_path / "rows.jsonl.gz")
    with gzip.open(tmp_path / "rows.jsonl.gz", "rt", encoding="utf-8") as file:
        assert {json.loads(line)["request_hash"] for line in file} == {
            row("a").request_hash,
            row("b").request_hash,
        }


@pytest.mark.parametrize("teacher", ["other/model", row("a", identity=OTHER).teacher_id[:7]])
def test_export_of_one_teacher_leaves_out_the_others(
    ledger: Ledger, tmp_path: Path, teacher: str
) -> None:
    ledger.commit(row("a"), row("a", identity=OTHER), row("a", identity=LOCAL))
    assert ledger.export(tmp_path / "rows.jsonl", teacher=teacher) == 1
    line = json.loads((tmp_path / "rows.jsonl").read_text())
    assert json.loads(line["teacher"]) == OTHER


def test_export_into_no_folder_is_a_store_error(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot write '.*rows.jsonl': No such file"):
        ledger.export(tmp_path / "missing" / "rows.jsonl")


def test_importing_again_changes_nothing(ledger: Ledger, tmp_path: Path) -> None:
    ledger.commit(row("a"), failed("b"), row("c", state="truncated"), purpose="p")
    ledger.export(tmp_path / "rows.jsonl")
    before = ledger.get([row(name).request_hash for name in "abc"])
    assert ledger.import_rows(tmp_path / "rows.jsonl") == (0, 3)
    assert ledger.get(before) == before


def test_import_takes_in_what_is_better_and_adds_up_its_figures(
    ledger: Ledger, elsewhere: StoreSpec, tmp_path: Path
) -> None:
    with Ledger.open(elsewhere) as other:
        other.commit(
            row("failed here", text="there", attempts=2),
            row("ok here", text="there"),
            failed("cut here"),
            row("cut sooner here", state="truncated", max_new_tokens=64, text="longer"),
        )
        other.export(tmp_path / "rows.jsonl")
    ledger.commit(
        failed("failed here"),
        row("ok here", text="here"),
        row("cut here", state="truncated", text="here"),
        row("cut sooner here", state="truncated", max_new_tokens=32, text="short"),
    )
    for expected in ((2, 2), (0, 4)):
        assert ledger.import_rows(tmp_path / "rows.jsonl") == expected
        names = ("failed here", "ok here", "cut here", "cut sooner here")
        found = [kept(ledger, name) for name in names]
        assert [r.text for r in found] == ["there", "here", "here", "longer"]
        assert [r.attempts for r in found] == [8, 1, 1, 2]


def exported(**changes: Any) -> dict[str, Any]:
    return {**vars(row("bad")), **changes}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "Invalid JSON: EOF while parsing an object at line 1"),
        ("[]", "Input should be an object"),
        (json.dumps({"request_hash": "a"}), "prompt_hash: Field required"),
        (json.dumps(exported(attempts="1")), "attempts: Input should be a valid integer"),
        (json.dumps(exported(state="done")), "state 'done' is none of ok, empty"),
        (json.dumps(exported(attempts=-1)), "attempts is -1, which nothing can count"),
        (json.dumps(exported(prompt_tokens=2**63)), "prompt_tokens is 9223372036854775808"),
        (json.dumps(exported(cost=float("nan"))), "cost is nan"),
        (json.dumps(exported(request_hash="a" * 64)), "its hashes are not those of its teacher"),
        (json.dumps(exported(request="{")), "teacher or request is not what a ledger holds"),
    ],
)
def test_bad_line_is_named_and_the_rows_before_it_stay(
    ledger: Ledger, tmp_path: Path, line: str, problem: str
) -> None:
    file = tmp_path / "rows.jsonl"
    good = [json.dumps(vars(row(name))) for name in ("a", "b", "c")]
    file.write_text("\n".join([*good[:2], line, good[2]]))
    with pytest.raises(InputDataError) as caught:
        ledger.import_rows(file)
    assert f"line 3 of {str(file)!r} is no row of a ledger: {problem}" in str(caught.value)
    hashes = [row(name).request_hash for name in ("a", "b", "c")]
    assert set(ledger.get(hashes)) == set(hashes[:2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b"\xff\xfe", "is not UTF-8 text"),
        ("rows.jsonl.gz", b"not compressed", "cannot read .*Not a gzipped file"),
        ("rows.jsonl.gz", gzip.compress(b"x" * 1000)[:-10], "cannot read .*ended before"),
        ("rows.jsonl", None, "cannot read .*No such file"),
    ],
)
def test_file_that_cannot_be_read_is_an_input_data_error(
    ledger: Ledger, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputDataError, match=message):
        ledger.import_rows(tmp_path / name)


# -- stats -----------------------------------------------------------------------------------


def test_stats_add_up_by_teacher(ledger: Ledger) -> None:
    ledger.commit(
        row("a", created_at=10.0),
        row("b", cost=0.5, currency="EUR", repaired=True, created_at=30.0),
        failed("c", billed_prompt_tokens=5, created_at=20.0),
        row("a", identity=LOCAL, cost=None, currency=None),
    )
    first, second = ledger.stats()
    assert first == {
        "teacher_id": row("a").teacher_id,
        "teacher": IDENTITY,
        "model": "owner/name",
        "num_rows": 3,
        "states": {"ok": 2, "failed": 1},
        "prompt_tokens": 11,
        "completion_tokens": 2,
        "cost": {"USD": 0.25, "EUR": 0.5},
        "repaired": 1,
        "oldest": 10.0,
        "newest": 30.0,
    }
    assert (second["model"], second["num_rows"], second["cost"]) == ("owner/local", 1, {})


# -- purge -----------------------------------------------------------------------------------


def in_ledger(ledger: Ledger) -> set[str]:
    prompts = ["old", "new", 'says "Łukasz"\n', "answered"]
    there = ledger.get([row(prompt).request_hash for prompt in prompts])
    return {json.loads(r.request)["messages"][0]["content"] for r in there.values()}


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    ledger.commit(
        row("old", created_at=time.time() - 86_400 * 31),
        row("new"),
        row('says "Łukasz"\n'),
        row("answered", text="Dear Łukasz"),
        row("a", identity=OTHER),
    )
    return ledger


@pytest.mark.parametrize(
    ("criteria", "left"),
    [
        ({"older_than_s": 86_400 * 30}, {"new", 'says "Łukasz"\n', "answered"}),
        ({"prompt_hashes": [row("new").prompt_hash]}, {"old", 'says "Łukasz"\n', "answered"}),
        ({"contains": "Łukasz"}, {"old", "new"}),
        ({"contains": '"Łukasz"\n'}, {"old", "new", "answered"}),
        ({"contains": "%"}, {"old", "new", 'says "Łukasz"\n', "answered"}),
        ({"teacher": "owner/name"}, set()),
        ({"teacher": row("a").teacher_id[:8]}, set()),
        ({"teacher": "owner"}, {"old", "new", 'says "Łukasz"\n', "answered"}),
        ({"teacher": row("a").teacher_id[:2]}, {"old", "new", 'says "Łukasz"\n', "answered"}),
        ({"teacher": "owner/name", "contains": "new"}, {"old", 'says "Łukasz"\n', "answered"}),
        ({"prompt_hashes": []}, {"old", "new", 'says "Łukasz"\n', "answered"}),
    ],
)
def test_purge_removes_what_meets_all_criteria(
    filled: Ledger, criteria: dict[str, Any], left: set[str]
) -> None:
    assert filled.purge(**criteria, dry_run=True) == 4 - len(left)
    assert len(in_ledger(filled)) == 4
    assert filled.purge(**criteria) == 4 - len(left)
    assert in_ledger(filled) == left


def test_purge_without_a_criterion_is_refused(filled: Ledger) -> None:
    with pytest.raises(ValueError, match="would empty the ledger"):
        filled.purge()
    with pytest.raises(ValueError, match="contains the empty text"):
        filled.purge(contains="")
    assert len(in_ledger(filled)) == 4


def test_purge_drops_the_claims_on_what_it_removes(ledger: Ledger) -> None:
    cut = row("a", state="truncated")
    ledger.commit(cut)
    with ledger.working(None) as owner:
        ledger.claim([cut.request_hash, "other"], owner.id, max_new_tokens=512)
        ledger.purge(contains="a")
        with ledger._database.engine.connect() as connection:
            left = connection.execute(sa.select(claims.c.request_hash)).scalars().all()
    assert left == ["other"]


def bytes_on_disk(root: str) -> bytes:
    return b"".join(file.read_bytes() for file in Path(root).glob("ledger.sqlite*"))


def test_purged_text_is_gone_from_the_files(sqlite_spec: StoreSpec) -> None:
    secret = "Account 4711-0815"
    with Ledger.open(sqlite_spec) as ledger:
        # Debian's SQLite overwrites what it deletes; others do not.
        sa.event.listen(
            ledger._database.engine,
            "checkout",
            lambda connection, *_: connection.execute("PRAGMA secure_delete = OFF").fetchall(),
        )
        ledger.commit(*(row(f"{secret} {n}", text=f"{secret} " * 400) for n in range(50)))
        ledger.commit(row("cut", state="truncated", text=secret * 300))
        ledger.commit(row("cut", text="replaced since"))
        assert secret.encode() in bytes_on_disk(sqlite_spec.root)
        assert ledger.purge(contains=secret) == 50
        assert secret.encode() not in bytes_on_disk(sqlite_spec.root)
        assert kept(ledger, "cut").text == "replaced since"
    assert secret.encode() not in bytes_on_disk(sqlite_spec.root)


def test_purge_beside_a_reader_says_that_the_text_is_still_there(
    sqlite_spec: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "BUSY_TIMEOUT_S", 0.1)
    with Ledger.open(sqlite_spec) as ledger:
        ledger.commit(row("secret"), row("b"))
        file = Path(sqlite_spec.root) / "ledger.sqlite"
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM responses").fetchone()
            with pytest.raises(StoreError, match=r"removed 1 rows .* still in its file"):
                ledger.purge(contains="secret")
            assert b"secret" in bytes_on_disk(sqlite_spec.root)
            reader.execute("ROLLBACK")
        assert ledger.purge(contains="secret") == 0
        assert b"secret" not in bytes_on_disk(sqlite_spec.root)
