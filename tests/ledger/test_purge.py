"""Responses are removed for good, and their text with them."""

import contextlib
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
from schemas.errors import StoreError
from schemas.execution import StoreSpec
from tests.fixtures_ledger import IDENTITY, commit, kept, row

OTHER = {**IDENTITY, "model": "other/model"}


def in_ledger(ledger: Ledger) -> set[str]:
    prompts = ["old", "new", 'says "Łukasz"\n', "answered"]
    there = ledger.get([row(prompt).request_hash for prompt in prompts])
    return {json.loads(r.request)["messages"][0]["content"] for r in there.values()}


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    commit(
        ledger,
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
    commit(ledger, cut)
    with ledger.working() as owner:
        ledger.claim([cut.request_hash, "other"], owner, max_new_tokens=512)
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
        commit(ledger, *(row(f"{secret} {n}", text=f"{secret} " * 400) for n in range(50)))
        commit(ledger, row("cut", state="truncated", text=secret * 300))
        commit(ledger, row("cut", text="replaced since"))
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
        commit(ledger, row("secret"), row("b"))
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
