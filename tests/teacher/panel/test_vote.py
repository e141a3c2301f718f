"""A vote: the majority by the task type's own equality."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.teacher.panel.base import Ask, Taken
from distillery.teacher.panel.vote import Vote
from schemas.panel import VotePolicy
from schemas.task import TaskSpec
from tests.fixtures_panel import known, member, panel, row, said

MATH = TaskSpec.model_validate({"name": "t", "type": "math"})
NAMES = ("a", "b", "c")
THREE = panel({"kind": "vote"}, *map(member, NAMES))


def vote(task: TaskSpec = MATH) -> Vote:
    return Vote(THREE, VotePolicy(), task)


def test_everybody_is_asked_at_once() -> None:
    assert vote().step(row(), known()) == Ask(NAMES)
    assert vote().step(row(), known(b="12")) == Ask(("a", "c"))


def test_answers_count_by_the_tasks_equality_and_the_first_response_is_taken() -> None:
    found = vote().step(row(), known(a="13", b="So 12.0 remain.", c="It is 12."))
    assert found == Taken("b", "majority: 2 of 3", 2 / 3)


def test_a_tie_is_the_first_members_and_says_so() -> None:
    assert vote().step(row(), known(a="1", b="2", c="3")) == Taken("a", "tie: 1 of 3", 1 / 3)
    unanswered = known(a="1", b="2", c=said("", state="failed"))
    assert vote().step(row(), unanswered) == Taken("a", "tie: 1 of 3", 1 / 3)


def test_one_answer_among_failures_is_no_tie() -> None:
    failed = said("", state="refused")
    found = vote().step(row(), known(a=failed, b="12", c=failed))
    assert found == Taken("b", "majority: 1 of 3", 1 / 3)


def test_without_any_answer_nothing_bears_the_response_out() -> None:
    cut = said("so", state="truncated")
    assert vote().step(row(), known(a=cut, b=cut, c="no number")) == Taken(
        "a", "unverified: 0 of 3", 0.0
    )


@given(st.lists(st.sampled_from(["1", "2", "3"]), min_size=3, max_size=3))
def test_the_order_of_the_members_changes_no_majority(texts: list[str]) -> None:
    answers, ties = set(), set()
    for order in itertools.permutations(texts):
        responses = dict(zip(NAMES, order, strict=True))
        found = vote().step(row(), known(**responses))
        assert isinstance(found, Taken)
        ties.add(found.because.startswith("tie"))
        answers.add((responses[found.member], found.because))
    assert ties in ({True}, {False})
    if ties == {False}:
        assert len(answers) == 1


@pytest.mark.parametrize("num", [2, 5])
def test_any_number_of_members_may_vote(num: int) -> None:
    names = [f"m{n}" for n in range(num)]
    many = panel({"kind": "vote"}, *map(member, names))
    found = Vote(many, VotePolicy(), MATH).step(row(), known(**dict.fromkeys(names, "7")))
    assert found == Taken("m0", f"majority: {num} of {num}", 1.0)
