"""The best of several responses, by a verifier or by a judge."""

from typing import Any

from distillery.teacher.pair import Verdict
from distillery.teacher.panel.base import Ask, Compare, Known, Taken
from distillery.teacher.panel.best_of import BestOf
from schemas.panel import BestOfPolicy
from schemas.task import TaskSpec
from tests.fixtures_panel import known, member, panel, row, said

TASK = TaskSpec.model_validate({"name": "t", "type": "conversation"})
JUDGE = {"model": {"kind": "openai", "model": "judge", "base_url": "http://127.0.0.1:9/v1"}}
NAMES = ("a", "b", "c")


def best_of(**chooser: Any) -> BestOf:
    spec = BestOfPolicy.model_validate(chooser)
    return BestOf(panel({"kind": "best_of"} | chooser, *map(member, NAMES)), spec, TASK)


def judged(verdicts: dict[tuple[str, str], Verdict | None], **texts: str) -> Known:
    return Known(known(**texts).said, dict(verdicts))


def test_everybody_is_asked_at_once() -> None:
    assert best_of(judge=JUDGE).step(row(), known(b="x")) == Ask(("a", "c"))


def test_the_first_response_that_passes_is_taken() -> None:
    policy = best_of(verifier={"kind": "regex", "pattern": "[0-9]+"})
    assert policy.step(row(), known(a="one", b="2", c="3")) == Taken("b", "verified: 2 of 3", 2 / 3)


def test_where_none_passes_nothing_bears_the_response_out() -> None:
    policy = best_of(verifier={"kind": "regex", "pattern": "[0-9]+"})
    cut = said("1", state="truncated")
    assert policy.step(row(), known(a="one", b=cut, c="x")) == Taken("a", "unverified: 0 of 3", 0.0)


def test_the_winner_of_a_pair_stands_against_the_next() -> None:
    policy, texts = best_of(judge=JUDGE), {"a": "x", "b": "y", "c": "z"}
    assert policy.step(row(), judged({}, **texts)) == Compare("a", "b")
    assert policy.step(row(), judged({("a", "b"): "loss"}, **texts)) == Compare("b", "c")
    found = policy.step(row(), judged({("a", "b"): "loss", ("b", "c"): "win"}, **texts))
    assert found == Taken("b", "judged: 2 of 2 comparisons decided")


def test_at_a_tie_the_earlier_one_stays() -> None:
    verdicts: dict[tuple[str, str], Verdict | None] = {("a", "b"): "tie", ("a", "c"): None}
    found = best_of(judge=JUDGE).step(row(), judged(verdicts, a="x", b="y", c="z"))
    assert found == Taken("a", "judged: 0 of 2 comparisons decided")


def test_equal_texts_and_members_without_one_are_not_judged() -> None:
    policy = best_of(judge=JUDGE)
    same = policy.step(row(), known(a="x", b="x", c=said("", state="refused")))
    assert same == Taken("a", "judged: 0 of 1 comparisons decided")
    first_failed = known(a=said("", state="failed"), b="y", c="z")
    assert policy.step(row(), first_failed) == Compare("b", "c")
