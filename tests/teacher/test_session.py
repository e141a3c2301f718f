"""A session with a teacher: each request is paid for once, and asked again only when it helps."""

import contextlib
import dataclasses
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from distillery.ledger import Ledger
from distillery.ledger.tables import claims
from distillery.teacher.generation import generate_chunk, open_session, plan_chunks, prompt_requests
from schemas.errors import RecipeError, StoreError, TeacherError
from schemas.execution import StoreSpec
from tests.fixtures_generation import (
    TASK,
    answer,
    contents,
    endpoint,
    ledger_rows,
    rows_of,
    run_all,
    train_prompts,
    write_prompts,
)
from tests.flying_time import let_time_fly
from tests.stub_endpoint import STANDS_STILL, Reply, StubEndpoint

PRICE = {"prompt_per_million": 1e6, "completion_per_million": 1e6, "currency": "EUR"}  # 1 a token


# -- asked again, or not -------------------------------------------------------------------------


def test_truncated_rows_are_asked_again_only_when_the_limit_is_raised(store: StoreSpec) -> None:
    prompts = train_prompts(store, 3)

    def respond(body: dict[str, Any]) -> Reply:
        is_long = body["messages"][0]["content"] == "q1" and body["max_tokens"] < 40
        return Reply(text="half", finish_reason="length") if is_long else Reply()

    with StubEndpoint(respond=respond) as stub:

        def states(max_new_tokens: int) -> list[tuple[str, str]]:
            teacher = endpoint(stub, max_new_tokens=max_new_tokens)
            written = rows_of(run_all(prompts, teacher, store, force=True), store)
            return [(row["state"], row["response"]) for row in written]

        fine, cut = ("ok", "fine"), ("truncated", "half")
        assert states(16) == [fine, cut, fine]
        assert stub.num_requests == 3
        assert states(8) == [fine, cut, fine]
        assert stub.num_requests == 3, "a lower limit asks nothing"
        assert states(32) == [fine, cut, fine]
        assert stub.num_requests == 4
        assert states(16) == [fine, cut, fine]
        assert stub.num_requests == 4, "16 has been tried, with 32"
        assert states(64) == [fine, fine, fine]
        assert [body["max_tokens"] for body in stub.requests[3:]] == [32, 64]
        assert states(8) == [fine, fine, fine]
        assert states(128) == [fine, fine, fine]
        assert stub.num_requests == 5, "what is whole is never asked again"
        row = ledger_rows(prompts, endpoint(stub), store)["p1"]
        assert (row.attempts, row.billed_prompt_tokens) == (3, 21)


def test_text_that_was_cut_is_kept_when_the_raised_limit_brings_none(
    store: StoreSpec, quick_retries: None
) -> None:
    prompts = train_prompts(store, 2)
    cut = Reply(text="half", finish_reason="length")
    with StubEndpoint(default=cut) as stub:
        run_all(prompts, endpoint(stub, max_new_tokens=8), store)
        stub.default = Reply(status=500)
        longer = endpoint(stub, max_new_tokens=16, max_attempts=1)
        with pytest.raises(TeacherError, match="2 of 2 prompts"):
            run_all(prompts, longer, store)
        result = run_all(prompts, endpoint(stub, max_new_tokens=8), store, force=True)
    written = [(row["state"], row["response"]) for row in rows_of(result, store)]
    assert written == [("truncated", "half")] * 2


def test_thoughts_that_no_limit_ends_are_no_reason_to_end_the_run_that_raised_it(
    store: StoreSpec, quick_retries: None
) -> None:
    prompts = train_prompts(store, 5)
    endless = Reply(text=None, message_facts={"reasoning": "Or"}, finish_reason="length")

    def respond(body: dict[str, Any]) -> Reply:
        return Reply() if body["messages"][0]["content"] == "q0" else endless

    with StubEndpoint(respond=respond) as stub:
        for most in (8, 16):
            result = run_all(prompts, endpoint(stub, max_new_tokens=most), store)
            states = [row["state"] for row in rows_of(result, store)]
            assert states == ["ok", *["truncated"] * 4]
        assert stub.num_requests == 5 + 4


