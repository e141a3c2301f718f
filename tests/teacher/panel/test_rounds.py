"""Panels at work: whom they ask, what that costs, and what is kept."""

import collections
from typing import Any

import pytest

from distillery.evaluation.lineage import Origins, origin_tables
from distillery.teacher.panel.session import PanelSession
from distillery.teacher.summary import panel_shares, shares_markdown
from schemas.errors import BudgetError, TeacherError
from schemas.execution import StoreSpec
from schemas.panel import PanelTeacher
from schemas.task import TaskSpec
from tests.fixtures_comparison import comparison
from tests.fixtures_generation import (
    answer,
    is_sealed,
    rows_of,
    run_all,
    train_prompts,
    write_prompts,
)
from tests.fixtures_panel import DOUBTFUL, SETTLED, member, panel, says
from tests.stub_endpoint import Reply, StubEndpoint

TASK = TaskSpec.model_validate({"name": "questions", "type": "conversation"})
PRICE = {"prompt_per_million": 1e6, "completion_per_million": 1e6, "currency": "USD"}


@pytest.fixture
def store(tmp_path: Any) -> StoreSpec:
    return StoreSpec(root=str(tmp_path / "store"))


def is_doubtful(asked: str) -> bool:
    return asked.startswith("q") and int(asked[1:]) % 3 == 0


def small_stub() -> StubEndpoint:
    """Return a teacher that is sure of two prompts in three."""
    sure = says(lambda asked: f"small {asked}", lambda a: DOUBTFUL if is_doubtful(a) else SETTLED)
    return StubEndpoint(respond=sure)


def big_stub() -> StubEndpoint:
    return StubEndpoint(respond=says(lambda asked: f"big {asked}", lambda _: SETTLED))


def cascade(small: StubEndpoint, big: StubEndpoint, **changes: Any) -> PanelTeacher:
    policy = {"kind": "cascade", "min_log_probability": -0.1}
    return panel(policy, member("small", small), member("big", big, **changes))


def asked_of(stub: StubEndpoint) -> "collections.Counter[str]":
    return collections.Counter(body["messages"][-1]["content"] for body in stub.requests)


def test_a_cascade_never_asks_the_expensive_one_for_a_settled_row(store: StoreSpec) -> None:
    prompts = train_prompts(store, 12)
    with small_stub() as small, big_stub() as big:
        made = run_all(prompts, cascade(small, big), store, task=TASK, chunk_rows=5)
    assert small.num_requests == 12
    assert asked_of(big) == {f"q{n}": 1 for n in (0, 3, 6, 9)}
    rows = rows_of(made, store)
    assert [row["teacher"] for row in rows] == ["big", "small", "small"] * 4
    assert rows[0]["response"] == "big q0"
    assert rows[0]["chosen_because"] == "last: small log-probability -2.000"
    assert rows[1]["chosen_because"] == "settled: log-probability -0.010"


def test_a_second_run_pays_for_nothing_and_chooses_alike(store: StoreSpec) -> None:
    prompts = train_prompts(store, 9)
    with small_stub() as small, big_stub() as big:
        first = run_all(prompts, cascade(small, big), store, task=TASK)
        paid = small.num_requests, big.num_requests
        again = run_all(prompts, cascade(small, big), store, task=TASK, chunk_rows=2, force=True)
        assert (small.num_requests, big.num_requests) == paid
    assert rows_of(first, store) == rows_of(again, store)


def test_a_run_that_was_stopped_between_rounds_goes_on_with_the_second(store: StoreSpec) -> None:
    prompts = train_prompts(store, 9)
    broken = StubEndpoint(default=Reply(status=401))
    with small_stub() as small, broken as big, pytest.raises(TeacherError, match="401"):
        answer(prompts, cascade(small, big), store, task=TASK)
    assert small.num_requests == 9
    assert not is_sealed(prompts, cascade(small, big), store, TASK)
    with small_stub() as small, big_stub() as big:
        run_all(prompts, cascade(small, big), store, task=TASK)
    assert (small.num_requests, big.num_requests) == (0, 3)


def test_another_policy_of_the_same_teachers_asks_only_what_is_missing(store: StoreSpec) -> None:
    prompts = train_prompts(store, 6)
    with small_stub() as small, big_stub() as big:
        members = member("small", small), member("big", big)
        verify = {"kind": "cascade", "verifier": {"kind": "regex", "pattern": "big.*"}}
        run_all(prompts, panel(verify, *members), store, task=TASK)
        assert (small.num_requests, big.num_requests) == (6, 6)
        run_all(prompts, panel({"kind": "vote"}, *members), store, task=TASK)
        assert (small.num_requests, big.num_requests) == (6, 6)


