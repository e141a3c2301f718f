"""Each request is asked by one owner, and a dead owner blocks nobody."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from distillery.ledger import Ledger, presence
from distillery.ledger.rows import MOST_FAILED_RUNS
from distillery.ledger.tables import claims
from schemas.execution import StoreSpec
from tests.fixtures_ledger import commit, failed, row
from tests.fixtures_postgresql import PostgresqlServer
from tests.waiting import wait_until

spawn = multiprocessing.get_context("spawn")


def claim(ledger: Ledger, hashes: list[str], owner: str, max_new_tokens: int = 64) -> set[str]:
    return ledger.claim(hashes, owner, max_new_tokens=max_new_tokens)


def execute(ledger: Ledger, statement: sa.Executable) -> Any:
    """Do behind the ledger's back what another program may have done."""
    with ledger._database.engine.begin() as connection:
        result = connection.execute(statement)
        return result.all() if result.returns_rows else None


def put_claim(ledger: Ledger, request_hash: str, process: str) -> None:
    """Claim a request for another process."""
    values = {"owner": f"of {process}", "process": process}
    execute(ledger, sa.insert(claims).values(request_hash=request_hash, **values))


@pytest.fixture
def other(ledger: Ledger) -> Iterator[presence.Presence]:
    """Another process that is alive; closing it twice does no harm."""
    entered = presence.enter(ledger._database)
    yield entered
    entered.close()


def test_claim_goes_to_one_owner_until_released(ledger: Ledger) -> None:
    with ledger.working() as one, ledger.working() as two:
        assert claim(ledger, ["a", "b"], one) == {"a", "b"}
        assert claim(ledger, ["a", "b", "c"], two) == {"c"}
        assert claim(ledger, ["a", "b"], one) == {"a", "b"}


def test_claims_end_with_the_work_of_their_owner(ledger: Ledger) -> None:
    with ledger.working() as two:
        with ledger.working() as one:
            claim(ledger, ["a"], one)
            claim(ledger, ["b"], two)
        assert execute(ledger, sa.select(claims.c.request_hash)) == [("b",)]
        assert claim(ledger, ["a"], two) == {"a"}


def test_claim_takes_more_hashes_than_one_query_holds(ledger: Ledger) -> None:
    hashes = [f"{n:064}" for n in range(1203)]
    with ledger.working() as one, ledger.working() as two:
        assert claim(ledger, hashes, one) == set(hashes)
        assert claim(ledger, [*hashes, "other"], two) == {"other"}


@pytest.mark.parametrize(
    ("changes", "max_new_tokens", "is_free"),
    [
        ({"state": "ok"}, 10_000, False),
        ({"state": "empty"}, 10_000, False),
        ({"state": "malformed"}, 10_000, False),
        ({"state": "refused"}, 10_000, False),
        ({"state": "truncated", "max_new_tokens": 64}, 64, False),
        ({"state": "truncated", "max_new_tokens": 64}, 65, True),
        ({"state": "failed", "failed_runs": MOST_FAILED_RUNS - 1}, 64, True),
        ({"state": "failed", "failed_runs": MOST_FAILED_RUNS}, 64, False),
    ],
)
def test_final_rows_cannot_be_claimed_and_others_can(
    ledger: Ledger, changes: dict[str, Any], max_new_tokens: int, is_free: bool
) -> None:
    there = row("a", **changes)
    commit(ledger, there)
    assert there.is_final(max_new_tokens) is not is_free
    with ledger.working() as one:
        claimed = claim(ledger, [there.request_hash], one, max_new_tokens)
    assert claimed == ({there.request_hash} if is_free else set())


def test_commit_drops_the_claim(ledger: Ledger) -> None:
    unfinished = failed("a")
    with ledger.working() as one, ledger.working() as two:
        claim(ledger, [unfinished.request_hash], one)
        assert claim(ledger, [unfinished.request_hash], two) == set()
        ledger.commit_soon(unfinished).result(60)
        assert claim(ledger, [unfinished.request_hash], two) == {unfinished.request_hash}


# -- the dead --------------------------------------------------------------------------------


def test_claim_of_a_process_holds_until_that_is_gone(
    ledger: Ledger, other: presence.Presence
) -> None:
    put_claim(ledger, "a", other.name)
    put_claim(ledger, "b", other.name)
    with ledger.working() as mine:
        assert claim(ledger, ["a", "c"], mine) == {"c"}
        other.close()
        # PostgreSQL notices a moment later that a connection is gone.
        wait_until(lambda: claim(ledger, ["a"], mine) == {"a"})
        left = execute(ledger, sa.select(claims.c.request_hash, claims.c.owner))
        assert sorted(left) == [("a", mine), ("c", mine)], "those of the dead are removed"


def test_claim_of_a_process_that_nobody_knows_is_void(ledger: Ledger) -> None:
    put_claim(ledger, "a", "4711")
    with ledger.working() as mine:
        assert claim(ledger, ["a"], mine) == {"a"}


def test_ledger_that_only_reads_holds_no_lock(sqlite_spec: StoreSpec) -> None:
    with Ledger.open(sqlite_spec) as ledger:
        ledger.stats()
        assert list(Path(sqlite_spec.root).glob("*.lock")) == []


