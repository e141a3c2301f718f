"""A cascade: a row goes on only where a response does not hold."""

from typing import Any

import pytest

from distillery.teacher.panel.base import Ask, Taken
from distillery.teacher.panel.cascade import Cascade
from schemas.errors import TeacherError
from schemas.panel import CascadePolicy
from schemas.task import TaskSpec
from tests.fixtures_panel import known, member, panel, row, said

TASK = TaskSpec.model_validate(
    {
        "name": "t",
        "type": "classification",
        "answer_format": {"kind": "labels", "labels": ["refund", "repair"]},
    }
)
SAMPLED: dict[str, Any] = {"sampling_temperature": 1.0, "samples": {"num_samples": 4}}


def cascade(**criteria: Any) -> Cascade:
    members = [member("small", **SAMPLED), member("middle", **SAMPLED), member("big")]
    spec = CascadePolicy.model_validate(criteria)
    return Cascade(panel({"kind": "cascade"} | criteria, *members), spec, TASK)


@pytest.mark.parametrize(
    ("criteria", "holds", "fails"),
    [
        ({"verifier": {"kind": "label"}}, "refund", "no idea"),
        (
            {"min_agreement": 0.75},
            said("refund", agreement=0.75),
            said("refund", agreement=0.5),
        ),
        (
            {"min_log_probability": -0.1},
            said("refund", log_probability=-0.1),
            said("refund", log_probability=-0.11),
        ),
    ],
)
def test_a_response_that_holds_settles_a_row_and_another_sends_it_on(
    criteria: dict[str, Any], holds: Any, fails: Any
) -> None:
    policy = cascade(**criteria)
    assert policy.step(row(), known()) == Ask(("small",))
    settled = policy.step(row(), known(small=holds))
    assert isinstance(settled, Taken)
    assert settled.member == "small" and settled.because.startswith("settled: ")
    assert policy.step(row(), known(small=fails)) == Ask(("middle",))
    on = policy.step(row(), known(small=fails, middle=holds))
    assert isinstance(on, Taken) and on.member == "middle"


def test_the_figures_that_decided_stay_with_the_row() -> None:
    policy = cascade(verifier={"kind": "label"}, min_log_probability=-0.1)
    found = policy.step(row(), known(small=said("refund", log_probability=-0.0321)))
    assert found == Taken("small", "settled: label passed, log-probability -0.032")
    doubtful = said("refund", log_probability=-0.5)
    last = policy.step(row(), known(small=doubtful, middle=doubtful, big="repair"))
    assert last == Taken("big", "last: middle label passed, log-probability -0.500")


def test_all_criteria_have_to_hold() -> None:
    policy = cascade(verifier={"kind": "label"}, min_agreement=0.5)
    assert policy.step(row(), known(small=said("dunno", agreement=1.0))) == Ask(("middle",))
    assert policy.step(row(), known(small=said("refund", agreement=0.25))) == Ask(("middle",))


@pytest.mark.parametrize("state", ["empty", "truncated", "malformed", "refused", "failed"])
def test_what_is_not_whole_goes_on(state: str) -> None:
    policy = cascade(verifier={"kind": "label"})
    unfinished = said("refund", state=state)
    assert policy.step(row(), known(small=unfinished)) == Ask(("middle",))
    last = policy.step(row(), known(small="refund", middle="refund", big="x"))
    assert isinstance(last, Taken) and last.member == "small"
    found = policy.step(row(), known(small=unfinished, middle=unfinished, big="x"))
    assert found == Taken("big", f"last: middle {state}")


def test_an_endpoint_that_tells_no_probability_ends_the_run_and_says_what_to_set() -> None:
    policy = cascade(min_log_probability=-0.1)
    with pytest.raises(TeacherError, match=r"teacher 'small' did not say .* policy.verifier"):
        policy.step(row(), known(small="refund"))
