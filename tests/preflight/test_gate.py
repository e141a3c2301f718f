"""A gate whose figures the comparison will not have is refused before anything is spent."""

from typing import Any

import pytest

from distillery.preflight.gate import unanswerable_conditions
from distillery.preflight.recipe import check_recipe
from distillery.task_types import task_type
from schemas.errors import RecipeError
from schemas.recipe import Recipe, validate_recipe
from tests.fixtures_recipe import changed

LABELS = {"kind": "labels", "labels": ["refund", "repair"]}
PRICE = {"per_hour": 2.0, "currency": "USD", "source": "a list"}
TOKENS = {"prompt_per_million": 1.0, "completion_per_million": 2.0}
DECLARED = {"num_parameters": 1_000_000, "memory_gib": 1.0, "source": "a card"}


def recipe(gate: dict[str, Any], **sections: dict[str, Any]) -> Recipe:
    raw = changed("task.answer_format", LABELS)
    for name, fields in sections.items():
        raw[name] = {**raw.get(name, {}), **fields}
    return validate_recipe(raw | {"gate": gate}, Recipe, source="r.yaml")


def refused(gate: dict[str, Any], **sections: dict[str, Any]) -> list[str]:
    found = recipe(gate, **sections)
    kind = task_type(found.task)
    return unanswerable_conditions(found.gate, kind, found.teacher, found.evaluation)


def condition(kind: str = "quality", **asked: Any) -> dict[str, Any]:
    return {"conditions": [{"kind": kind} | asked]}


def limit(figure: str, against: str | None = None) -> dict[str, Any]:
    return condition("limit", figure=figure, against=against, at_most=0.5)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (
            {"metric": "macro_f1", "at_least": 0.5},
            ".metric is 'macro_f1', which task.type 'classification' does not have. Did you mean "
            "'macro f1'? Name one of 'accuracy', 'macro F1'.",
        ),
        (
            {"slice": "refund", "at_least": 0.5},
            ".slice is 'refund', which is not of the form column=value. Write for example "
            "label=refund.",
        ),
        (
            {"slice": "lable=refund", "at_least": 0.5},
            ".slice is 'lable=refund', but 'lable' is not in evaluation.slices ['label', "
            "'length'], so there is no such slice. Did you mean 'label'? Add it there, or name a "
            "column that is.",
        ),
        (
            {"slice": "label=refunds", "at_least": 0.5},
            ".slice is 'label=refunds', which is none of the labels 'refund', 'repair'. Did you "
            "mean 'refund'? Correct it.",
        ),
        (
            {"slice": "label=refund", "metric": "macro F1", "at_least": 0.5},
            ".metric is 'macro F1', but slices are compared by 'accuracy' alone. Remove `metric`, "
            "or `slice`.",
        ),
        (
            {"slice": "label=refund", "against": "baseline"},
            ".against is 'baseline', but in slices the student is compared with teacher and "
            "champion. Name one of them.",
        ),
    ],
)
def test_a_metric_or_slice_that_will_not_be_there_is_refused(
    asked: dict[str, Any], why: str
) -> None:
    assert refused(condition(**asked)) == [f"gate.conditions[0]{why}"]


@pytest.mark.parametrize(
    "asked",
    [
        {"metric": "MACRO F1", "at_least": 0.5},
        {"metric": "macro f1", "against": "teacher", "at_least": -0.02},
        {"metric": "Accuracy", "against": "champion", "at_least": -0.01},
        {"slice": "label=refund", "against": "teacher", "at_least": -0.1},
        {"slice": "length=1", "at_least": 0.5},
    ],
)
def test_a_metric_or_slice_that_will_be_there_is_accepted(asked: dict[str, Any]) -> None:
    assert refused(condition(**asked)) == []


def test_a_slice_by_label_of_answers_that_are_not_labels_is_refused() -> None:
    qa = {"task": {"type": "qa", "answer_format": None}}
    (line,) = refused(condition(slice="label=x", at_least=0.5), **qa)
    assert line.endswith("the answers of task.type 'qa' are not labels. Remove the condition.")


@pytest.mark.parametrize(
    ("gate", "sections", "why"),
    [
        (
            {"max_cost_ratio": 0.4},
            {"teacher": {"price": TOKENS}},
            "gate.max_cost_ratio asks what the student costs, but evaluation.machine_price is "
            "missing. Add what an hour of the machine costs.",
        ),
        (
            {"max_cost_ratio": 0.4},
            {"evaluation": {"machine_price": PRICE}},
            "gate.max_cost_ratio asks what the teacher costs, but teacher.price is missing. Add "
            "the endpoint's prices per million tokens.",
        ),
        (
            {"max_cost_ratio": 0.4},
            {
                "teacher": {"price": TOKENS | {"currency": "EUR"}},
                "evaluation": {"machine_price": PRICE},
            },
            "gate.max_cost_ratio compares costs, but teacher.price is in EUR and "
            "evaluation.machine_price in USD. Give both in one currency.",
        ),
        (
            limit("cost_per_1000", "champion"),
            {},
            "gate.conditions[0] asks what the student costs, but evaluation.machine_price is "
            "missing. Add what an hour of the machine costs.",
        ),
        (
            {"max_memory_ratio": 0.05},
            {},
            "gate.max_memory_ratio asks for the teacher's memory, which nobody can measure from "
            "here: it answers behind an endpoint. Say what it needs under teacher.declared.",
        ),
        (
            limit("peak_memory_bytes", "teacher"),
            {"teacher": {"declared": DECLARED}},
            "gate.conditions[0] asks for the teacher's peak memory, which nobody can measure from "
            "here: it answers behind an endpoint. Remove `against` and say how large it may be, "
            "or compare with the champion.",
        ),
    ],
)
def test_a_figure_that_can_never_be_measured_is_refused(
    gate: dict[str, Any], sections: dict[str, Any], why: str
) -> None:
    assert refused(gate, **sections) == [why]


@pytest.mark.parametrize(
    ("gate", "sections"),
    [
        (
            {"max_cost_ratio": 0.4},
            {"teacher": {"price": TOKENS}, "evaluation": {"machine_price": PRICE}},
        ),
        ({"max_memory_ratio": 0.05}, {"teacher": {"declared": DECLARED}}),
        (limit("peak_memory_bytes", "champion"), {}),
        (limit("disk_bytes"), {}),
        ({"max_latency_ratio": 0.5}, {}),
    ],
)
def test_a_figure_that_will_be_measured_is_accepted(
    gate: dict[str, Any], sections: dict[str, Any]
) -> None:
    assert refused(gate, **sections) == []


def test_the_flow_refuses_such_a_gate_with_everything_else_that_is_wrong() -> None:
    found = recipe(condition(metric="F1", at_least=0.5), data={"test": None})
    made = (found.student, found.training, found.store, found.execution)
    with pytest.raises(RecipeError, match=r"data\.test is missing(?s:.*)'F1', which task\.type"):
        check_recipe(
            *(found.task, found.data, found.teacher, *made),
            *(found.evaluation, found.export, found.gate),
        )
