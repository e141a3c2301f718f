"""The ledger keeps every response, merges it with what is there, and counts what was spent."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import sqlalchemy as sa

from distillery.ledger import Averages, Ledger, LedgerRow, Spending
from distillery.ledger.tables import meta, responses
from schemas.errors import RecipeError, StoreError
from schemas.execution import StoreSpec
from tests.fixtures_ledger import failed, kept, row

STATES = ["ok", "empty", "truncated", "malformed", "refused", "failed"]


def test_columns_are_the_fields_of_a_row() -> None:
    assert [c.name for c in responses.c] == [f.name for f in dataclasses.fields(LedgerRow)]


def test_committed_row_comes_back_unchanged(ledger: Ledger, ledger_spec: StoreSpec) -> None:
    whole = row("a", text="naïve 🙂", repaired=True, cost=None, currency=None)
    ledger.commit(whole)
    with Ledger.open(ledger_spec) as other:
        assert other.get([whole.request_hash, "b"]) == {whole.request_hash: whole}


def test_get_takes_more_hashes_than_one_query_holds(ledger: Ledger) -> None:
    rows = [row("a", request_hash=f"{n:064}") for n in range(1203)]
    ledger.commit(*rows)
    assert ledger.get([r.request_hash for r in rows]) == {r.request_hash: r for r in rows}


@pytest.mark.parametrize("first", STATES)
def test_text_gives_way_unless_it_is_ok_or_the_request_failed_this_time(
    ledger: Ledger, first: str
) -> None:
    old = {"state": first, "text": "old", "max_new_tokens": 16, "error": "1", "created_at": 1.0}
    new = {"text": "new", "max_new_tokens": 64, "error": "2", "created_at": 2.0}
    for second in STATES:
        ledger.commit(row(second, **old))
        ledger.commit(row(second, state=second, **new))
        stays = first == "ok" or (second == "failed" and first != "failed")
        expected = old if stays else {"state": second, **new}
        if (first, second) == ("truncated", "refused"):  # the longer limit is refused
            expected = {**old, "max_new_tokens": 64}
        assert {name: getattr(kept(ledger, second), name) for name in old} == expected


def test_figures_of_all_runs_add_up_whichever_text_stays(ledger: Ledger) -> None:
    ledger.commit(failed("a", attempts=6, billed_prompt_tokens=12))
    ledger.commit(row("a", attempts=2, cost=0.5))
    ledger.commit(row("a", attempts=1, cost=0.25))
    found = kept(ledger, "a")
    assert (found.attempts, found.failed_runs, found.cost, found.currency) == (9, 1, 0.75, "USD")
    assert (found.billed_prompt_tokens, found.billed_completion_tokens) == (18, 2)


def test_cost_stays_unknown_when_no_run_knew_it(ledger: Ledger) -> None:
    ledger.commit(failed("a"))
    ledger.commit(row("a", cost=None, currency=None))
    assert kept(ledger, "a").cost is None


def test_one_commit_may_hold_several_rows_of_one_request(ledger: Ledger) -> None:
    ledger.commit(failed("a"), row("a", text="first"), row("a", text="second"))
    assert (kept(ledger, "a").text, kept(ledger, "a").attempts) == ("first", 8)


def test_commit_of_nothing_is_nothing(ledger: Ledger) -> None:
    ledger.commit(purpose="generation")
    assert ledger.spent("generation") == Spending()


def test_half_a_surrogate_pair_and_nul_become_replacement_characters(ledger: Ledger) -> None:
    ledger.commit(row("a", text="cut \ud83d and \0 and 🙂", error="\0", model_reported="\udc80"))
    found = kept(ledger, "a")
    assert found.text == "cut \ufffd and \ufffd and 🙂"
    assert (found.error, found.model_reported) == ("\ufffd", "\ufffd")


def test_rows_of_a_megabyte_are_kept(ledger: Ledger) -> None:
    ledger.commit(row("p" * 1_000_000, text="é" * 1_000_000))
    assert kept(ledger, "p" * 1_000_000).text == "é" * 1_000_000


# -- spending --------------------------------------------------------------------------------


def test_spending_adds_up_by_purpose_even_when_the_text_gives_way(ledger: Ledger) -> None:
    ledger.commit(row("a"), row("b", cost=None), purpose="generation")
    ledger.commit(row("a", cost=0.5, billed_prompt_tokens=7), purpose="generation")
    ledger.commit_soon(row("c"), purpose="evaluation").result(60)
    ledger.commit(row("d"))
    assert ledger.spent("generation") == Spending(
        requests=3, prompt_tokens=13, completion_tokens=3, cost=0.75
    )
    assert ledger.spent("evaluation") == Spending(
        requests=1, prompt_tokens=3, completion_tokens=1, cost=0.25
    )
    assert ledger.spent("nothing") == Spending()


def test_averages_are_over_the_newest_ok_rows_with_usage(ledger: Ledger) -> None:
    ledger.commit(
        row("1234", prompt_tokens=10, completion_tokens=2, latency_s=1.0),
        row("123456", prompt_tokens=20, completion_tokens=4, latency_s=2.0),
        row("unknown usage", prompt_tokens=None, latency_s=3.0),
        row("cut", state="truncated", prompt_tokens=1000),
        row("other", teacher_id="t" * 64, prompt_tokens=1000),
    )
    assert ledger.averages(row("1234").teacher_id) == Averages(
        num_rows=3, prompt_chars=5.0, prompt_tokens=15.0, completion_tokens=3.0, latency_s=2.0
    )


def test_averages_look_at_the_newest_thousand_rows_only(ledger: Ledger) -> None:
    old = [row("a", request_hash=f"{n:064}", prompt_tokens=9, created_at=n) for n in range(500)]
    new = [
        row("a", request_hash=f"{n:064}", prompt_tokens=1, created_at=n) for n in range(500, 1500)
    ]
    ledger.commit(*old, *new)
    found = ledger.averages(row("a").teacher_id)
    assert (found.num_rows, found.prompt_tokens) == (1000, 1.0)


def test_averages_of_an_unknown_teacher_are_unknown(ledger: Ledger) -> None:
    assert ledger.averages("nobody") == Averages()


# -- commits in groups -----------------------------------------------------------------------


def test_rows_committed_soon_by_many_threads_are_all_there(
    ledger: Ledger, ledger_spec: StoreSpec
) -> None:
    def commit(thread: int) -> None:
        with Ledger.open(ledger_spec) as mine:
            rows = [row("a", request_hash=f"{thread}{n:063}") for n in range(100)]
            for future in [mine.commit_soon(r, purpose="p") for r in rows]:
                future.result(60)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(commit, range(8)))
    hashes = [f"{thread}{n:063}" for thread in range(8) for n in range(100)]
    assert len(ledger.get(hashes)) == 800
    assert ledger.spent("p").requests == 800


def test_closing_commits_what_is_left(ledger_spec: StoreSpec) -> None:
    with Ledger.open(ledger_spec) as first:
        futures = [first.commit_soon(row("a", request_hash=f"{n:064}")) for n in range(2500)]
    assert all(future.done() for future in futures)
    with Ledger.open(ledger_spec) as again:
        assert len(again.get([f"{n:064}" for n in range(2500)])) == 2500


def test_row_that_the_database_refuses_fails_alone(ledger: Ledger) -> None:
    bad = row("bad", prompt_tokens=2**70)
    rows = [row("a"), bad, row("b")]
    with ledger._database.engine.connect() as blocker, blocker.begin():
        # While another writer holds up the first, all three come into one group.
        if not ledger._database.is_sqlite:
            blocker.execute(sa.text("LOCK TABLE responses IN EXCLUSIVE MODE"))
        blocker.execute(sa.update(meta).values(schema_version=2))
        first = ledger.commit_soon(row("first"))
        time.sleep(0.1)
        futures = [ledger.commit_soon(r) for r in rows]
    first.result(60)
    wait(futures, 60)
    assert futures[0].exception() is None and futures[2].exception() is None
    with pytest.raises(StoreError, match=f"response to request '{bad.request_hash}' cannot be"):
        futures[1].result()
    assert set(ledger.get([r.request_hash for r in rows])) == {
        row("a").request_hash,
        row("b").request_hash,
    }


def test_future_of_a_paid_response_cannot_be_cancelled(ledger: Ledger) -> None:
    future = ledger.commit_soon(row("a"))
    assert not future.cancel()
    future.result(60)
    assert kept(ledger, "a").text == "yes"


def test_ledgers_of_one_process_share_connections_and_a_thread(ledger_spec: StoreSpec) -> None:
    def committing() -> int:
        return sum(thread.name == "ledger-commit" for thread in threading.enumerate())

    before = committing()
    with Ledger.open(ledger_spec) as first:
        with Ledger.open(ledger_spec) as second:
            assert first._database is second._database
            assert committing() == before + 1
        first.commit(row("a"))  # the last user closes
        assert committing() == before + 1
        first.close()
        first.close()  # once more is nobody else's use
    assert committing() == before


_FORK = """
import os, sys, warnings
from schemas.execution import StoreSpec
from distillery.ledger import Ledger
from tests.fixtures_ledger import kept, row
warnings.simplefilter("ignore")  # that a process with threads forks is the point
spec = StoreSpec(root=sys.argv[1], ledger_url=sys.argv[2] or None)
with Ledger.open(spec) as parent:
    parent.commit_soon(row("before")).result(60)
    child = os.fork()
    if child == 0:
        with Ledger.open(spec) as mine:
            mine.commit_soon(row("child")).result(60)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    parent.commit_soon(row("after")).result(60)
    print([kept(parent, name).text for name in ("before", "child", "after")])
