"""A ledger of schema_version 1 becomes one of version 2, once, whoever comes and whatever dies."""

import contextlib
import json
import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import psycopg
import pytest

from distillery.ledger import Ledger
from distillery.ledger import migration as migration_module
from distillery.ledger.commits import Writer
from distillery.storage.fingerprint import sha256
from distillery.teacher.protocol import Sampling, make_request
from schemas.errors import StoreError
from schemas.execution import StoreSpec
from tests.fixtures_ledger import IDENTITY, row

# As version 1 made them, with SQLAlchemy 2.1.
V1_TABLES = [
    "CREATE TABLE meta (schema_version INTEGER NOT NULL, PRIMARY KEY (schema_version))",
    """CREATE TABLE responses (
        request_hash VARCHAR(64) NOT NULL, teacher_id VARCHAR(64) NOT NULL, teacher TEXT NOT NULL,
        request TEXT NOT NULL, state VARCHAR(16) NOT NULL, text TEXT NOT NULL, finish_reason TEXT,
        prompt_tokens INTEGER, completion_tokens INTEGER, model_reported TEXT,
        latency_s {double} NOT NULL, attempts INTEGER NOT NULL, error TEXT,
        created_at {double} NOT NULL, PRIMARY KEY (request_hash))""",
    "CREATE INDEX ix_responses_teacher_id ON responses (teacher_id)",
    """CREATE TABLE claims (
        request_hash VARCHAR(64) NOT NULL, owner TEXT NOT NULL, expires_at {double} NOT NULL,
        PRIMARY KEY (request_hash))""",
    "CREATE INDEX ix_claims_owner ON claims (owner)",
    "INSERT INTO meta (schema_version) VALUES (1)",
    "INSERT INTO claims (request_hash, owner, expires_at) VALUES ('old', 'somebody', 9e9)",
]
V1_COLUMNS = (
    "request_hash, teacher_id, teacher, request, state, text, finish_reason, prompt_tokens, "
    "completion_tokens, model_reported, latency_s, attempts, error, created_at"
)

spawn = multiprocessing.get_context("spawn")


def v1_row(
    prompt: str, *, max_new_tokens: int = 64, state: str = "ok", text: str = "yes"
) -> tuple[Any, ...]:
    """A row as version 1 wrote it."""
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "sampling": {
            "max_new_tokens": max_new_tokens,
            "sampling_temperature": 0.0,
            "top_p": 1.0,
            "seed": 0,
        },
        "response_schema": None,
        "sample_index": 0,
    }
    return (
        sha256({"teacher": IDENTITY, **body}),
        sha256(IDENTITY),
        json.dumps(IDENTITY, sort_keys=True),
        json.dumps(body, sort_keys=True),
        state,
        text,
        "stop",
        3,
        1 if state != "failed" else None,
        "name",
        0.1,
        2,
        "HTTP 400" if state == "failed" else None,
        1000.0,
    )


