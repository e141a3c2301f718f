"""What a panel would ask: for each member the least and the most, and what the ledger expects."""

from pathlib import Path
from typing import Any

import pytest

from distillery.preflight.panel_plan import PanelPlan, plan_panel
from distillery.preflight.plan import sentences
from schemas.execution import StoreSpec
from schemas.task import TaskSpec
from tests.fixtures_generation import run_all, train_prompts, write_prompts
from tests.fixtures_panel import DOUBTFUL, SETTLED, member, panel, says
from tests.stub_endpoint import StubEndpoint

TASK = TaskSpec.model_validate({"name": "questions", "type": "conversation"})
CASCADE = {"kind": "cascade", "min_log_probability": -0.1}
PRICE = {"prompt_per_million": 1.0, "completion_per_million": 1.0, "currency": "USD"}


@pytest.fixture
def store(tmp_path: Path) -> StoreSpec:
    return StoreSpec(root=str(tmp_path / "store"))


def bounds(plan: PanelPlan) -> dict[str, tuple[int, int]]:
    return {each.name: (each.least, each.most.to_ask) for each in plan.members}


def test_of_a_cascade_that_never_ran_the_second_is_asked_between_nothing_and_all(
    store: StoreSpec,
) -> None:
    prompts = train_prompts(store, 8)
    teachers = panel(CASCADE, member("small", price=PRICE), member("big", price=PRICE))
    plan = plan_panel(prompts, teachers, TASK, store)
    assert bounds(plan) == {"small": (8, 8), "big": (0, 8)}
    assert [each.expected for each in plan.members] == [8, None]
    assert any(line.startswith("expected           between 0 and 8") for line in sentences(plan))


def test_rows_in_the_ledger_say_how_many_go_on(store: StoreSpec) -> None:
    unsure = says(lambda a: a, lambda a: DOUBTFUL if a in ("q0", "q4") else SETTLED)
    with (
        StubEndpoint(respond=unsure) as small,
        StubEndpoint(respond=says(lambda a: a, lambda _: SETTLED)) as big,
    ):
        teachers = panel(CASCADE, member("small", small), member("big", big))
        run_all(train_prompts(store, 8), teachers, store, task=TASK)
    more = train_prompts(store, 24)
    plan = plan_panel(more, teachers, TASK, store)
    assert bounds(plan) == {"small": (16, 16), "big": (0, 16)}
    of_small, of_big = plan.members
    assert (of_small.most.in_ledger, of_big.most.in_ledger) == (8, 2)
    assert (of_big.share, of_big.expected) == (0.25, 4)


@pytest.mark.parametrize(
    "policy", [{"kind": "vote"}, {"kind": "best_of", "verifier": {"kind": "regex", "pattern": "x"}}]
)
def test_where_all_answer_all_are_asked_everything(
    policy: dict[str, Any], store: StoreSpec
) -> None:
    teachers = panel(policy, member("a"), member("b"))
    plan = plan_panel(train_prompts(store, 5), teachers, TASK, store)
    assert bounds(plan) == {"a": (5, 5), "b": (5, 5)}


def test_of_a_route_each_is_asked_its_own_rows(store: StoreSpec) -> None:
    prompts = write_prompts(store, [("train", "short"), ("train", "a longer one"), ("train", "q")])
    rule = {"kind": "length", "max_chars": 5}
    teachers = panel({"kind": "route"}, member("brief", rule=rule), member("rest"))
    plan = plan_panel(prompts, teachers, TASK, store)
    assert bounds(plan) == {"brief": (2, 2), "rest": (1, 1)}


def test_a_judges_requests_are_named_and_not_counted(store: StoreSpec) -> None:
    judge = {"model": member("judge-1")["teacher"]}
    teachers = panel({"kind": "best_of", "judge": judge}, *map(member, "abc"))
    plan = plan_panel(train_prompts(store, 2), teachers, TASK, store)
    assert sentences(plan)[-1].endswith(
        "judge: not planned: up to 4 requests per row, two per pair"
    )
