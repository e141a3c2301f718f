"""What is refused of a panel of teachers before anything is spent."""

from typing import Any

import pytest
from pydantic import ValidationError

from distillery.objectives.choice import choose_objective
from distillery.preflight.panel import panel_problems, panel_warnings
from distillery.task_types import task_type
from schemas.data import DataSpec
from schemas.errors import RecipeError
from schemas.evaluation import EvaluationSpec
from schemas.objectives import AutoObjective, SoftTargets
from schemas.panel import PanelTeacher
from schemas.student import FromScratchStudent
from schemas.task import TaskSpec
from schemas.training import TrainingSpec
from tests.fixtures_panel import member, panel

TASK = TaskSpec.model_validate({"name": "t", "type": "conversation"})
VOTE = {"kind": "vote"}


def source(*slices: str) -> dict[str, Any]:
    columns = {"messages": "m", "slices": slices}
    return {"kind": "file", "path": "rows.jsonl", "columns": columns}


def problems(
    teachers: PanelTeacher, data: dict[str, Any] | None = None, **evaluation: Any
) -> list[str]:
    spec = DataSpec.model_validate(data or {})
    asked = EvaluationSpec.model_validate(evaluation)
    return [*panel_problems(teachers, task_type(TASK), spec, asked, judges_rows=True)]


def test_a_panel_of_different_teachers_is_fine() -> None:
    assert problems(panel(VOTE, *map(member, "abc"))) == []


def test_two_teachers_of_one_identity_are_refused() -> None:
    alike = panel(VOTE, member("a", model="m"), member("b"), member("c", model="m"))
    [problem] = problems(alike)
    assert problem.startswith("teacher.teachers: 'a' and 'c' are the same model, 'm', so")
    assert problem.endswith("set its samples.num_samples.")


def test_a_rule_on_a_column_that_no_split_names_is_refused() -> None:
    rule = {"kind": "column", "column": "tier", "pattern": "gold"}
    routed = panel({"kind": "route"}, member("a", rule=rule), member("b"))
    data = {"train": source("tier"), "test": source("tear")}
    [problem] = problems(routed, data)
    assert problem == (
        "teacher.teachers[0].rule names the column 'tier', which data.test.columns.slices does "
        "not, so no row of that split would meet it. Did you mean 'tear'? Add it there."
    )


@pytest.mark.parametrize("policy", ["best_of", "cascade"])
def test_a_verifier_that_the_task_cannot_answer_is_refused(policy: str) -> None:
    verified = panel({"kind": policy, "verifier": {"kind": "label"}}, *map(member, "ab"))
    [problem] = problems(verified)
    assert problem.startswith("teacher.policy.verifier has kind='label' but task.answer_format is")


def test_prices_in_two_currencies_are_refused() -> None:
    price = {"prompt_per_million": 1, "completion_per_million": 1}
    members = (
        member("a", price=price | {"currency": "USD"}),
        member("b", price=price | {"currency": "EUR"}),
    )
    [problem] = problems(panel(VOTE, *members))
    assert problem.startswith("prices of teacher.teachers are in EUR and USD")


def test_what_needs_one_teachers_prompt_or_canaries_is_refused() -> None:
    three = panel(VOTE, *map(member, "abc"))
    assert "evaluation.in_context_student" in problems(three, in_context_student=True)[0]
    assert "evaluation.canaries is 5" in problems(three, canaries=5)[0]


def test_what_the_judge_of_a_panel_would_not_read_is_refused() -> None:
    judge = {"model": member("j")["teacher"] | {"system_prompt": "Be strict."}}
    [problem] = problems(panel({"kind": "best_of", "judge": judge}, *map(member, "ab")))
    assert problem.startswith("teacher.policy.judge.model.system_prompt is set, but a judge reads")


def test_a_vote_of_two_is_warned_of() -> None:
    [warning] = panel_warnings(panel(VOTE, *map(member, "ab")))
    assert "'a' and 'b' disagree is a tie and is dropped" in warning
    assert [*panel_warnings(panel(VOTE, *map(member, "abc")))] == []


STUDENT = FromScratchStudent.model_validate(
    {
        "kind": "from_scratch",
        "num_layers": 1,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_heads": 1,
        "max_length": 16,
    }
)


def test_an_objective_that_needs_one_teachers_probabilities_is_refused() -> None:
    training = TrainingSpec(objective=SoftTargets())
    with pytest.raises(RecipeError, match=r"'soft_targets', but the teacher is a panel of 3, .*"):
        choose_objective(panel(VOTE, *map(member, "abc")), STUDENT, training)


def test_auto_takes_hard_targets_and_says_why() -> None:
    training = TrainingSpec(objective=AutoObjective())
    chosen = choose_objective(panel(VOTE, *map(member, "abc")), STUDENT, training)
    assert chosen.training.objective.kind == "hard_targets"
    assert chosen.because.startswith("hard_targets: not soft_targets: the teacher is a panel of 3")


@pytest.mark.parametrize(
    ("policy", "members", "reason"),
    [
        ({"kind": "cascade"}, [member("a"), member("b")], "has no criterion"),
        ({"kind": "best_of"}, [member("a"), member("b")], "neither a verifier nor a judge"),
        (
            {
                "kind": "best_of",
                "verifier": {"kind": "label"},
                "judge": {"model": member("j")["teacher"]},
            },
            [member("a"), member("b")],
            "both a verifier and a judge",
        ),
        (VOTE, [member("a"), member("a", model="other")], "two of them alike"),
        (VOTE, [member("a"), member("judge")], "names a teacher 'judge'"),
        (VOTE, [member("a")], "at least 2"),
        ({"kind": "route"}, [member("a"), member("b")], "'a' has no rule"),
        (
            VOTE,
            [member("a", rule={"kind": "length", "min_chars": 3}), member("b")],
            "policy.kind is 'vote', which reads none",
        ),
        (
            {"kind": "route"},
            [member(n, rule={"kind": "length", "min_chars": 3}) for n in "ab"],
            "'b' is the last and has a rule",
        ),
        (
            {"kind": "route"},
            [member("a", rule={"kind": "length"}), member("b")],
            "without bounds takes every row",
        ),
        (
            {"kind": "route"},
            [member("a", rule={"kind": "length", "min_chars": 3, "max_chars": 2}), member("b")],
            "no row is that long",
        ),
        (
            {"kind": "cascade", "min_agreement": 0.5},
            [member("a"), member("b")],
            "gives one response per prompt",
        ),
    ],
)
def test_a_panel_that_makes_no_sense_is_refused_with_its_reason(
    policy: dict[str, Any], members: list[dict[str, Any]], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        panel(policy, *members)
