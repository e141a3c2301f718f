"""A sweep that cannot work is refused with all its problems, before anything is spent."""

from pathlib import Path
from typing import Any

import pytest

from distillery.preflight.sweep import check_sweep
from schemas.errors import RecipeError
from schemas.recipe import validate_recipe
from schemas.sweep import SweepRecipe
from tests.fixtures_recipe import make_recipe, write_rows
from tests.fixtures_sweep import LEARNING_RATE

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


def test_several_trials_at_a_time_need_a_work_pool(tmp_path: Path) -> None:
    assert "Set execution.mode to deployment" in refusal(sweep(tmp_path, parallel_trials=2))


def test_an_objective_that_is_not_possible_is_refused_with_its_reason(tmp_path: Path) -> None:
    said = refusal(sweep(tmp_path, parameters=[LEARNING_RATE, HIDDEN]))
    assert 'with training.objective={"kind":"hidden_states"}: training.objective.kind is' in said
    assert "hard_targets" in said


def test_a_student_that_is_not_there_is_refused(tmp_path: Path) -> None:
    tokenizers = {
        "kind": "choice",
        "field": "student.tokenizer",
        "choices": [None, str(tmp_path / "none")],
    }
    assert "is no existing folder" in refusal(sweep(tmp_path, parameters=[tokenizers]))


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    unknown = LEARNING_RATE | {"field": "training.learning_rat"}
    said = refusal(sweep(tmp_path, selection=False, metric="f1", parameters=[unknown]))
    for part in ("data.selection is missing", "sweep.metric is 'f1'", "Did you mean 'learning_ra"):
        assert part in said