def test_raised_limit_that_fails_in_three_runs_leaves_the_text_that_was_cut(
    store: StoreSpec, quick_retries: None
) -> None:
    prompts = train_prompts(store, 3)

    def respond(body: dict[str, Any]) -> Reply:
        is_long = body["messages"][0]["content"] == "q1"
        if is_long and body["max_tokens"] > 8:
            return Reply(status=500)
        return Reply(text="half", finish_reason="length") if is_long else Reply()

    with StubEndpoint(respond=respond) as stub:
        run_all(prompts, endpoint(stub, max_new_tokens=8), store)
        longer = endpoint(stub, max_new_tokens=16, max_attempts=1)
        for run in range(3):  # each answers another prompt
            answer(write_prompts(store, [("train", f"new{run}"), ("train", "q1")]), longer, store)
        assert contents(stub)["q1"] == 1 + 3
        written = rows_of(run_all(prompts, longer, store), store)
        assert contents(stub)["q1"] == 1 + 3
    assert [(row["state"], row["response"]) for row in written][1] == ("truncated", "half")


def test_empty_response_is_asked_three_times_in_all_and_then_final(store: StoreSpec) -> None:
    prompts = train_prompts(store, 2)

    def respond(body: dict[str, Any]) -> Reply:
        content = body["messages"][0]["content"]
        is_there = content == "q1" and contents(stub)[content] == 3
        return Reply(text="at last" if is_there else " \n")

    with StubEndpoint(respond=respond) as stub:
        teacher = endpoint(stub)
        written = rows_of(run_all(prompts, teacher, store), store)
        assert [(row["state"], row["response"]) for row in written] == [
            ("empty", ""),
            ("ok", "at last"),
        ]
        assert contents(stub) == {"q0": 3, "q1": 3}
        run_all(prompts, teacher, store, force=True)
        assert stub.num_requests == 6
        row = ledger_rows(prompts, teacher, store)["p1"]
        assert (row.attempts, row.prompt_tokens, row.billed_prompt_tokens) == (3, 7, 21)


def test_failure_counts_for_a_run_however_many_chunks_want_the_row(
    store: StoreSpec, quick_retries: None
) -> None:
    prompts = write_prompts(store, [("train", c) for c in ("a", "bad", "b", "bad", "c", "bad")])

    def respond(body: dict[str, Any]) -> Reply:
        is_bad = body["messages"][0]["content"] == "bad"
        return Reply(status=500, delay_s=0.02) if is_bad else Reply()

    with StubEndpoint(respond=respond) as stub:
        teacher = endpoint(stub, max_attempts=2)
        chunks = plan_chunks(prompts, 2, store)
        with (
            open_session(prompts, teacher, TASK, store) as session,
            ThreadPoolExecutor(3) as pool,
        ):
            counts = list(pool.map(lambda chunk: generate_chunk(chunk, session, TASK), chunks))
        assert contents(stub)["bad"] == 2
        assert counts == [{"ok": 1, "failed": 1}] * 3
        row = ledger_rows(prompts, teacher, store)["p1"]
        assert (row.attempts, row.failed_runs) == (2, 1)


def test_failure_of_a_suspect_counts_when_nothing_else_is_asked_and_of_others_does_not(
    store: StoreSpec, quick_retries: None
) -> None:
    def respond(body: dict[str, Any]) -> Reply:
        content = body["messages"][0]["content"]
        return Reply() if content == "good" and not is_down else Reply(status=500)

    is_down = False
    with StubEndpoint(respond=respond) as stub:
        teacher = endpoint(stub, max_attempts=1, concurrency=1)

        def failed_runs(*asked: str) -> dict[str, int]:
            prompts = write_prompts(store, [("train", content) for content in asked])
            answer(prompts, teacher, store)
            rows = ledger_rows(prompts, teacher, store)
            return {asked[int(key[1:])]: row.failed_runs for key, row in rows.items()}

        assert failed_runs("good", "bad") == {"good": 0, "bad": 1}
        is_down = True
        assert failed_runs("bad", "new") == {"bad": 1, "new": 0}, "nothing was answered"
        assert failed_runs("bad") == {"bad": 2}


@pytest.mark.parametrize("num_rows", [1, 3])
def test_run_that_ends_as_the_endpoint_hangs_blames_no_row(
    store: StoreSpec, quick_retries: None, num_rows: int
) -> None:
    prompts = train_prompts(store, num_rows)
    with StubEndpoint(default=STANDS_STILL) as stub:
        teacher = endpoint(stub, timeout_s=0.1, max_attempts=2)
        with pytest.raises(TeacherError, match="no answer in 2 attempts"):
            run_all(prompts, teacher, store)
        assert ledger_rows(prompts, teacher, store) == {}