def test_lock_files_of_the_dead_are_swept_and_those_of_the_living_stay(
    sqlite_spec: StoreSpec,
) -> None:
    root = Path(sqlite_spec.root)
    with Ledger.open(sqlite_spec) as ledger, ledger.working() as owner:
        claim(ledger, ["a"], owner)
        (mine,) = root.glob("*.lock")
        old, young = root / "ledger.sqlite-old.lock", root / "ledger.sqlite-young.lock"
        for file in (old, young):
            file.touch()
        for file in (old, mine):
            os.utime(file, (0, 0))
        with Ledger.open(sqlite_spec) as second, second.working() as another:
            claim(second, ["b"], another)
            assert len(list(root.glob("*.lock"))) == 3
            assert mine.exists() and young.exists() and not old.exists()
    assert list(root.glob("*.lock")) == [young]


def _claim_and_wait(spec: StoreSpec, hashes: list[str], claimed: "Queue[set[str]]") -> None:
    with Ledger.open(spec) as ledger, ledger.working() as owner:
        claimed.put(ledger.claim(hashes, owner, max_new_tokens=64))
        time.sleep(3600)


@contextlib.contextmanager
def process(target: Any, *arguments: Any) -> Iterator[BaseProcess]:
    child = spawn.Process(target=target, args=arguments)
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join(60)


def test_claims_of_a_killed_process_are_free_at_once(
    ledger: Ledger, ledger_spec: StoreSpec
) -> None:
    claimed: Queue[set[str]] = spawn.Queue()
    with (
        process(_claim_and_wait, ledger_spec, ["a", "b"], claimed) as child,
        ledger.working() as mine,
    ):
        assert claimed.get(timeout=120) == {"a", "b"}
        assert claim(ledger, ["a"], mine) == set()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        # Not yet waited for, it is a zombie now.
        wait_until(lambda: claim(ledger, ["a", "b"], mine) == {"a", "b"})


# -- a server that lets go of all locks --------------------------------------------------------


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "_CHECK_S", 0.05)


@pytest.mark.usefixtures("quick_checks")
def test_claims_of_the_living_hold_over_a_restart_of_the_server(
    postgresql: PostgresqlServer,
) -> None:
    spec = StoreSpec(ledger_url=postgresql.new_database())
    with (
        Ledger.open(spec) as ledger,
        Ledger.open(spec) as theirs,
        ledger.working() as mine,
        theirs.working() as owner,
    ):
        assert claim(theirs, ["a"], owner) == {"a"}
        assert claim(ledger, ["b"], mine) == {"b"}
        postgresql.stop(immediately=True)
        postgresql.start()
        assert claim(ledger, ["a", "c"], mine) == {"c"}, "their lock may not be back yet"
        wait_until(lambda: _num_locks(ledger) == 2)
        assert claim(ledger, ["a"], mine) == set()


@pytest.mark.usefixtures("quick_checks")
def test_process_that_was_cut_off_takes_nobody_for_dead_for_a_while(
    postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = StoreSpec(ledger_url=postgresql.new_database())
    with Ledger.open(spec) as ledger, ledger.working() as mine:
        claim(ledger, ["b"], mine)
        put_claim(ledger, "a", "4711")
        execute(ledger, sa.text(_CUT_OFF))
        assert claim(ledger, ["a"], mine) == set()
        wait_until(lambda: _num_locks(ledger) == 1)
        assert claim(ledger, ["a"], mine) == set()
        monkeypatch.setattr(presence, "_GRACE_S", 0.0)
        assert claim(ledger, ["a"], mine) == {"a"}


_CUT_OFF = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"


def _num_locks(ledger: Ledger) -> int:
    query = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    return int(execute(ledger, query)[0][0])


# -- many at once ----------------------------------------------------------------------------


def test_many_threads_claim_every_request_exactly_once(ledger_spec: StoreSpec) -> None:
    hashes = [f"{n:064}" for n in range(60)]
    start = threading.Barrier(4)

    def claim_all(_: int) -> list[str]:
        with Ledger.open(ledger_spec) as mine:
            start.wait(60)
            won: list[str] = []
            with mine.working() as owner:
                for request_hash in hashes:
                    won += claim(mine, [request_hash], owner)
                start.wait(60)  # nobody lets go before all are done
            return won

    with ThreadPoolExecutor(4) as pool:
        won = [h for owned in pool.map(claim_all, range(4)) for h in owned]
    assert sorted(won) == hashes


def _ask_all(spec: StoreSpec, num_rows: int, asked: "Queue[list[str]]", start: Any) -> None:
    """Claim and answer what is free, in small bites, until everything is answered."""
    rows = {r.request_hash: r for r in (row(str(n)) for n in range(num_rows))}
    mine: list[str] = []
    start.wait(120)
    with Ledger.open(spec) as ledger, ledger.working() as owner:
        left = sorted(rows)
        while left:
            won = ledger.claim(left[:40], owner, max_new_tokens=64)
            mine += won
            futures = [ledger.commit_soon(rows[h], purpose="p") for h in won]
            for future in futures:
                future.result(60)
            answered = ledger.get(left[:40])
            left = [h for h in left if h not in answered]
    asked.put(mine)


@pytest.mark.slow
def test_several_processes_ask_every_request_exactly_once(ledger_spec: StoreSpec) -> None:
    asked: Queue[list[str]] = spawn.Queue()
    start = spawn.Barrier(3)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(process(_ask_all, ledger_spec, 400, asked, start))
        shares = [asked.get(timeout=300) for _ in range(3)]
    assert sorted(h for share in shares for h in share) == sorted(
        row(str(n)).request_hash for n in range(400)
    )
    with Ledger.open(ledger_spec) as ledger:
        assert ledger.spent("p").requests == 400
        assert execute(ledger, sa.select(claims)) == []
