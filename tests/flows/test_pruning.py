"""A student pruned from the demo's teacher goes through the whole spine, and is promoted."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from distillery.storage.store import Store
from schemas.recipe import Recipe, validate_recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

ROOT = Path(__file__).parents[2]
TEACHER = "recipes/demo/teacher"
CHANGES: dict[str, dict[str, Any]] = {
    "training": {
        "objective": {"kind": "soft_targets"},
        "learning_rate": 1e-3,
        "epochs": 2,
        "min_steps": 0,
        "evaluations": 4,
    },
    "evaluation": {"bootstrap_samples": 200, "latency_rows": 5, "throughput_rows": 16},
    "gate": {"min_retention": 0.7},
    "export": {"formats": [{"kind": "gguf", "precision": "q8_0"}]},
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Return the demo's recipe with a pruned student, fewer rows and less measuring."""
    monkeypatch.chdir(ROOT)
    raw = yaml.safe_load((ROOT / "recipes/demo.yaml").read_text(encoding="utf-8"))
    for section, fields in CHANGES.items():
        raw[section] = raw.get(section, {}) | fields
    raw["data"]["train"]["max_rows"], raw["data"]["test"]["max_rows"] = 1200, 200
    raw["student"] = {
        "kind": "pruned",
        "model": TEACHER,
        "num_layers": 4,
        "intermediate_size": 160,
        "calibration_rows": 64,
        "dtype": "float32",
    }
    raw["store"] = {"root": str(tmp_path / "store")}
    return validate_recipe(raw, Recipe, source="a test's recipe")


def test_a_pruned_student_is_distilled_exported_compared_and_promoted(recipe: Recipe) -> None:
    from flows.distill_student import distill_student

    sections = {name: getattr(recipe, name) for name in type(recipe).model_fields}
    outcome = distill_student(**sections)
    store = Store(recipe.store.root)

    [pruned] = manifests(store, "prune_student")
    assert pruned["facts"]["after"]["layers"] == 4
    assert pruned["counts"]["calibration_rows"] == 64
    compared = {row.name: row for row in outcome.comparison.contestants}
    assert list(compared) == ["teacher", "baseline", "student", "gguf q8_0"]
    size = pruned["counts"]["parameters"]
    assert compared["baseline"].num_parameters == compared["student"].num_parameters == size
    assert size < (compared["teacher"].num_parameters or 0)
    assert compared["baseline"].model == pruned["outputs"]["model"]["uri"]
    accuracy = {
        name: row.metrics["accuracy"].estimate
        for name, row in compared.items()
        if row.metrics["accuracy"]
    }
    assert accuracy["student"] > 0.8 > 0.5 > accuracy["baseline"]
    assert abs(accuracy["gguf q8_0"] - accuracy["student"]) < 0.05
    assert "pruned to 4 of its " in (outcome.comparison.baseline or "")
    assert outcome.promotion.promoted and outcome.promotion.forms

    report = Path(store.path(outcome.report.uri))
    assert f"Made from: `{TEACHER}`" in (report / "model-card.md").read_text()
    assert "pruned to 4 of its" in (report / "report.html").read_text()


def manifests(store: Store, stage: str) -> list[Any]:
    return [
        json.loads(file.read_text()) for file in Path(store.path(stage)).glob("*/manifest.json")
    ]