@pytest.mark.parametrize("error", [Reply(status=500), Reply(reset=True)], ids=["500", "reset"])
def test_first_prompt_that_breaks_the_endpoint_does_not_keep_the_others_waiting(
    store: StoreSpec, monkeypatch: pytest.MonkeyPatch, error: Reply
) -> None:
    let_time_fly(monkeypatch)
    prompts = train_prompts(store, 20)

    def respond(body: dict[str, Any]) -> Reply:
        return error if body["messages"][0]["content"] == "q0" else Reply()

    with (
        StubEndpoint(respond=respond) as stub,
        open_session(prompts, endpoint(stub, max_attempts=3), TASK, store) as session,
    ):
        (chunk,) = plan_chunks(prompts, 100, store)
        assert generate_chunk(chunk, session, TASK) == {"ok": 19, "failed": 1}
        asked = [body["messages"][0]["content"] for body in stub.requests]
    assert asked[:2] == ["q0", "q1"]
    assert ledger_rows(prompts, session.teacher, store)["p0"].failed_runs == 1


@pytest.mark.parametrize("fault", [Reply(status=500), STANDS_STILL], ids=["500", "hangs"])
def test_many_prompts_that_break_the_endpoint_are_no_outage_and_are_left_in_the_third_run(
    store: StoreSpec, monkeypatch: pytest.MonkeyPatch, fault: Reply
) -> None:
    prompts = train_prompts(store, 24)

    def is_bad(content: str) -> bool:
        return int(content[1:]) % 8 == 1

    def respond(body: dict[str, Any]) -> Reply:
        return fault if is_bad(body["messages"][0]["content"]) else Reply()

    let_time_fly(monkeypatch, hangs=lambda content: fault is STANDS_STILL and is_bad(content))
    with StubEndpoint(respond=respond) as stub:
        limits: dict[str, Any] = {"max_attempts": 8, "max_outage_s": 100, "timeout_s": 60}
        teacher = endpoint(stub, concurrency=8, **limits)
        for run in (1, 2):
            with pytest.raises(TeacherError, match="3 of 24 prompts have no response yet"):
                run_all(prompts, teacher, store)
            rows = ledger_rows(prompts, teacher, store).values()
            assert Counter((row.state, row.failed_runs) for row in rows) == {
                ("ok", 0): 21,
                ("failed", run): 3,
            }
        counts = run_all(prompts, teacher, store).manifest.counts
    assert (counts["ok"], counts["failed"]) == (21, 3)


# -- what others ask -----------------------------------------------------------------------------


@contextlib.contextmanager
def another_process(store: StoreSpec, asks: Sequence[str]) -> Iterator[None]:
    """Another process that asks for ``asks`` as long as the block lasts."""
    with Ledger.open(store) as ledger, ledger.working() as owner:
        assert ledger.claim(asks, owner, max_new_tokens=2**31) == set(asks)
        yield


def test_what_another_process_asks_is_waited_for_until_it_is_gone(store: StoreSpec) -> None:
    prompts = train_prompts(store, 3)
    theirs = contextlib.ExitStack()

    def respond(_: dict[str, Any]) -> Reply:
        if stub.num_requests == 2:  # all that the other process does not ask
            threading.Timer(0.2, theirs.close).start()
        return Reply()

    with StubEndpoint(respond=respond) as stub:
        teacher = endpoint(stub)
        hashes = [r.request_hash for r in prompt_requests(prompts, teacher, TASK, store)]
        theirs.enter_context(another_process(store, hashes[:1]))
        result = run_all(prompts, teacher, store)
        assert contents(stub) == {"q0": 1, "q1": 1, "q2": 1}
        assert stub.requests[-1]["messages"][0]["content"] == "q0"
    assert result.manifest.counts == {"ok": 3, "from_ledger": 0, "asked": 3}


# -- figures -------------------------------------------------------------------------------------


def test_totals_say_what_was_paid_and_what_the_ledger_saved(store: StoreSpec) -> None:
    prompts = write_prompts(store, [("train", c) for c in "abca"])
    with StubEndpoint() as stub:  # 7 tokens read and 2 written, each time
        teacher = endpoint(stub, price=PRICE)
        first = answer(prompts, teacher, store)
        assert (first.asked, first.from_ledger, first.num_responses) == (3, 1, 3)
        assert (first.prompt_tokens, first.completion_tokens) == (21, 6)
        assert (first.cost, first.saved_cost, first.currency) == (27.0, 9.0, "EUR")
        second = answer(prompts, teacher, store)
        assert (second.asked, second.from_ledger, second.num_responses) == (0, 4, 0)
        assert (second.cost, second.saved_cost, second.seconds) == (0.0, 36.0, None)
        unpriced = answer(prompts, endpoint(stub), store)
        assert (unpriced.cost, unpriced.saved_cost, unpriced.currency) == (None, None, None)


