"""The work that an expression may cost is bounded."""

import sys

import pytest

from distillery.task_types import expressions
from distillery.task_types.expressions import equal_values, read_value


def test_a_comparison_beyond_the_limit_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    square, sum_ = read_value("(x+7)^2"), read_value("x^2+14x+49")
    assert square and sum_
    profiled = sys.getprofile()
    monkeypatch.setattr(expressions, "_MAX_CALLS", 1000)
    assert not equal_values(square, sum_)
    assert sys.getprofile() is profiled
    monkeypatch.undo()
    equal_values.cache_clear()
    assert equal_values(square, sum_)


def test_an_expression_beyond_the_limit_has_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "_MAX_CALLS", 10)
    assert read_value(r"\sqrt{19}") is None


@pytest.mark.parametrize(
    "text",
    [r"\tan(\exp(99999999999999999999))", "9^9^9", "x!", "x" * 121, "((((((((((x))))))))))"],
)
def test_what_could_take_long_in_one_call_is_not_evaluated(text: str) -> None:
    assert read_value(text) is None
