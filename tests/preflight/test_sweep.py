"""A sweep that cannot work is refused with all its problems, before anything is spent."""

from pathlib import Path
from typing import Any

import pytest

from distillery.preflight.sweep import check_sweep
from distillery.sweep.sameness import unread_parameters
from schemas.errors import RecipeError
from schemas.objectives import SoftTargets
from schemas.recipe import validate_recipe
from schemas.student import FromScratchStudent
from schemas.sweep import SweepRecipe
from schemas.task import TaskKind
from tests.fixtures_recipe import make_recipe, write_rows
from tests.fixtures_sweep import LEARNING_RATE

TEACHER = Path(__file__).parents[2] / "recipes" / "demo" / "teacher"
HIDDEN = {
    "kind": "choice",
    "field": "training.objective",
    "choices": [{"kind": "hard_targets"}, {"kind": "hidden_states"}],
}


def sweep(folder: Path, *, selection: bool = True, **settings: Any) -> SweepRecipe:
    raw = make_recipe(folder, "http://127.0.0.1:9/v1")
    if selection:
        write_rows(folder / "selection.jsonl", [{"id": "s", "text": "red", "label": "warm"}])
        columns = {"id": "id", "reference": "label"}
        path = str(folder / "selection.jsonl")
        raw["data"]["selection"] = {"kind": "file", "path": path, "columns": columns}
    raw["sweep"] = {"parameters": [LEARNING_RATE]} | settings
    return validate_recipe(raw, SweepRecipe, source="a test's sweep")


def refusal(recipe: SweepRecipe) -> str:
    with pytest.raises(RecipeError) as caught:
        check_sweep(recipe)
    return str(caught.value)


def test_a_sweep_that_can_be_passes(tmp_path: Path) -> None:
    check_sweep(sweep(tmp_path))


def test_a_sweep_needs_rows_to_choose_by(tmp_path: Path) -> None:
    assert "data.selection is missing" in refusal(sweep(tmp_path, selection=False))


def test_a_metric_that_the_task_does_not_have_is_refused_with_the_nearest(tmp_path: Path) -> None:
    said = refusal(sweep(tmp_path, metric="acuracy"))
    assert "sweep.metric is 'acuracy'" in said and "Did you mean 'accuracy'?" in said


def test_a_metric_that_is_not_the_better_the_larger_is_refused(tmp_path: Path) -> None:
    recipe = sweep(tmp_path, metric="length ratio")
    summaries = recipe.task.model_copy(update={"type": TaskKind.SUMMARIZATION})
    said = refusal(recipe.model_copy(update={"task": summaries}))
    assert "sweep.metric is 'length ratio', which" in said


@pytest.mark.parametrize(
    ("parameter", "reason"),
    [
        (
            {"kind": "integer", "field": "student.num_layers", "low": 2, "high": 100},
            "with student.num_layers=100: student.num_layers=100 is more than the 28 layers",
        ),
        (
            {"kind": "choice", "field": "student.chat_template", "choices": [None, "/no.jinja"]},
            "/no.jinja",
        ),
        (
            {"kind": "integer", "field": "training.max_length", "low": 16, "high": 128},
            "with training.max_length=16: training.objective.kind is 'on_policy', but",
        ),
    ],
)
def test_both_ends_and_every_choice_are_tried_as_a_whole_recipe(
    parameter: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    recipe = sweep(tmp_path)
    raw = recipe.model_dump(mode="json")
    raw["teacher"] = {"kind": "transformers", "model": str(TEACHER)}
    raw["student"] = {"kind": "pruned", "model": str(TEACHER), "num_layers": 4}
    objective = {"kind": "on_policy", "max_new_tokens": 64}
    raw["training"] |= {"max_length": 128, "objective": objective}
    raw["sweep"]["parameters"] = [parameter]
    assert reason in refusal(validate_recipe(raw, SweepRecipe, source="a test's sweep"))


def test_several_trials_at_a_time_need_a_work_pool(tmp_path: Path) -> None:
    assert "Set execution.mode to deployment" in refusal(sweep(tmp_path, parallel_trials=2))


def test_an_objective_that_is_not_possible_is_refused_with_its_reason(tmp_path: Path) -> None:
    said = refusal(sweep(tmp_path, parameters=[LEARNING_RATE, HIDDEN]))
    assert 'with training.objective={"kind":"hidden_states"}: training.objective.kind is' in said
    assert "Set teacher.kind to transformers" in said


def test_a_student_that_is_not_there_is_refused(tmp_path: Path) -> None:
    tokenizers = {
        "kind": "choice",
        "field": "student.tokenizer",
        "choices": [None, str(tmp_path / "none")],
    }
    assert "is no existing folder" in refusal(sweep(tmp_path, parameters=[tokenizers]))


@pytest.mark.parametrize(
    ("field", "choices"),
    [
        ("task.name", ["a", "b"]),
        ("teacher.concurrency", [1, 2]),
        ("teacher.base_url", ["http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"]),
        ("teacher.price", [None, {"prompt_per_million": 1, "completion_per_million": 1}]),
        ("training.micro_batch_size", [1, 2]),
        ("training.num_processes", [1, 2]),
        ("filters.min_keep_fraction", [0.1, 0.2]),
    ],
)
def test_a_field_that_makes_no_other_student_is_refused(
    tmp_path: Path, field: str, choices: list[Any]
) -> None:
    unread = {"kind": "choice", "field": field, "choices": choices}
    said = refusal(sweep(tmp_path, parameters=[LEARNING_RATE, unread]))
    assert said.startswith(f"sweep.parameters.1 varies {field!r}, which does not change what is")
    assert "every trial would be the same student" in said and "parameters.0" not in said


def test_a_field_that_counts_only_beside_another_may_be_varied(tmp_path: Path) -> None:
    beta = {"kind": "number", "field": "training.objective.jsd_beta", "low": 0.1, "high": 0.9}
    divergence = {
        "kind": "choice",
        "field": "training.objective.divergence",
        "choices": ["forward_kl", "jensen_shannon"],
    }

    def unread(*parameters: dict[str, Any]) -> list[int]:
        recipe = sweep(tmp_path, parameters=[*parameters])
        soft = recipe.training.model_copy(update={"objective": SoftTargets()})
        return [n for n, _ in unread_parameters(recipe.model_copy(update={"training": soft}))]

    assert unread(beta) == [0]
    assert unread(beta, divergence) == []


def test_a_chat_template_counts_by_what_it_says(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "2"), ("c", "1")):
        (tmp_path / f"{name}.jinja").write_text(text)

    def unread(*names: str) -> list[int]:
        templates = {
            "kind": "choice",
            "field": "student.chat_template",
            "choices": [str(tmp_path / f"{name}.jinja") for name in names],
        }
        recipe = sweep(tmp_path, parameters=[templates])
        student = FromScratchStudent(
            tokenizer=str(TEACHER), num_layers=1, hidden_size=16, intermediate_size=32, num_heads=2
        )
        return [n for n, _ in unread_parameters(recipe.model_copy(update={"student": student}))]

    assert unread("a", "b") == []
    assert unread("a", "c") == [0]


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    unknown = LEARNING_RATE | {"field": "training.learning_rat"}
    said = refusal(sweep(tmp_path, selection=False, metric="f1", parameters=[unknown]))
    for part in ("data.selection is missing", "sweep.metric is 'f1'", "Did you mean 'learning_ra"):
        assert part in said
