"""What `distillery sweep --plan` says, and how a sweep that cannot be is refused."""

from pathlib import Path

import pytest

from cli.sweep import run_sweep
from schemas.errors import RecipeError
from tests.fixtures_recipe import label_of, make_recipe, texts, write_recipe, write_rows
from tests.fixtures_sweep import BATCH_SIZE, LEARNING_RATE


def _recipe(folder: Path) -> str:
    raw = make_recipe(folder, "http://127.0.0.1:9/v1")
    rows = [{"id": str(n), "text": t, "label": label_of(t)} for n, t in enumerate(texts()[350:370])]
    write_rows(folder / "selection.jsonl", rows)
    raw["data"]["selection"] = raw["data"]["test"] | {"path": str(folder / "selection.jsonl")}
    methods = {
        "kind": "choice",
        "field": "training.method",
        "choices": [{"kind": "full"}, {"kind": "lora", "r": 4}],
    }
    raw["sweep"] = {"parameters": [LEARNING_RATE, BATCH_SIZE, methods], "num_trials": 7}
    return str(write_recipe(folder, raw))


def test_a_plan_says_what_is_tried_and_asked_and_asks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_sweep(_recipe(tmp_path), [], plan=True)
    said = capsys.readouterr().out
    assert said.startswith("up to 7 trials, 1 at a time, which vary\n")
    assert "  training.learning_rate: 0.0001 to 0.1, logarithmic\n" in said
    assert "  training.batch_size: 4 to 64\n" in said
    assert '  training.method: one of {"kind": "full"}, {"kind": "lora", "r": 4}\n' in said
    assert "to ask             240" in said


def test_a_sweep_without_its_section_is_refused(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, make_recipe(tmp_path, "http://127.0.0.1:9/v1"))
    with pytest.raises(RecipeError, match=r"sweep: is missing\. Add it"):
        run_sweep(str(recipe), [], plan=True)


def test_overrides_reach_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"sweep\.parallel_trials is 3"):
        run_sweep(_recipe(tmp_path), ["sweep.parallel_trials=3"], plan=True)
