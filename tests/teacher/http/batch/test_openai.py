"""OpenAI's batches: half the price, one file, nothing paid twice."""

import json
from typing import Any

import pytest

from distillery.ledger import Ledger
from distillery.teacher import ResponseSchema
from schemas.budget import BudgetSpec, PriceSpec
from schemas.errors import BudgetError, TeacherError
from schemas.execution import StoreSpec
from schemas.teacher import OpenAITeacher
from tests.stub_batches import UNANSWERED, Fate, StubOpenAI, asked_of
from tests.stub_endpoint import Reply
from tests.teacher.http.batch.conftest import Ask

PRICE = PriceSpec(prompt_per_million=1_000_000, completion_per_million=1_000_000)


def spec_for(stub: StubOpenAI, **changes: Any) -> OpenAITeacher:
    settings = {"model": "big", "base_url": stub.base_url, "batch": True, "max_attempts": 3}
    return OpenAITeacher(**{**settings, **changes})


def test_requests_go_in_one_file_under_their_hashes(ask: Ask) -> None:
    with StubOpenAI() as stub:
        rows, totals = ask(spec_for(stub, max_new_tokens=9), "q0", "q1")
    assert {prompt: row.text for prompt, row in rows.items()} == {"q0": "re q0", "q1": "re q1"}
    [made] = stub.made
    assert made.requests[0] == {
        "custom_id": made.requests[0]["custom_id"],
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "big",
            "messages": [{"role": "user", "content": "q0"}],
            "max_tokens": 9,
            "temperature": 0.0,
        },
    }
    assert {one["custom_id"] for one in made.requests} == {r.request_hash for r in rows.values()}
    [created] = stub.requests
    assert created["endpoint"] == "/v1/chat/completions"
    assert created["completion_window"] == "24h"
    assert totals.asked == 2


def test_tokens_cost_what_the_discount_leaves(ask: Ask) -> None:
    with StubOpenAI() as stub:
        rows, totals = ask(spec_for(stub, price=PRICE), "q0")
        assert (rows["q0"].cost, totals.cost) == (4.5, 4.5)
        third = PRICE.model_copy(update={"batch_discount": 0.25})
        rows, totals = ask(spec_for(stub, price=third), "q1")
    assert rows["q1"].cost == 0.75 * 9


def test_responses_of_an_expired_batch_are_kept_and_the_rest_is_asked_again(ask: Ask) -> None:
    def answers(content: str, n: int) -> Reply:
        return UNANSWERED if (content, n) == ("q1", 1) else Reply(text="fine")

    with StubOpenAI(fates=[Fate("expired")], answers=answers) as stub:
        rows, _ = ask(spec_for(stub), "q0", "q1")
    assert stub.asked == {"q0": 1, "q1": 2}
    assert [len(made.requests) for made in stub.made] == [2, 1]
    assert (rows["q0"].attempts, rows["q1"].attempts) == (1, 2)


def test_request_that_never_brings_anything_is_failed_and_the_others_are_not(ask: Ask) -> None:
    def answers(content: str, _: int) -> Reply:
        return Reply(status=500, error="boom") if content == "q1" else Reply(text="fine")

    with StubOpenAI(answers=answers) as stub:
        rows, _ = ask(spec_for(stub), "q0", "q1")
    assert (rows["q0"].state, rows["q1"].state) == ("ok", "failed")
    assert stub.asked == {"q0": 1, "q1": 3}
    assert rows["q1"].error == "status 500: boom"


def test_response_that_breaks_its_schema_is_repaired_in_the_next_batch(ask: Ask) -> None:
    schema = ResponseSchema('{"type":"object","required":["a"]}', "validate")

    def answers(content: str, _: int) -> Reply:
        return Reply(text="no JSON" if content == "q0" else '{"a": 1}')

    with StubOpenAI(answers=answers) as stub:
        rows, _ = ask(spec_for(stub, price=PRICE), "q0", schema=schema)
    row = rows["q0"]
    assert (row.state, row.text, row.repaired, row.attempts) == ("ok", '{"a": 1}', True, 2)
    assert row.billed_prompt_tokens == 14
    first, second = stub.made
    assert first.requests[0]["custom_id"] == second.requests[0]["custom_id"]
    assert second.requests[0]["body"]["messages"][1]["content"] == "no JSON"


def test_batch_whose_creation_was_not_heard_of_is_found_by_its_key(ask: Ask) -> None:
    with StubOpenAI(fates=[Fate(loses_reply=True)]) as stub:
        rows, _ = ask(spec_for(stub), "q0")
        for _ in range(3):  # a listing of several pages
            stub.make([], {})
    assert rows["q0"].text == "re q0"
    assert stub.asked == {"q0": 1}


