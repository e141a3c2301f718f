"""The ledger keeps every response, merges it with what is there, and counts what was spent."""

import contextlib
import multiprocessing
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from distillery.ledger import Ledger, Spending
from distillery.ledger.commits import Entry
from distillery.ledger.tables import meta
from schemas.errors import RecipeError, StoreError
from schemas.execution import StoreSpec
from tests.fixtures_ledger import commit, failed, kept, row

STATES = ["ok", "empty", "truncated", "malformed", "refused", "failed"]


def test_committed_row_comes_back_unchanged(ledger: Ledger, ledger_spec: StoreSpec) -> None:
    whole = row("a", text="naïve 🙂", repaired=True, cost=None, currency=None)
    commit(ledger, whole)
    with Ledger.open(ledger_spec) as other:
        assert other.get([whole.request_hash, "b"]) == {whole.request_hash: whole}


def test_get_takes_more_hashes_than_one_query_holds(ledger: Ledger) -> None:
    rows = [row("a", request_hash=f"{n:064}") for n in range(1203)]
    commit(ledger, *rows)
    assert ledger.get([r.request_hash for r in rows]) == {r.request_hash: r for r in rows}


@pytest.mark.parametrize("first", STATES)
def test_text_gives_way_unless_it_is_ok_or_the_request_failed_this_time(
    ledger: Ledger, first: str
) -> None:
    old: dict[str, Any] = {
        "state": first,
        "text": "old",
        "max_new_tokens": 16,
        "error": "1",
        "created_at": 1.0,
    }
    new: dict[str, Any] = {"text": "new", "max_new_tokens": 64, "error": "2", "created_at": 2.0}
    for second in STATES:
        commit(ledger, row(second, **old))
        commit(ledger, row(second, state=second, **new))
        stays = first == "ok" or (second == "failed" and first != "failed")
        expected = old if stays else {"state": second, **new}
        if (first, second) == ("truncated", "refused"):  # the longer limit is refused
            expected = {**old, "max_new_tokens": 64}
        assert {name: getattr(kept(ledger, second), name) for name in old} == expected


def test_figures_of_all_runs_add_up_whichever_text_stays(ledger: Ledger) -> None:
    commit(ledger, failed("a", attempts=6, billed_prompt_tokens=12))
    commit(ledger, row("a", attempts=2, cost=0.5))
    commit(ledger, row("a", attempts=1, cost=0.25))
    found = kept(ledger, "a")
    assert (found.attempts, found.failed_runs, found.cost, found.currency) == (9, 1, 0.75, "USD")
    assert (found.billed_prompt_tokens, found.billed_completion_tokens) == (18, 2)


def test_cost_stays_unknown_when_no_run_knew_it(ledger: Ledger) -> None:
    commit(ledger, failed("a"))
    commit(ledger, row("a", cost=None, currency=None))
    assert kept(ledger, "a").cost is None


def test_one_commit_may_hold_several_rows_of_one_request(ledger: Ledger) -> None:
    commit(ledger, failed("a"), row("a", text="first"), row("a", text="second"))
    assert (kept(ledger, "a").text, kept(ledger, "a").attempts) == ("first", 8)


def test_half_a_surrogate_pair_and_nul_become_replacement_characters(ledger: Ledger) -> None:
    commit(ledger, row("a", text="cut \ud83d and \0 and 🙂", error="\0", model_reported="\udc80"))
    found = kept(ledger, "a")
    assert found.text == "cut \ufffd and \ufffd and 🙂"
    assert (found.error, found.model_reported) == ("\ufffd", "\ufffd")


def test_rows_of_a_megabyte_are_kept(ledger: Ledger) -> None:
    commit(ledger, row("p" * 1_000_000, text="é" * 1_000_000))
    assert kept(ledger, "p" * 1_000_000).text == "é" * 1_000_000


def test_commit_whose_answer_was_lost_may_be_repeated(ledger: Ledger) -> None:
    entries = [Entry(row(str(n)), "p", f"{n:032}") for n in range(5)]
    for _ in range(2):
        ledger._database.write(lambda c: ledger._group._writer.commit(c, entries))
    assert ledger.spent("p") == Spending(
        requests=5, prompt_tokens=15, completion_tokens=5, cost=1.25
    )
    found = ledger.get([entry.row.request_hash for entry in entries])
    assert [(r.attempts, r.cost) for r in found.values()] == [(1, 0.25)] * 5


def test_sqlite_takes_over_the_responses_of_another_ledger(
    sqlite_spec: StoreSpec, tmp_path: Path
) -> None:
    """As docs/teachers.md says."""
    with Ledger.open(StoreSpec(root=str(tmp_path / "elsewhere"))) as other:
        commit(other, row("a", text="theirs"), row("b", text="theirs"))
    with Ledger.open(sqlite_spec) as ledger:
        commit(ledger, row("a", text="mine"))
        commands = Path("docs/teachers.md").read_text(encoding="utf-8")
        (command,) = re.findall(r'sqlite3 \.distillery/ledger\.sqlite "(.*)"', commands)
        with contextlib.closing(sqlite3.connect(Path(sqlite_spec.root, "ledger.sqlite"))) as sql:
            sql.executescript(command.replace("elsewhere/", f"{tmp_path}/elsewhere/"))
        assert (kept(ledger, "a").text, kept(ledger, "b").text) == ("mine", "theirs")


# -- spending --------------------------------------------------------------------------------


def test_spending_adds_up_by_purpose_even_when_the_text_gives_way(ledger: Ledger) -> None:
    commit(ledger, row("a"), row("b", cost=None), purpose="generation")
    commit(ledger, row("a", cost=0.5, billed_prompt_tokens=7), purpose="generation")
    ledger.commit_soon(row("c"), purpose="evaluation").result(60)
    commit(ledger, row("d"))
    assert ledger.spent("generation") == Spending(
        requests=3, prompt_tokens=13, completion_tokens=3, cost=0.75
    )
    assert ledger.spent("evaluation") == Spending(
        requests=1, prompt_tokens=3, completion_tokens=1, cost=0.25
    )
    assert ledger.spent("nothing") == Spending()


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
        blocker.execute(sa.update(meta).values(schema_version=4))
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
        commit(here, row("a"))
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
