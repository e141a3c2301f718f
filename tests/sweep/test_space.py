"""What trials may vary, and what is refused before anything is spent."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distillery.sweep.space import applied, as_values, distributions, shared_recipes, space_problems
from distillery.sweep.written import recipe_yaml
from schemas.recipe import Recipe, load_recipe
from schemas.sweep import SweepSpec
from tests.fixtures_sweep import LEARNING_RATE, OBJECTIVE, sweep_recipe, sweep_spec


def _problem(parameter: dict[str, Any], *more: dict[str, Any]) -> str:
    return "\n".join(space_problems(sweep_recipe(parameters=[parameter, *more])))


def _choice(field: str, *choices: Any) -> dict[str, Any]:
    return {"kind": "choice", "field": field, "choices": list(choices)}


def _number(field: str, low: float = 0.1, high: float = 0.9) -> dict[str, Any]:
    return {"kind": "number", "field": field, "low": low, "high": high}


def test_a_sweep_that_can_be_has_no_problems() -> None:
    whole = _choice("training.method", {"kind": "full"}, {"kind": "lora", "r": 8})
    sizes = _choice("student", *({"kind": "pretrained", "model": f"me/{n}"} for n in "ab"))
    parameters = [LEARNING_RATE, OBJECTIVE, whole, sizes]
    assert space_problems(sweep_recipe(parameters=parameters)) == []


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        (_number("training.learning_rat"), "Did you mean 'learning_rate'?"),
        (_number("trainin.learning_rate"), "Did you mean 'training'?"),
        (_number("teacher.price.input"), "teacher.price is not set, so it has no field 'input'"),
        (_number("training.learning_rate.x"), "training.learning_rate is not a section"),
        (_choice("data.test", 1, 2), "none may see the test rows"),
        (_choice("data.selection.max_rows", 10, 20), "trials on different rows"),
        (_number("evaluation.confidence"), "judged in different ways are no comparison"),
        (_number("gate.min_retention"), "the gate is for the winner alone"),
        (_choice("store.root", "a", "b"), "all trials share one store"),
        (_choice("task.type", "classification", "qa"), "students of different tasks"),
        (_choice("task", {"type": "qa"}, {"type": "nli"}), "but it holds 'task.type', and stud"),
        (_number("filters.prompts.0.threshold"), "filters.prompts is a list, whose items"),
        (_choice("task.answer_format.labels", ["a"], ["b"]), "judged in different ways"),
        (_number("training.learning_rate", -1.0), "training.learning_rate: is -1.0, but has to be"),
        (
            _number("training.epochs", 0.0),
            "sweep.parameters.0.low is 0.0, which 'training.epochs' does not take:\n"
            "  training.epochs: is 0.0, but has to be greater than 0",
        ),
        (
            _choice("training.epochs", 1, 0),
            "sweep.parameters.0.choices.1 is 0, which 'training.epochs' does not take:\n"
            "  training.epochs: is 0, but has to be greater than 0",
        ),
        (_number("training.batch_size", 1, 8), "takes whole numbers"),
        (_number("training.schedule"), "which 'training.schedule' does not take"),
        (
            {"kind": "integer", "field": "training.learn_reasoning", "low": 0, "high": 1},
            "it is true or false",
        ),
        (_choice("training.schedule", "cosine", "cosin"), "Did you mean 'cosine'?"),
        (_choice("training.objective", "hard_targets", "soft_targets"), "has to be a section"),
        (_choice("training.objective", {"kind": "hard"}, {"kind": "auto"}), "no kind 'hard'"),
        (
            _choice("training.objective", {"kind": "hard_targets", "k": 8}, {"kind": "auto"}),
            "of which 'training.objective' would ignore a part",
        ),
        (
            _choice("training.method", {"kind": "lora", "r": 0}, {"kind": "full"}),
            "training.method.r: is 0",
        ),
    ],
)
def test_what_no_trial_could_try_is_refused(parameter: dict[str, Any], said: str) -> None:
    assert said in _problem(parameter)


def test_a_parameter_inside_another_is_refused() -> None:
    said = _problem(OBJECTIVE, _number("training.objective.soft_weight"))
    assert "'training.objective.soft_weight', which lies inside it" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parameters": []}, "at least 1 item"),
        ({"parameters": [LEARNING_RATE | {"low": 1.0, "high": 0.5}]}, "is not below high=0.5"),
        ({"parameters": [LEARNING_RATE | {"low": 0.0}]}, "has no logarithm"),
        (
            {
                "parameters": [
                    LEARNING_RATE | {"kind": "integer", "low": 1, "high": 9, "step": 2, "log": True}
                ]
            },
            "no even steps",
        ),
        (
            {
                "parameters": [
                    LEARNING_RATE
                    | {"kind": "integer", "low": 4, "high": 9, "step": 6}
                    | {"log": False}
                ]
            },
            "there is one value to try",
        ),
        ({"parameters": [_choice("training.seed", 1, 1)]}, "names 1 twice"),
        ({"parameters": [LEARNING_RATE, LEARNING_RATE]}, "one field twice"),
        ({"costs": ["latency"]}, "Set sweep.pruning to false"),
    ],
)
def test_a_sweep_that_contradicts_itself_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        sweep_spec(**changes)


def test_values_are_put_in_their_places_and_whole_sections_are_replaced() -> None:
    recipe = sweep_recipe()
    values: dict[str, Any] = {
        "training.learning_rate": 0.003,
        "training.objective": {"kind": "soft_targets", "k": 8},
    }
    made = applied(recipe, values)
    assert type(made) is Recipe
    assert made.training.learning_rate == 0.003
    assert made.training.objective.kind == "soft_targets"
    assert applied(recipe, {}).parameters() == {
        name: getattr(recipe, name) for name in Recipe.model_fields
    }


def test_drawn_choices_become_what_the_recipe_says() -> None:
    sweep = SweepSpec.model_validate({"parameters": [OBJECTIVE]})
    [of_objective] = distributions(sweep).values()
    assert [as_values({"training.objective": c}, sweep) for c in of_objective.choices] == [
        {"training.objective": choice} for choice in OBJECTIVE["choices"]
    ]


def test_every_objective_shares_the_teachers_work_unless_the_teacher_varies() -> None:
    kinds = [each.training.objective.kind for each in shared_recipes(sweep_recipe())]
    assert kinds == ["hard_targets", "soft_targets"]
    assert len(shared_recipes(sweep_recipe(parameters=[LEARNING_RATE]))) == 1
    other = _number("teacher.temperature", 0.0, 1.0)
    assert shared_recipes(sweep_recipe(parameters=[other])) == []


def test_a_written_recipe_says_what_differs_and_is_read_as_the_same(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "training.learning_rate": 0.00123456789,
        "training.objective": {"kind": "soft_targets", "k": 8},
        "training.method": {"kind": "lora"},
    }
    made = applied(sweep_recipe(), values)
    text = recipe_yaml(made, "Trial 3\n\nof a sweep")
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert load_recipe(path, [], Recipe) == made
    assert "# Trial 3\n#\n# of a sweep\n" in text
    assert "learning_rate: 0.00123456789" in text
    assert "kind: lora" in text
    assert "epochs" not in text and "sweep:" not in text