def test_full_queue_is_asked_in_halves(ask: Ask) -> None:
    full = Fate("failed", error={"code": "token_limit_exceeded", "message": "too many tokens"})
    with StubOpenAI(fates=[full, full]) as stub:
        rows, _ = ask(spec_for(stub), *(f"q{n}" for n in range(8)))
    assert {row.state for row in rows.values()} == {"ok"}
    assert [len(made.requests) for made in stub.made] == [8, 4, 4, 4]


def test_batch_that_fails_as_a_whole_ends_the_run_and_is_forgotten(
    ask: Ask, store: StoreSpec
) -> None:
    failed = Fate("failed", error={"code": "model_not_found", "message": "no model 'big'"})
    with StubOpenAI(fates=[failed]) as stub:
        with pytest.raises(TeacherError, match=r"could not carry out batch 'batch_0'.*no model"):
            ask(spec_for(stub), "q0")
        rows, _ = ask(spec_for(stub), "q0")
    assert rows["q0"].text == "re q0"
    with Ledger.open(store) as ledger:
        assert ledger.batches.all() == []


def test_batch_that_a_person_cancelled_is_not_submitted_again_by_itself(ask: Ask) -> None:
    def answers(content: str, n: int) -> Reply:
        return UNANSWERED if (content, n) == ("q1", 1) else Reply(text="fine")

    said = r"told to cancel batch 'batch_0'.* other 1 requests"
    with StubOpenAI(fates=[Fate("cancelled")], answers=answers) as stub:
        with pytest.raises(TeacherError, match=said):
            ask(spec_for(stub), "q0", "q1")
        rows, totals = ask(spec_for(stub), "q0", "q1")
    assert totals.asked == 1
    assert stub.asked == {"q0": 1, "q1": 2}
    assert len(rows) == 2


def test_settings_that_every_request_is_refused_for_end_the_run(ask: Ask) -> None:
    refusal = Reply(status=400, error="no seed here", error_facts={"param": "temperature"})
    replies = [refusal]
    with StubOpenAI(answers=lambda *_: replies[0]) as stub:
        with pytest.raises(TeacherError, match=r"Set teacher.sampling_temperature"):
            ask(spec_for(stub), "q0")
        replies[0] = Reply(text="fine")
        rows, _ = ask(spec_for(stub), "q0")
    assert rows["q0"].text == "fine"


def test_prompt_that_is_refused_among_others_is_refused_for_good(ask: Ask) -> None:
    def answers(content: str, _: int) -> Reply:
        if content == "q1":
            return Reply(status=400, error="filtered", error_facts={"code": "content_filter"})
        return Reply(text="fine")

    with StubOpenAI(answers=answers) as stub:
        rows, _ = ask(spec_for(stub), "q0", "q1")
    assert (rows["q1"].state, stub.asked["q1"]) == ("refused", 1)


def test_budget_holds_back_what_it_cannot_pay(ask: Ask) -> None:
    budget = BudgetSpec(max_tokens=40)
    with StubOpenAI() as stub:
        spec = spec_for(stub, budget=budget, max_new_tokens=10)
        with pytest.raises(BudgetError, match=r"of teacher.budget.max_tokens=40 are spent"):
            ask(spec, *(f"q{n}" for n in range(9)))
        assert 3 <= sum(stub.asked.values()) <= 5
        rows, _ = ask(spec_for(stub), *(f"q{n}" for n in range(9)))
    assert len(rows) == 9
    assert set(stub.asked.values()) == {1}


def test_provider_without_batches_is_named(ask: Ask, store: StoreSpec) -> None:
    said = r"takes no batches.* Set teacher.batch to false"
    with StubOpenAI(has_batches=False) as stub, pytest.raises(TeacherError, match=said):
        ask(spec_for(stub), "q0")
    with Ledger.open(store) as ledger:
        assert ledger.batches.all() == []


def test_wrong_key_ends_the_run_and_stays_unsaid(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIG_KEY", "sk-planted-7f3a9c-and-more")
    with StubOpenAI() as stub:
        ask(spec_for(stub, api_key_env="BIG_KEY"), "q0")
    assert {h["Authorization"] for h in stub.headers} == {"Bearer sk-planted-7f3a9c-and-more"}


def test_lines_of_others_and_broken_ones_are_passed_over(ask: Ask) -> None:
    with StubOpenAI(answers=lambda *_: Reply(text="fine")) as stub:
        original = stub._shown

        def with_rubbish(made: Any) -> dict[str, Any]:
            shown = original(made)
            if made.is_over:
                name = shown["output_file_id"]
                other = json.dumps({"custom_id": "another's", "response": None})
                stub.files[name] = f"[1]\nnot JSON\n{other}\n{stub.files[name]}"
            return shown

        stub._shown = with_rubbish  # type: ignore[method-assign]
        rows, _ = ask(spec_for(stub), "q0")
    assert rows["q0"].text == "fine"
    assert asked_of(stub.made[0].requests[0]) == "q0"