def write_v1(spec: StoreSpec, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write a ledger of version 1."""
    insert = f"INSERT INTO responses ({V1_COLUMNS}) VALUES ({{marks}})"
    if spec.ledger_url is None:
        file = Path(spec.root) / "ledger.sqlite"
        file.parent.mkdir(parents=True)
        with contextlib.closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("PRAGMA journal_mode = WAL")
            for statement in V1_TABLES:
                connection.execute(statement.format(double="DOUBLE"))
            connection.executemany(insert.format(marks=", ".join("?" * 14)), rows)
        return
    address = spec.ledger_url.replace("+psycopg", "")
    with psycopg.connect(address) as postgresql, postgresql.cursor() as cursor:
        for statement in V1_TABLES:
            cursor.execute(statement.format(double="DOUBLE PRECISION").encode())
        cursor.executemany(insert.format(marks=", ".join(["%s"] * 14)).encode(), rows)


def v2_hash(prompt: str, max_new_tokens: int) -> str:
    sampling = Sampling(max_new_tokens, 0.0, 1.0, 0)
    return make_request(IDENTITY, [{"role": "user", "content": prompt}], sampling).request_hash


def test_old_rows_are_found_by_the_requests_of_this_version(ledger_spec: StoreSpec) -> None:
    write_v1(ledger_spec, [v1_row("a \ud83d ü 🙂"), v1_row("cut", state="truncated", text="ye")])
    with Ledger.open(ledger_spec) as ledger:
        found = ledger.get([v2_hash("a \ud83d ü 🙂", 512), v2_hash("cut", 512)])
    expected = row("a \ud83d ü 🙂", attempts=2, cost=None, currency=None, created_at=1000.0)
    assert found[v2_hash("a \ud83d ü 🙂", 512)] == expected
    cut = found[v2_hash("cut", 512)]
    assert (cut.state, cut.text, cut.max_new_tokens) == ("truncated", "ye", 64)


def test_failed_of_the_old_is_refused_of_the_new(ledger_spec: StoreSpec) -> None:
    write_v1(ledger_spec, [v1_row("a", state="failed", text="")])
    with Ledger.open(ledger_spec) as ledger:
        found = ledger.get([v2_hash("a", 64)])[v2_hash("a", 64)]
    assert (found.state, found.error, found.failed_runs) == ("refused", "HTTP 400", 0)
    assert (found.billed_prompt_tokens, found.billed_completion_tokens) == (3, 0)


@pytest.mark.parametrize("backwards", [False, True])
def test_of_two_old_rows_that_become_one_the_better_stays(
    ledger_spec: StoreSpec, backwards: bool
) -> None:
    rows = [
        v1_row("a", max_new_tokens=16, state="truncated", text="y"),
        v1_row("a", max_new_tokens=32, state="truncated", text="ye"),
        v1_row("b", max_new_tokens=16, state="ok", text="yes"),
        v1_row("b", max_new_tokens=32, state="empty", text=""),
    ]
    write_v1(ledger_spec, rows[::-1] if backwards else rows)
    with Ledger.open(ledger_spec) as ledger:
        a, b = (ledger.get([v2_hash(p, 64)])[v2_hash(p, 64)] for p in "ab")
    assert (a.text, a.max_new_tokens) == ("ye", 32)
    assert (b.text, b.state) == ("yes", "ok")


def test_migrated_ledger_works_like_a_new_one(ledger_spec: StoreSpec) -> None:
    write_v1(ledger_spec, [v1_row(str(n)) for n in range(2500)])
    hashes = [v2_hash(str(n), 64) for n in range(2500)]
    for _ in range(2):  # the second finds it migrated
        with Ledger.open(ledger_spec) as ledger, ledger.working("endpoint") as owner:
            assert len(ledger.get(hashes)) == 2500
            claimed = ledger.claim([*hashes, "new", "old"], owner.id, max_new_tokens=64)
            assert claimed == {"new", "old"}
    with Ledger.open(ledger_spec) as ledger:
        ledger.commit(row("more"), purpose="p")
        assert ledger.averages(row("more").teacher_id).num_rows == 1000


def _open_and_count(spec: StoreSpec, hashes: list[str], start: Any, counts: "Queue[int]") -> None:
    start.wait(120)
    with Ledger.open(spec) as ledger:
        counts.put(len(ledger.get(hashes)))


def test_two_processes_may_open_an_old_ledger_at_once(ledger_spec: StoreSpec) -> None:
    write_v1(ledger_spec, [v1_row(str(n)) for n in range(1500)])
    hashes = [v2_hash(str(n), 64) for n in range(1500)]
    start, counts = spawn.Barrier(2), spawn.Queue()
    children = [
        spawn.Process(target=_open_and_count, args=(ledger_spec, hashes, start, counts))
        for _ in range(2)
    ]
    for child in children:
        child.start()
    assert [counts.get(timeout=120) for _ in children] == [1500, 1500]
    for child in children:
        child.join(60)


def test_one_that_finds_another_migrating_waits_longer_than_for_a_writer(
    sqlite_spec: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillery.ledger.engine.BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr("distillery.ledger.database._PAUSE_S", 0.05)
    write_v1(sqlite_spec, [v1_row("a")])
    file = Path(sqlite_spec.root) / "ledger.sqlite"
    with ThreadPoolExecutor(1) as pool:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            opening = pool.submit(Ledger.open, sqlite_spec)
            assert not wait([opening], 0.5).done
            other.execute("ROLLBACK")
        with opening.result(60) as ledger:
            assert ledger.get([v2_hash("a", 64)])


def _die_while_migrating(spec: StoreSpec) -> None:
    prefer = Writer.prefer

    def die_at_the_second_batch(*arguments: Any) -> int:
        if batches:
            os.kill(os.getpid(), signal.SIGKILL)
        batches.append(1)
        return prefer(*arguments)

    batches: list[int] = []
    Writer.prefer = die_at_the_second_batch  # type: ignore[method-assign]
    Ledger.open(spec)


def test_migration_killed_midway_leaves_the_old_ledger_to_the_next(ledger_spec: StoreSpec) -> None:
    num_rows = 2 * migration_module._ROWS_PER_BATCH
    write_v1(ledger_spec, [v1_row(str(n)) for n in range(num_rows)])
    child = spawn.Process(target=_die_while_migrating, args=(ledger_spec,))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    with Ledger.open(ledger_spec) as ledger:
        assert len(ledger.get([v2_hash(str(n), 64) for n in range(num_rows)])) == num_rows


def test_old_row_without_a_request_is_named_and_the_ledger_stays_as_it_was(
    ledger_spec: StoreSpec,
) -> None:
    broken = ("h" * 64, *v1_row("a")[1:3], "{}", *v1_row("a")[4:])
    write_v1(ledger_spec, [v1_row("a"), broken])
    for _ in range(2):
        with pytest.raises(
            StoreError, match=r"row 'hhh.* Delete that row from the table responses"
        ):
            Ledger.open(ledger_spec)
