"""Routing: the first member whose rule a row meets answers it, the last one the rest."""

from typing import Any

import pytest

from distillery.teacher.panel.base import Ask, Taken
from distillery.teacher.panel.route import Route
from schemas.panel import RoutePolicy
from schemas.task import TaskSpec
from tests.fixtures_panel import known, member, panel, row, said

TASK = TaskSpec.model_validate({"name": "t", "type": "conversation"})


def route(*rules: dict[str, Any]) -> Route:
    members = [member(f"m{n}", rule=rule) for n, rule in enumerate(rules)]
    return Route(panel({"kind": "route"}, *members, member("rest")), RoutePolicy(), TASK)


@pytest.mark.parametrize(
    ("rule", "met", "text", "slices"),
    [
        ({"kind": "length", "max_chars": 5}, "rule: length 5", "12345", None),
        ({"kind": "task", "types": ["conversation"]}, "rule: task conversation", "q", None),
        (
            {"kind": "language", "languages": ["fr", "de"]},
            "rule: language de",
            "Wo bleibt meine Bestellung von letzter Woche?",
            None,
        ),
        (
            {"kind": "column", "column": "tier", "pattern": "^gold"},
            "rule: tier gold plus",
            "q",
            '{"tier":"gold plus"}',
        ),
    ],
)
def test_a_row_that_meets_a_rule_goes_to_its_member(
    rule: dict[str, Any], met: str, text: str, slices: str | None
) -> None:
    policy, asked = route(rule), row(text, slices)
    assert policy.step(asked, known()) == Ask(("m0",))
    assert policy.step(asked, known(m0="a")) == Taken("m0", met)


@pytest.mark.parametrize(
    ("rule", "slices"),
    [
        ({"kind": "length", "min_chars": 100}, None),
        ({"kind": "task", "types": ["math"]}, None),
        ({"kind": "language", "languages": ["ja"]}, None),
        ({"kind": "column", "column": "tier", "pattern": "^gold"}, '{"tier":null}'),
        ({"kind": "column", "column": "tier", "pattern": "^gold"}, '{"other":"gold"}'),
        ({"kind": "column", "column": "tier", "pattern": "^gold"}, None),
    ],
)
def test_a_row_that_meets_none_goes_to_the_last(rule: dict[str, Any], slices: str | None) -> None:
    policy, asked = route(rule), row("Where does my order stay?", slices)
    assert policy.step(asked, known()) == Ask(("rest",))
    assert policy.step(asked, known(rest="a")) == Taken("rest", "rest")


def test_the_first_rule_that_is_met_counts() -> None:
    policy = route({"kind": "length", "min_chars": 10}, {"kind": "length", "min_chars": 2})
    assert policy.step(row("1234567890"), known()) == Ask(("m0",))
    assert policy.step(row("123"), known()) == Ask(("m1",))


def test_the_members_own_samples_bear_its_response_out() -> None:
    found = route({"kind": "length", "min_chars": 1}).step(
        row(), known(m0=said("a", agreement=0.8))
    )
    assert found == Taken("m0", "rule: length 1", 0.8)
