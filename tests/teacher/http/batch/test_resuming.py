"""A run ends while its batch goes on: the next one reads the results and pays nothing twice."""

import logging
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from distillery.ledger import Batches, Ledger
from distillery.teacher import ResponseSchema
from distillery.teacher.session import AskedFor, TeacherSession
from schemas.budget import PriceSpec
from schemas.errors import TeacherError
from schemas.execution import StoreSpec
from schemas.teacher import OpenAITeacher
from tests.fixtures_endpoint import requests_for
from tests.stub_batches import StubAnthropic, StubOpenAI
from tests.stub_endpoint import Reply
from tests.teacher.http.batch.conftest import Ask
from tests.waiting import wait_until

PRICE = PriceSpec(prompt_per_million=1_000_000, completion_per_million=1_000_000)

_RUN = """
import sys
from distillery.teacher.session import AskedFor, TeacherSession
from schemas.execution import StoreSpec
from schemas.teacher import OpenAITeacher
from tests.fixtures_endpoint import requests_for

spec = OpenAITeacher.model_validate_json(sys.argv[1])
asked = AskedFor()
asked.add(requests_for(spec, 2))
with TeacherSession(spec, StoreSpec(root=sys.argv[2]), purpose="test") as session:
    session.answer(asked)
"""


def spec_for(stub: StubOpenAI | StubAnthropic, **changes: Any) -> OpenAITeacher:
    settings = {"model": "big", "base_url": stub.base_url, "batch": True, "max_attempts": 3}
    return OpenAITeacher(**{**settings, **changes})


def test_killed_run_leaves_a_batch_that_the_next_run_reads(ask: Ask, store: StoreSpec) -> None:
    running = threading.Event()
    running.set()
    with StubOpenAI(is_running=running.is_set) as stub:
        spec = spec_for(stub, price=PRICE)
        run = [sys.executable, "-c", _RUN, spec.model_dump_json(), store.root]
        with subprocess.Popen(run, env={**os.environ, "PYTHONPATH": os.getcwd()}) as process:
            wait_until(lambda: bool(stub.made) and stub.made[0].num_polls > 0)
            process.send_signal(signal.SIGKILL)
        running.clear()
        rows, totals = ask(spec, "q0", "q1")
    assert {row.text for row in rows.values()} == {"re q0", "re q1"}
    assert stub.asked == {"q0": 1, "q1": 1}
    assert totals.cost == 2 * 4.5


@pytest.mark.parametrize("stub_class", [StubOpenAI, StubAnthropic])
def test_run_that_dies_before_it_notes_the_batch_finds_it_again(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, stub_class: Any
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    provider = "anthropic" if stub_class is StubAnthropic else "vllm"
    with stub_class() as stub:
        spec = spec_for(stub, provider=provider)
        with monkeypatch.context() as patched:
            patched.setattr(Batches, "submitted", die)
            with pytest.raises(KeyboardInterrupt):
                ask(spec, "q0", "q1")
        stub.poll(stub.made[0])
        stub.poll(stub.made[0])  # Anthropic tells what is in a batch once it has ended
        rows, _ = ask(spec, "q0", "q1")
    assert stub.asked == {"q0": 1, "q1": 1}
    assert len(rows) == 2


def test_run_that_dies_before_it_submits_the_batch_submits_it_then(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with StubOpenAI() as stub:
        with monkeypatch.context() as patched:
            patched.setattr("distillery.teacher.http.batch.openai.OpenAIBatches.submit", die)
            with pytest.raises(KeyboardInterrupt):
                ask(spec_for(stub), "q0")
        rows, _ = ask(spec_for(stub), "q0")
    assert (rows["q0"].text, stub.asked["q0"]) == ("re q0", 1)


def test_run_that_dies_between_a_broken_response_and_its_repair_pays_for_both_once(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = ResponseSchema('{"type":"object"}', "validate")
    begin, begun = Batches.begin, [0]

    def die_the_second_time(*args: Any) -> None:
        begun[0] += 1
        if begun[0] == 2:
            raise KeyboardInterrupt
        begin(*args)

    def answers(content: str, _: int) -> Reply:
        return Reply(text="no JSON" if content == "q0" else "{}")

    with StubOpenAI(answers=answers) as stub:
        spec = spec_for(stub, price=PRICE)
        monkeypatch.setattr(Batches, "begin", die_the_second_time)
        with pytest.raises(KeyboardInterrupt):
            ask(spec, "q0", schema=schema)
        rows, _ = ask(spec, "q0", schema=schema)
    row = rows["q0"]
    assert (row.state, row.repaired, row.cost) == ("ok", True, 2 * 4.5)
    assert [len(made.requests) for made in stub.made] == [1, 1]


def test_response_cut_at_the_limit_of_a_killed_run_is_asked_for_again(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    def answers(_: str, n: int) -> Reply:
        return Reply(text="cut", finish_reason="length") if n == 1 else Reply(text="whole")

    with StubOpenAI(answers=answers) as stub:
        with monkeypatch.context() as patched:
            patched.setattr(Batches, "submitted", die)
            with pytest.raises(KeyboardInterrupt):
                ask(spec_for(stub, max_new_tokens=1), "q0")
        rows, _ = ask(spec_for(stub, max_new_tokens=9, price=PRICE), "q0")
    row = rows["q0"]
    assert (row.text, row.state, row.max_new_tokens) == ("whole", "ok", 9)
    assert row.cost == 2 * 4.5


def test_closed_session_leaves_the_batch_and_says_so(
    ask: Ask, store: StoreSpec, caplog: pytest.LogCaptureFixture
) -> None:
    running = threading.Event()
    running.set()
    errors: list[BaseException] = []
    with StubOpenAI(is_running=running.is_set) as stub:
        spec = spec_for(stub)
        asked = AskedFor()
        asked.add(requests_for(spec, 2))
        session = TeacherSession(spec, store, purpose="test")

        def answer() -> None:
            try:
                session.answer(asked)
            except BaseException as error:
                errors.append(error)

        with caplog.at_level(logging.INFO):
            waiter = threading.Thread(target=answer)
            waiter.start()
            wait_until(lambda: bool(stub.made) and stub.made[0].num_polls > 1)
            batches = session.activity().batches
            session.close()
            waiter.join()
        running.clear()
        _, totals = ask(spec, "q0", "q1")
    assert batches is not None
    assert (batches.num_batches, batches.num_requests, batches.status) == (1, 2, "in_progress")
    [error] = errors
    assert isinstance(error, TeacherError)
    assert "Run again: what they bring is read, and nothing is asked twice." in str(error)
    assert "batch batch_0 of 2 requests goes on at" in caplog.text
    assert stub.asked == {"q0": 1, "q1": 1}
    assert totals.num_responses == 2


def test_batch_that_is_not_there_is_not_asked_for_again_by_itself(
    ask: Ask, store: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StubOpenAI() as stub:
        with monkeypatch.context() as patched:
            patched.setattr(StubOpenAI, "poll", lambda *_: stub.made.clear())
            with pytest.raises(TeacherError, match="does not know the batch 'batch_0'"):
                ask(spec_for(stub), "q0")
        with Ledger.open(store) as ledger:
            assert [(b.batch_id, left) for b, left in ledger.batches.all()] == [("batch_0", 1)]
            assert ledger.batches.forget("batch_0") == 1
        rows, _ = ask(spec_for(stub), "q0")
    assert rows["q0"].text == "re q0"
