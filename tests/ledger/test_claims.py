"""Each request is asked by one owner, and a dead owner blocks nobody."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import Any

import pytest
import sqlalchemy as sa

from distillery.ledger import Ledger
from distillery.ledger import claims as claims_module
from distillery.ledger.processes import machine_id, this_process
from distillery.ledger.rows import MOST_FAILED_RUNS
from distillery.ledger.tables import claims, owners
from schemas.execution import StoreSpec
from tests.fixtures_ledger import failed, row
from tests.waiting import wait_until

spawn = multiprocessing.get_context("spawn")


def claim(ledger: Ledger, hashes: list[str], owner: str, max_new_tokens: int = 64) -> set[str]:
    return ledger.claim(hashes, owner, max_new_tokens=max_new_tokens)


def execute(ledger: Ledger, statement: sa.Executable) -> Any:
    """Do behind the ledger's back what another program may have done."""
    with ledger._database.engine.begin() as connection:
        result = connection.execute(statement)
        return result.all() if result.returns_rows else None


def write_owner(ledger: Ledger, owner: str, **changes: Any) -> None:
    """Register an owner on another machine, heard of a moment ago."""
    values = {
        "owner": owner,
        "process": "elsewhere:1:1",
        "machine": "elsewhere",
        "pid": 1,
        "endpoint": None,
        "expires_at": time.time() + 3600,
    }
    execute(ledger, sa.insert(owners).values(values | changes))


def test_claim_goes_to_one_owner_until_released(ledger: Ledger) -> None:
    with ledger.working(None) as one, ledger.working(None) as two:
        assert claim(ledger, ["a", "b"], one.id) == {"a", "b"}
        assert claim(ledger, ["a", "b", "c"], two.id) == {"c"}
        assert claim(ledger, ["a", "b"], one.id) == {"a", "b"}
        ledger.release(one.id)
        assert claim(ledger, ["a", "b"], two.id) == {"a", "b"}


def test_owner_and_its_claims_end_with_its_work(ledger: Ledger) -> None:
    with ledger.working("endpoint") as one:
        claim(ledger, ["a"], one.id)
    assert execute(ledger, sa.select(claims)) == []
    assert execute(ledger, sa.select(owners)) == []


def test_claims_outside_of_work_are_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="owner 'nobody' is not registered"):
        claim(ledger, ["a"], "nobody")


def test_claim_takes_more_hashes_than_one_query_holds(ledger: Ledger) -> None:
    hashes = [f"{n:064}" for n in range(1203)]
    with ledger.working(None) as one, ledger.working(None) as two:
        assert claim(ledger, hashes, one.id) == set(hashes)
        assert claim(ledger, [*hashes, "other"], two.id) == {"other"}


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
    ledger.commit(there)
    assert there.is_final(max_new_tokens) is not is_free
    with ledger.working(None) as one:
        claimed = claim(ledger, [there.request_hash], one.id, max_new_tokens)
    assert claimed == ({there.request_hash} if is_free else set())


def test_commit_drops_the_claim(ledger: Ledger) -> None:
    unfinished = failed("a")
    with ledger.working(None) as one, ledger.working(None) as two:
        claim(ledger, [unfinished.request_hash], one.id)
        assert claim(ledger, [unfinished.request_hash], two.id) == set()
        ledger.commit_soon(unfinished).result(60)
        assert claim(ledger, [unfinished.request_hash], two.id) == {unfinished.request_hash}


# -- the dead --------------------------------------------------------------------------------


def test_owner_on_another_machine_blocks_until_it_expires(ledger: Ledger) -> None:
    with ledger.working(None) as mine:
        write_owner(ledger, "theirs")
        execute(ledger, sa.insert(claims).values(request_hash="a", owner="theirs"))
        assert claim(ledger, ["a"], mine.id) == set()
        execute(ledger, sa.update(owners).values(expires_at=1.0).where(owners.c.owner != mine.id))
        assert claim(ledger, ["a"], mine.id) == {"a"}
        assert execute(ledger, sa.select(owners.c.owner)) == [(mine.id,)]


def test_claim_without_an_owner_is_void(ledger: Ledger) -> None:
    execute(ledger, sa.insert(claims).values(request_hash="a", owner="gone"))
    with ledger.working(None) as mine:
        assert claim(ledger, ["a"], mine.id) == {"a"}


def test_owner_whose_pid_belongs_to_another_process_by_now_is_dead(ledger: Ledger) -> None:
    # Pid 1 runs, but it did not start when this owner's process did.
    reused = {"machine": machine_id(), "pid": 1, "process": f"{machine_id()}:1:987654321"}
    with ledger.working(None) as mine:
        write_owner(ledger, "before", **reused)
        execute(ledger, sa.insert(claims).values(request_hash="a", owner="before"))
        assert claim(ledger, ["a"], mine.id) == {"a"}