def test_a_vote_without_a_majority_is_marked_as_a_tie(store: StoreSpec) -> None:
    prompts = train_prompts(store, 2)
    with small_stub() as small, big_stub() as big:
        vote = panel({"kind": "vote"}, member("small", small), member("big", big))
        rows = rows_of(run_all(prompts, vote, store, task=TASK), store)
    assert [row["chosen_because"] for row in rows] == ["tie: 1 of 2"] * 2
    assert [row["agreement"] for row in rows] == [0.5] * 2


def test_a_judge_compares_in_both_orders_and_is_paid_once(store: StoreSpec) -> None:
    prompts = train_prompts(store, 3)

    def better(body: dict[str, Any]) -> Reply:
        shown_first = body["messages"][-1]["content"].partition("<response_A>")[2]
        return Reply(text='{"better": "A"}' if "big" in shown_first[:6] else '{"better": "B"}')

    with small_stub() as small, big_stub() as big, StubEndpoint(respond=better) as judge:
        model = {"kind": "openai", "model": "judge", "base_url": judge.base_url}
        policy = {"kind": "best_of", "judge": {"model": model}}
        teachers = panel(policy, member("small", small), member("big", big))
        made = run_all(prompts, teachers, store, task=TASK)
        run_all(prompts, teachers, store, task=TASK, force=True)
        assert judge.num_requests == 6
    assert {row["teacher"] for row in rows_of(made, store)} == {"big"}
    assert rows_of(made, store)[0]["chosen_because"] == "judged: 1 of 1 comparisons decided"
    shares = panel_shares(made.manifest)
    assert shares is not None
    assert [(each.name, each.rows, each.asked) for each in shares.teachers] == [
        ("small", 0, 3),
        ("big", 3, 3),
        ("judge", 0, 3),
    ]


def test_the_shares_say_who_did_what_and_what_was_saved(store: StoreSpec) -> None:
    prompts = train_prompts(store, 12)
    with small_stub() as small, big_stub() as big:
        policy = {"kind": "cascade", "min_log_probability": -0.1}
        teachers = panel(
            policy,
            member("small", small, price=PRICE | {"completion_per_million": 0}),
            member("big", big, price=PRICE),
        )
        made = run_all(prompts, teachers, store, task=TASK).manifest
    shares = panel_shares(made)
    assert shares is not None
    of_small, of_big = shares.teachers
    assert (of_small.rows, of_small.asked, of_small.agreement) == (8, 12, 8 / 12)
    assert (of_big.rows, of_big.asked, of_big.agreement) == (4, 4, 1.0)
    # 7 tokens are read and 2 written per request.
    assert (of_small.cost, of_big.cost) == (12 * 7, 4 * 9)
    assert (shares.dearest, shares.dearest_cost, shares.cost) == ("big", 12 * 9, 120)
    assert shares.saved == 108 - 120
    more = "All of them cost 120.00 USD; big alone would have cost 108.00 USD: 11.1 % more."
    assert shares_markdown(shares).splitlines()[2:] == [
        "| small | 8 | 12 | 66.7 % | 84 | 24 | 84.00 USD |",
        "| big | 4 | 4 | 100.0 % | 28 | 8 | 36.00 USD |",
        "",
        more,
    ]
    told = origin_tables(comparison(), Origins({"generate_responses": made}))
    [table] = [rows for title, rows in told.items() if title.endswith(f"training rows. {more}")]
    assert [(row["teacher"], row["rows"]) for row in table] == [
        ("small", "8"),
        ("big", "4"),
    ]


def test_each_member_has_a_budget_of_its_own(store: StoreSpec) -> None:
    prompts = train_prompts(store, 9)
    with small_stub() as small, big_stub() as big:
        teachers = cascade(small, big, budget={"max_tokens": 9}, max_new_tokens=2)
        with pytest.raises(BudgetError, match="max_tokens=9"):
            answer(prompts, teachers, store, task=TASK)
        assert small.num_requests == 9 and big.num_requests == 1


def test_rows_that_ask_the_same_share_one_request_of_each_member(store: StoreSpec) -> None:
    prompts = write_prompts(store, [("train", "q0"), ("train", "q0"), ("validation", "q1")])
    with small_stub() as small, big_stub() as big:
        made = run_all(prompts, cascade(small, big), store, task=TASK)
    assert (small.num_requests, big.num_requests) == (2, 1)
    assert [row["teacher"] for row in rows_of(made, store)] == ["big", "big", "small"]


def test_progress_counts_rows_that_have_their_response(store: StoreSpec) -> None:
    prompts = train_prompts(store, 6)
    seen: list[int] = []
    with small_stub() as small, big_stub() as big:
        teachers = cascade(small, big)
        given = (teachers, TASK, prompts, store)
        with PanelSession(*given, purpose="x") as session:
            rows = [
                {"prompt_id": f"p{n}", "messages": f'[{{"content":"q{n}","role":"user"}}]'}
                for n in range(6)
            ]
            states = session.answer_rows(rows, on_progress=seen.append)
    assert states == {"ok": 6}
    assert seen == [0, 4, 6]
