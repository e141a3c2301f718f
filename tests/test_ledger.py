"""The ledger keeps every response, gives each request to one owner, and survives being killed."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import sqlalchemy as sa

from distillery.ledger import Ledger, LedgerRow
from distillery.ledger_engine import meta
from schemas.errors import RecipeError, StoreError
from schemas.execution import StoreSpec


def row(request_hash: str, *, state: str = "ok", text: str = "yes") -> LedgerRow:
    return LedgerRow(
        request_hash=request_hash,
        teacher_id="t" * 64,
        teacher="{}",
        request="{}",
        state=state,
        text=text,
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=1,
        model_reported=None,
        latency_s=0.1,
        attempts=1,
        error=None,
    )


@pytest.fixture
def spec(tmp_path: Path) -> StoreSpec:
    return StoreSpec(root=str(tmp_path / "store"))


@pytest.fixture
def ledger(spec: StoreSpec) -> Iterator[Ledger]:
    with Ledger.open(spec) as opened:
        yield opened


def test_committed_row_comes_back_unchanged(ledger: Ledger, spec: StoreSpec) -> None:
    kept = row("a", text="naïve 🙂")
    ledger.commit(kept)
    with Ledger.open(spec) as other:
        assert other.get(["a", "b"]) == {"a": kept}


def test_get_takes_more_hashes_than_one_query_holds(ledger: Ledger) -> None:
    rows = [row(f"{n:064}") for n in range(1203)]
    ledger.commit(*rows)
    assert ledger.get([r.request_hash for r in rows]) == {r.request_hash: r for r in rows}


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ("ok", "failed", "ok"),
        ("ok", "truncated", "ok"),
        ("truncated", "ok", "ok"),
        ("failed", "empty", "empty"),
        ("empty", "failed", "empty"),
    ],
)
def test_response_gives_way_only_to_a_better_one(
    ledger: Ledger, first: str, second: str, kept: str
) -> None:
    ledger.commit(row("a", state=first))
    ledger.commit(row("a", state=second))
    assert ledger.get(["a"])["a"].state == kept


def test_first_ok_response_stays(ledger: Ledger) -> None:
    ledger.commit(row("a", text="first"))
    ledger.commit(row("a", text="second"))
    assert ledger.get(["a"])["a"].text == "first"


def test_half_a_surrogate_pair_and_nul_become_replacement_characters(ledger: Ledger) -> None:
    ledger.commit(row("a", text="cut \ud83d and \0 and 🙂"))
    assert ledger.get(["a"])["a"].text == "cut \ufffd and \ufffd and 🙂"


def test_claim_goes_to_one_owner_until_released(ledger: Ledger) -> None:
    assert ledger.claim(["a", "b"], "one", 60) == {"a", "b"}
    assert ledger.claim(["a", "b", "c"], "two", 60) == {"c"}
    ledger.release("one")
    assert ledger.claim(["a", "b"], "two", 60) == {"a", "b"}


def test_expired_claim_is_taken_over_and_extended_one_is_not(ledger: Ledger) -> None:
    ledger.claim(["a"], "dead", 0.05)
    ledger.claim(["b"], "alive", 0.05)
    ledger.extend("alive", 60)
    time.sleep(0.1)
    assert ledger.claim(["a", "b"], "two", 60) == {"a"}


def test_holding_keeps_claims_alive_and_releases_them(ledger: Ledger) -> None:
    ledger.claim(["a"], "one", 0.4)
    with ledger.holding("one", 0.4):
        time.sleep(0.8)
        assert ledger.claim(["a"], "two", 60) == set()
    assert ledger.claim(["a"], "two", 60) == {"a"}


def test_answered_request_cannot_be_claimed(ledger: Ledger) -> None:
    ledger.claim(["a"], "one", 60)
    ledger.commit(row("a"))
    assert ledger.claim(["a", "b"], "two", 60) == {"b"}
    ledger.release("two")
    assert ledger.claim(["a", "b"], "three", 60) == {"b"}


def test_many_threads_and_ledgers_claim_every_request_exactly_once(spec: StoreSpec) -> None:
    hashes = [f"{n:064}" for n in range(60)]
    start = threading.Barrier(4)

    def claim_all(owner: str) -> list[str]:
        start.wait(10)
        with Ledger.open(spec) as opened:
            won: list[str] = []
            for request_hash in hashes:
                won += opened.claim([request_hash], owner, 60)
            return won

    with ThreadPoolExecutor(4) as pool:
        won = [h for owned in pool.map(claim_all, "abcd") for h in owned]
    assert sorted(won) == hashes


def _commit_until_killed(root: str, first_done: Event) -> None:
    with Ledger.open(StoreSpec(root=root)) as opened:
        for n in range(1_000_000):
            opened.commit(row(f"{n:064}"))
            if n == 5:
                first_done.set()


def test_rows_committed_before_a_kill_are_kept(spec: StoreSpec) -> None:
    context = multiprocessing.get_context("spawn")
    first_done = context.Event()
    child = context.Process(target=_commit_until_killed, args=(spec.root, first_done))
    child.start()
    assert first_done.wait(30)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(10)
    with Ledger.open(spec) as opened:
        assert len(opened.get([f"{n:064}" for n in range(6)])) == 6


def test_newer_schema_version_is_refused(spec: StoreSpec) -> None:
    with Ledger.open(spec) as opened, opened._engine.begin() as connection:
        connection.execute(sa.update(meta).values(schema_version=99))
    with pytest.raises(StoreError, match="schema_version 99; this Distillery reads up to 1"):
        Ledger.open(spec)


def test_remote_root_needs_a_ledger_url() -> None:
    with pytest.raises(RecipeError, match=r"Set store\.ledger_url to a PostgreSQL database"):
        Ledger.open(StoreSpec(root="memory://bucket"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hunter2", "not a SQLAlchemy URL"),
        ("mysql://root:hunter2@db/x", "names 'mysql'"),
        ("postgresql+pg8000://root:hunter2@db/x", "'pg8000', which is not installed"),
        ("postgresql+nodriver://root:hunter2@db/x", "SQLAlchemy does not know"),
    ],
)
def test_unusable_ledger_url_is_refused_without_showing_it(url: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Ledger.open(StoreSpec(ledger_url=url))
    assert "hunter2" not in str(caught.value)


def test_file_that_is_no_database_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"this is text, not a database. " * 100)
    with pytest.raises(StoreError, match="file is not a database"):
        Ledger.open(StoreSpec(root=str(tmp_path)))


def test_sqlite_waits_for_other_writers_in_wal_mode(ledger: Ledger) -> None:
    with ledger._engine.connect() as connection:
        values = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "busy_timeout", "synchronous")
        ]
    assert values == ["wal", 30_000, 1]
