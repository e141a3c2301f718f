"""A student that writes itself starts from the one of hard targets, which is trained only once."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from distillery.storage.store import Store
from schemas.recipe import Recipe, validate_recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

ROOT = Path(__file__).parents[2]
TRAINING = {"learning_rate": 1e-3, "epochs": 1, "min_steps": 0, "evaluations": 2}
STUDENT = {
    "kind": "pruned",
    "model": "recipes/demo/teacher",
    "num_layers": 4,
    "dtype": "float32",
}


def recipe(root: Path, objective: dict[str, Any]) -> Recipe:
    """Return the demo's recipe with a pruned student, few rows and ``objective``."""
    raw = yaml.safe_load((ROOT / "recipes/demo.yaml").read_text(encoding="utf-8"))
    raw["training"] |= TRAINING | {"objective": objective}
    raw["student"] = STUDENT
    raw["data"]["train"]["max_rows"], raw["data"]["test"]["max_rows"] = 300, 60
    raw["store"] = {"root": str(root)}
    return validate_recipe(raw, Recipe, source="a test's recipe")


def test_the_training_on_hard_targets_is_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow

    from flows.teach_student import teach_student

    monkeypatch.chdir(ROOT)
    teach = flow(teach_student)
    plain = teach(recipe(tmp_path, {"kind": "hard_targets"}))
    written = {"kind": "on_policy", "max_new_tokens": 8, "learning_rate": 1e-4}
    result = teach(recipe(tmp_path, written))

    store = Store(str(tmp_path))
    trained = [
        json.loads(file.read_text())
        for file in Path(store.path("train_student")).glob("*/manifest.json")
    ]
    # Were it trained again, its attempt would be another.
    [last] = [each for each in trained if each["inputs"].get("start") == plain.student.uri]
    assert len(trained) == 2
    assert result.student.uri == last["outputs"]["model"]["uri"] != plain.student.uri
    assert result.baseline == plain.baseline
    assert last["facts"]["on_policy"]["samples"] > 50
    assert last["facts"]["best_validation_loss"] < last["facts"]["curve"][0]["loss"]
