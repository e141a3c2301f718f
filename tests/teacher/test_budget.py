"""A budget's caps: reached cleanly, passed by no more than what is in flight, resumed when raised.

Every completion of the stub is billed 7 + 2 tokens, unless a test says otherwise.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.ledger import Ledger, Spending
from distillery.teacher.budget import Budget
from distillery.teacher.generation import (
    generate_chunk,
    generation_stage,
    open_session,
    plan_chunks,
)
from schemas.budget import BudgetSpec, PriceSpec
from schemas.errors import BudgetError
from schemas.execution import StoreSpec
from schemas.refs import DatasetRef
from schemas.teacher import OpenAITeacher
from tests.fixtures_generation import (
    TASK,
    answer,
    contents,
    endpoint,
    is_sealed,
    ledger_rows,
    run_all,
    train_prompts,
)
from tests.stub_endpoint import Reply, StubEndpoint

PRICE = PriceSpec(prompt_per_million=1e6, completion_per_million=3e6, currency="EUR")  # 1 and 3
spawn = multiprocessing.get_context("spawn")


def capped(max_tokens: int | None = None, max_cost: float | None = None, **spent: Any) -> Budget:
    spec = BudgetSpec(max_tokens=max_tokens, max_cost=max_cost)
    return Budget(spec, PRICE, **{"num_tokens": 0, "cost": 0.0} | spent)


def enters(budget: Budget, *, prompt_tokens: int = 5, max_new_tokens: int = 5) -> bool:
    return budget.enter(prompt_chars=4 * prompt_tokens, max_new_tokens=max_new_tokens)


# -- the budget by itself --------------------------------------------------------------------------


def test_without_a_cap_everything_is_let_in_and_counted() -> None:
    budget = capped()
    assert not budget.is_capped
    assert all(enters(budget, max_new_tokens=10**9) for _ in range(100))
    assert budget.num_in_flight == 100
    budget.leave(10, 5)
    assert (budget.num_tokens, budget.cost, budget.num_in_flight) == (15, 25.0, 99)


@pytest.mark.parametrize(("max_tokens", "is_let_in"), [(9, False), (10, True)])
def test_first_request_is_expected_to_use_all_that_it_may(max_tokens: int, is_let_in: bool) -> None:
    assert enters(capped(max_tokens)) is is_let_in


@pytest.mark.parametrize(("max_cost", "is_let_in"), [(19.9, False), (20.0, True)])
def test_cost_is_expected_by_the_price_of_each_kind_of_token(
    max_cost: float, is_let_in: bool
) -> None:
    assert enters(capped(max_cost=max_cost)) is is_let_in


def test_the_lower_of_two_caps_counts() -> None:
    assert not enters(capped(max_tokens=100, max_cost=19.9))
    assert not enters(capped(max_tokens=9, max_cost=1e6))
    assert enters(capped(max_tokens=10, max_cost=20.0))


def test_what_is_in_flight_is_counted_before_it_is_billed() -> None:
    budget = capped(30)
    assert [enters(budget) for _ in range(4)] == [True, True, True, False]
    budget.leave(5, 1)  # cheaper than it might have been: its place is free, and later ones too
    assert [enters(budget) for _ in range(3)] == [True, True, False]


def test_later_requests_are_expected_to_be_like_those_before() -> None:
    budget = capped(1000)
    assert enters(budget, max_new_tokens=900)
    assert not enters(budget, max_new_tokens=900)
    budget.leave(5, 5)
    assert sum(enters(budget, max_new_tokens=900) for _ in range(200)) == 99


def test_experience_of_an_earlier_run_is_used_from_the_start() -> None:
    assert not enters(capped(100, num_tokens=80), max_new_tokens=900)
    assert enters(capped(100, num_tokens=80, mean_tokens=(10.0, 10.0)), max_new_tokens=900)
    assert not enters(capped(99, num_tokens=80, mean_tokens=(10.0, 10.0)))


def test_long_prompt_is_expected_to_cost_what_it_is_long() -> None:
    budget = capped(1000, num_tokens=500, mean_tokens=(5.0, 5.0))
    assert not enters(budget, prompt_tokens=496)
    assert enters(budget, prompt_tokens=495)


def test_request_that_failed_costs_nothing_and_teaches_nothing() -> None:
    budget = capped(20)
    assert enters(budget)
    budget.leave(0, 0)
    assert (budget.num_tokens, budget.num_in_flight) == (0, 0)
    assert [enters(budget) for _ in range(3)] == [True, True, False]


def test_what_other_processes_spent_counts_and_never_gives_back() -> None:
    budget = capped(100, num_tokens=50, cost=5.0)
    budget.note_others(num_tokens=45, cost=2.0)
    assert not enters(budget)
    budget.note_others(num_tokens=-9, cost=-1.0)
    assert (budget.num_tokens, budget.cost) == (95, 7.0)
    budget.note_others(num_tokens=47, cost=2.0)
    assert (budget.num_tokens, budget.cost) == (97, 7.0)


def test_sentence_names_each_cap_and_what_is_spent() -> None:
    budget = capped(2000, 12.5, num_tokens=1999, cost=12.25)
    assert budget.sentence() == (
        "12.25 of teacher.budget.max_cost=12.5 EUR and 1,999 of teacher.budget.max_tokens=2,000"
    )


@given(
    st.integers(1, 500),
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=80),
)
def test_cap_is_passed_by_no_more_than_what_is_in_flight(
    max_tokens: int, most_in_flight: int, bills: list[tuple[int, int]]
) -> None:
    budget, waiting = capped(max_tokens), list(bills)
    in_flight: list[tuple[int, int]] = []
    unbilled = 0  # when the last request was let in
    while True:
        while waiting and len(in_flight) < most_in_flight and enters(budget):
            assert budget.num_tokens <= max_tokens
            in_flight.append(waiting.pop())
            unbilled = sum(map(sum, in_flight))
        if not in_flight:
            break
        budget.leave(*in_flight.pop(0))
        assert budget.num_tokens <= max_tokens + unbilled
    assert budget.num_in_flight == 0


# -- through the endpoint --------------------------------------------------------------------------


def spent(prompts: DatasetRef, teacher: OpenAITeacher, store: StoreSpec) -> Spending:
    with Ledger.open(store) as ledger:
        return ledger.spent(generation_stage(prompts, teacher, TASK).fingerprint)


@pytest.mark.parametrize(
    ("cap", "told"),
    [
        ({"max_tokens": 400}, r"396 of teacher\.budget\.max_tokens=400 are spent"),
        ({"max_cost": 575.0}, r"572 of teacher\.budget\.max_cost=575 EUR are spent"),
    ],
)
def test_cap_stops_the_run_cleanly_and_a_higher_one_goes_on(
    store: StoreSpec, cap: dict[str, Any], told: str
) -> None:
    prompts = train_prompts(store, 60)
    with StubEndpoint(default=Reply(delay_s=0.002)) as stub:

        def teacher(**budget: Any) -> OpenAITeacher:
            return endpoint(
                stub, concurrency=8, max_new_tokens=100, price=PRICE.model_dump(), budget=budget
            )

        with pytest.raises(BudgetError, match=told + ", .*Raise the cap and run again"):
            run_all(prompts, teacher(**cap), store)
        assert stub.num_requests == 44
        assert not is_sealed(prompts, teacher(), store)
        assert {r.state for r in ledger_rows(prompts, teacher(), store).values()} == {"ok"}
        assert len(ledger_rows(prompts, teacher(), store)) == 44
        assert spent(prompts, teacher(), store).cost == 44 * 13

        with pytest.raises(BudgetError, match=told):
            run_all(prompts, teacher(**cap), store)
        assert stub.num_requests == 44, "the same run again asks nothing more"

        raised = {name: value + 20 for name, value in cap.items()}
        with pytest.raises(BudgetError):
            run_all(prompts, teacher(**raised), store)
        assert 45 <= stub.num_requests <= 46, "a cap that is raised a little buys a little"

        bought = stub.num_requests
        ample = {name: 10 * value for name, value in cap.items()}
        result = run_all(prompts, teacher(**ample), store)
        assert set(contents(stub).values()) == {1}
        assert result.manifest.counts == {"ok": 60, "from_ledger": bought, "asked": 60 - bought}

        again = run_all(prompts, teacher(**cap), store, force=True)
        assert again.manifest.counts["from_ledger"] == 60, "what is there needs no budget"


def test_cap_too_low_for_one_request_asks_nothing(store: StoreSpec) -> None:
    prompts = train_prompts(store, 3)
    with StubEndpoint() as stub:
        with pytest.raises(BudgetError, match=r"0 of teacher\.budget\.max_tokens=50 are spent"):
            answer(prompts, endpoint(stub, max_new_tokens=50, budget={"max_tokens": 50}), store)
        assert stub.num_requests == 0


def test_costs_that_jump_pass_the_cap_by_what_is_in_flight_at_most(store: StoreSpec) -> None:
    prompts = train_prompts(store, 200)

    def respond(_: dict[str, Any]) -> Reply:
        written = 1 if stub.num_requests <= 40 else 300
        return Reply(delay_s=0.01, usage={"prompt_tokens": 7, "completion_tokens": written})

    with StubEndpoint(respond=respond) as stub:
        teacher = endpoint(stub, concurrency=8, max_new_tokens=300, budget={"max_tokens": 1000})
        with pytest.raises(BudgetError):
            answer(prompts, teacher, store)
        billed = spent(prompts, teacher, store)
        tokens = billed.prompt_tokens + billed.completion_tokens
        assert tokens == 40 * 8 + (stub.num_requests - 40) * 307, "all that was asked is counted"
        assert tokens <= 1000 + teacher.concurrency * 307
        assert billed.requests == stub.num_requests == len(ledger_rows(prompts, teacher, store))


def test_chunks_at_once_share_the_cap(store: StoreSpec) -> None:
    prompts = train_prompts(store, 90)
    chunks = plan_chunks(prompts, 30, store)
    with StubEndpoint(default=Reply(delay_s=0.005)) as stub:
        teacher = endpoint(stub, concurrency=8, max_new_tokens=2, budget={"max_tokens": 450})
        with (
            open_session(prompts, teacher, TASK, store) as session,
            ThreadPoolExecutor(3) as pool,
        ):
            runs = [pool.submit(generate_chunk, chunk, session, TASK) for chunk in chunks]
            errors = [run.exception(timeout=120) for run in runs]
        assert any(isinstance(error, BudgetError) for error in errors)
        assert all(error is None or isinstance(error, BudgetError) for error in errors)
        assert stub.num_requests == 50
        assert len(ledger_rows(prompts, teacher, store)) == 50


def test_estimates_count_where_the_endpoint_tells_no_usage(store: StoreSpec) -> None:
    prompts = train_prompts(store, 30, prefix="x" * 38)  # 39 or 40 characters: 10 tokens
    with StubEndpoint(default=Reply(text="y" * 40, usage=None)) as stub:
        teacher = endpoint(stub, max_new_tokens=10, budget={"max_tokens": 210})
        with pytest.raises(BudgetError, match=r"200 of teacher\.budget\.max_tokens=210"):
            answer(prompts, teacher, store)
        assert stub.num_requests == 10
        row = ledger_rows(prompts, teacher, store)["p0"]
    assert (row.prompt_tokens, row.completion_tokens) == (None, None)
    assert (row.billed_prompt_tokens, row.billed_completion_tokens) == (10, 10)


def test_each_attempt_that_was_answered_counts(store: StoreSpec, quick_retries: None) -> None:
    prompts = train_prompts(store, 40)
    with StubEndpoint(default=Reply(text="")) as stub:  # each asked three times
        teacher = endpoint(stub, max_new_tokens=2, budget={"max_tokens": 180})
        with pytest.raises(BudgetError):
            answer(prompts, teacher, store)
        assert stub.num_requests == 20
        billed = spent(prompts, teacher, store)
        assert billed.prompt_tokens + billed.completion_tokens <= 180


def test_requests_that_failed_cost_nothing(store: StoreSpec, quick_retries: None) -> None:
    prompts = train_prompts(store, 30)

    def respond(body: dict[str, Any]) -> Reply:
        content = body["messages"][0]["content"]
        fails = int(content[1:]) % 2 and contents(stub)[content] == 1
        return Reply(status=500) if fails else Reply()

    with StubEndpoint(respond=respond) as stub:
        teacher = endpoint(stub, max_new_tokens=2, budget={"max_tokens": 30 * 9})
        run_all(prompts, teacher, store)
        assert stub.num_requests == 45


def test_another_set_of_prompts_has_a_budget_of_its_own(store: StoreSpec) -> None:
    with StubEndpoint() as stub:
        teacher = endpoint(stub, max_new_tokens=2, budget={"max_tokens": 90})
        with pytest.raises(BudgetError):
            answer(train_prompts(store, 20), teacher, store)
        assert answer(train_prompts(store, 10, prefix="r"), teacher, store).asked == 10
        assert stub.num_requests == 20


# -- two processes ---------------------------------------------------------------------------------

_barrier: Barrier


def _meet(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _spend(store: StoreSpec, teacher: OpenAITeacher, prompts: str, backwards: bool) -> str:
    ref = DatasetRef.model_validate_json(prompts)
    chunks = plan_chunks(ref, 100, store)
    with open_session(ref, teacher, TASK, store) as session:
        _barrier.wait(120)
        try:
            for chunk in reversed(chunks) if backwards else chunks:
                generate_chunk(chunk, session, TASK)
        except BudgetError as error:
            return str(error)
    return "all answered"


@pytest.mark.slow
def test_two_processes_share_a_cap(store: StoreSpec) -> None:
    prompts = train_prompts(store, 400)
    both_ask = Reply(delay_s=0.05, when=lambda: stub.max_in_flight >= 4 + 4)
    with (
        StubEndpoint(default=both_ask) as stub,
        ProcessPoolExecutor(2, spawn, initializer=_meet, initargs=(spawn.Barrier(2),)) as pool,
    ):
        teacher = endpoint(stub, concurrency=4, max_new_tokens=2, budget={"max_tokens": 900})
        runs = [
            pool.submit(_spend, store, teacher, prompts.model_dump_json(), backwards)
            for backwards in (False, True)
        ]
        said = [run.result(timeout=300) for run in runs]
        assert all("of teacher.budget.max_tokens=900 are spent" in message for message in said)
        billed = spent(prompts, teacher, store)
        assert billed.requests == stub.num_requests == len(ledger_rows(prompts, teacher, store))
        tokens = billed.prompt_tokens + billed.completion_tokens
        assert 900 - 2 * 9 < tokens <= 900 + stub.max_in_flight * 9
        assert stub.max_in_flight == 8, "they did not run at the same time"