def test_process_knows_its_machine_and_start() -> None:
    me = this_process()
    assert me.pid == os.getpid()
    assert me.name.startswith(f"{machine_id()}:{os.getpid()}:")
    assert me.name.rpartition(":")[2].isdigit()  # Linux tells when it started


def _claim_and_wait(spec: StoreSpec, hashes: list[str], claimed: "Queue[set[str]]") -> None:
    claims_module.TTL_S = 3600.0  # what is free sooner is so because the process has ended
    with Ledger.open(spec) as ledger, ledger.working("endpoint") as owner:
        claimed.put(ledger.claim(hashes, owner.id, max_new_tokens=64))
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
        ledger.working("endpoint") as mine,
    ):
        assert claimed.get(timeout=120) == {"a", "b"}
        assert claim(ledger, ["a"], mine.id) == set()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        # Not yet waited for, it is a zombie now.
        wait_until(lambda: claim(ledger, ["a", "b"], mine.id) == {"a", "b"})


# -- beats -----------------------------------------------------------------------------------


def test_beats_keep_claims_alive(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "BEAT_S", 0.05)
    with ledger.working(None) as one, ledger.working(None) as two:
        claim(ledger, ["a"], one.id)
        # Nobody claims while its time is up, so it is a beat that gives it time again.
        is_one = owners.c.owner == one.id
        execute(ledger, sa.update(owners).values(expires_at=1.0).where(is_one))
        alive = sa.select(owners.c.owner).where(is_one, owners.c.expires_at > time.time() + 5)
        wait_until(lambda: execute(ledger, alive) == [(one.id,)])
        assert claim(ledger, ["a"], two.id) == set()


def test_owner_that_others_took_for_dead_registers_again(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "BEAT_S", 0.05)
    with ledger.working(None) as mine:
        execute(ledger, sa.delete(owners))
        wait_until(lambda: execute(ledger, sa.select(owners.c.owner)) == [(mine.id,)])


def test_claim_of_an_owner_that_was_taken_for_dead_holds(ledger: Ledger) -> None:
    with ledger.working(None) as one, ledger.working(None) as two:
        execute(ledger, sa.delete(owners))
        assert claim(ledger, ["a"], one.id) == {"a"}
        assert claim(ledger, ["a"], two.id) == set()


def test_failed_beat_is_logged_and_the_next_comes_through(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(claims_module, "BEAT_S", 0.05)
    with ledger.working(None) as mine, caplog.at_level(logging.WARNING):
        execute(ledger, sa.text("ALTER TABLE owners RENAME TO hidden"))
        wait_until(lambda: "claims not extended: cannot write ledger" in caplog.text)
        execute(ledger, sa.text("ALTER TABLE hidden RENAME TO owners"))
        execute(ledger, sa.update(owners).values(expires_at=1.0))
        alive = sa.select(owners.c.owner).where(owners.c.expires_at > 1.0)
        wait_until(lambda: execute(ledger, alive) == [(mine.id,)])


def test_owner_counts_live_processes_on_its_endpoint(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "BEAT_S", 0.05)
    write_owner(ledger, "theirs", endpoint="one")
    write_owner(ledger, "their other chunk", endpoint="one")
    write_owner(ledger, "expired", process="2", endpoint="one", expires_at=1.0)
    write_owner(ledger, "elsewhere", process="3", endpoint="two")
    killed = {"machine": machine_id(), "process": "killed", "pid": 2**22 + 1}
    write_owner(ledger, "killed", **killed, endpoint="one")
    with ledger.working("one") as mine, ledger.working("one"), ledger.working(None) as other:
        assert mine.processes == 2
        assert other.processes == 1
        execute(ledger, sa.delete(owners).where(owners.c.owner.like("their%")))
        wait_until(lambda: mine.processes == 1)


# -- many at once ----------------------------------------------------------------------------


def test_many_threads_claim_every_request_exactly_once(ledger_spec: StoreSpec) -> None:
    hashes = [f"{n:064}" for n in range(60)]
    start = threading.Barrier(4)

    def claim_all(_: int) -> list[str]:
        with Ledger.open(ledger_spec) as mine:
            start.wait(60)
            won: list[str] = []
            with mine.working(None) as owner:
                for request_hash in hashes:
                    won += claim(mine, [request_hash], owner.id)
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
    with Ledger.open(spec) as ledger, ledger.working("endpoint") as owner:
        left = sorted(rows)
        while left:
            won = ledger.claim(left[:40], owner.id, max_new_tokens=64)
            mine += won
            futures = [ledger.commit_soon(rows[h], purpose="p") for h in won]
            for future in futures:
                future.result(60)
            answered = ledger.get(left[:40])
            left = [h for h in left if h not in answered]
    asked.put(mine)


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