"""


def test_forked_process_opens_a_ledger_of_its_own(ledger_spec: StoreSpec) -> None:
    arguments = [ledger_spec.root, ledger_spec.ledger_url or ""]
    done = subprocess.run(
        [sys.executable, "-c", _FORK, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "['yes', 'yes', 'yes']\n", done.stderr


def _commit_until_killed(spec: StoreSpec, first_done: Event) -> None:
    with Ledger.open(spec) as opened:
        for n in range(1_000_000):
            opened.commit_soon(row("a", request_hash=f"{n:064}")).result()
            if n == 5:
                first_done.set()


def test_rows_whose_future_is_done_survive_a_kill(ledger_spec: StoreSpec) -> None:
    context = multiprocessing.get_context("spawn")
    first_done = context.Event()
    child = context.Process(target=_commit_until_killed, args=(ledger_spec, first_done))
    child.start()
    assert first_done.wait(120)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    with Ledger.open(ledger_spec) as opened:
        assert len(opened.get([f"{n:064}" for n in range(6)])) == 6


# -- opening ---------------------------------------------------------------------------------


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
        ("sqlite://", "in memory, which is gone when the run ends"),
    ],
)
def test_unusable_ledger_url_is_refused_without_showing_it(url: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Ledger.open(StoreSpec(ledger_url=url))
    assert "hunter2" not in str(caught.value)


def test_relative_ledger_url_is_one_place_wherever_the_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = StoreSpec(ledger_url="sqlite:///ledger.sqlite")
    with Ledger.open(spec) as here:
        here.commit(row("a"))
        monkeypatch.chdir("/")
        assert kept(here, "a").text == "yes"
    with Ledger.open(StoreSpec(root=str(tmp_path))) as same:
        assert kept(same, "a").text == "yes"


def test_sqlite_waits_for_other_writers_in_wal_mode(sqlite_spec: StoreSpec) -> None:
    with Ledger.open(sqlite_spec) as ledger, ledger._database.engine.connect() as connection:
        values = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "busy_timeout", "synchronous")
        ]
    assert values == ["wal", 30_000, 1]