def test_attempts_that_were_answered_are_paid_whatever_came_of_them(
    store: StoreSpec, quick_retries: None
) -> None:
    prompts = train_prompts(store, 1)
    script = [Reply(text=""), Reply(status=500), Reply()]
    with StubEndpoint(script) as stub:
        totals = answer(prompts, endpoint(stub, price=PRICE), store)
    assert (totals.cost, totals.retries, totals.num_responses) == (18.0, 2, 1)


def test_rate_limits_are_counted_and_the_last_error_told(
    store: StoreSpec, quick_retries: None
) -> None:
    prompts = train_prompts(store, 4)
    limited = Reply(status=429, headers={"Retry-After": "0.1"})

    def respond(body: dict[str, Any]) -> Reply:
        is_bad = body["messages"][0]["content"] == "q3"
        return Reply(status=500, error="boom") if is_bad else Reply()

    with StubEndpoint([limited], respond=respond) as stub:
        totals = answer(prompts, endpoint(stub, max_attempts=1), store)
    assert (totals.rate_limited, totals.last_error) == (1, "status 500: boom")


def test_totals_tell_the_cost_so_far(store: StoreSpec) -> None:
    prompts = train_prompts(store, 3)
    (chunk,) = plan_chunks(prompts, 10, store)
    seen: list[tuple[int, float | None]] = []
    with (
        StubEndpoint() as stub,
        open_session(prompts, endpoint(stub, price=PRICE), TASK, store) as session,
    ):
        generate_chunk(
            chunk,
            session,
            TASK,
            on_progress=lambda done: seen.append((done, session.totals.cost)),
        )
    assert seen == [(1, 9.0), (2, 18.0), (3, 27.0)]


# -- errors --------------------------------------------------------------------------------------


def test_error_that_meets_all_is_told_to_the_chunks_that_have_not_begun(
    store: StoreSpec, patient: None
) -> None:
    prompts = train_prompts(store, 4)
    with StubEndpoint(default=Reply(status=403)) as stub:
        first, second = plan_chunks(prompts, 2, store)
        with open_session(prompts, endpoint(stub), TASK, store) as session:
            assert session.failed_with is None
            with pytest.raises(TeacherError, match="403"):
                generate_chunk(first, session, TASK)
            assert isinstance(session.failed_with, TeacherError)
            with pytest.raises(TeacherError, match="403"):
                generate_chunk(second, session, TASK)
        assert stub.num_requests == 1


def test_missing_key_asks_nothing_and_leaves_no_claim(
    store: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    prompts = train_prompts(store, 2)
    with StubEndpoint() as stub:
        with pytest.raises(RecipeError, match="'NO_KEY'"):
            answer(prompts, endpoint(stub, api_key_env="NO_KEY"), store)
        assert stub.num_requests == 0
        with Ledger.open(store) as ledger, ledger._database.engine.connect() as connection:
            assert connection.execute(sa.select(claims)).all() == []
        assert answer(prompts, endpoint(stub), store).asked == 2


def test_response_that_cannot_be_kept_ends_the_run_and_the_others_are_there(
    store: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = train_prompts(store, 6)
    commit_soon = Ledger.commit_soon

    def refusing(ledger: Ledger, row: Any, *, purpose: str | None = None) -> Any:
        # More than 64 bits hold: SQLite refuses this row only.
        if '"q3"' in row.request:
            row = dataclasses.replace(row, max_new_tokens=2**70)
        return commit_soon(ledger, row, purpose=purpose)

    with StubEndpoint() as stub:
        teacher = endpoint(stub, concurrency=1)
        with monkeypatch.context() as patched, pytest.raises(StoreError, match="cannot be kept"):
            patched.setattr(Ledger, "commit_soon", refusing)
            answer(prompts, teacher, store)
        assert stub.num_requests == 4
        assert answer(prompts, teacher, store).from_ledger == 3


def test_interrupted_caller_lets_go_and_what_is_there_is_kept(store: StoreSpec) -> None:
    prompts = train_prompts(store, 500)
    (chunk,) = plan_chunks(prompts, 500, store)
    enough = threading.Event()

    def stop(num_done: int) -> None:
        if num_done >= 5:
            enough.set()
            raise KeyboardInterrupt

    with StubEndpoint(default=Reply(delay_s=0.01)) as stub:
        teacher = endpoint(stub)
        with (
            open_session(prompts, teacher, TASK, store) as session,
            pytest.raises(KeyboardInterrupt),
        ):
            generate_chunk(chunk, session, TASK, on_progress=stop)
        assert enough.is_set()
        asked = stub.num_requests
        assert asked < 12
        assert len(ledger_rows(prompts, teacher, store)) >= 5
