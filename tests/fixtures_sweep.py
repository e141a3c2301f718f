"""A small sweep, and what its trials would be worth."""

from typing import Any

from schemas.comparison import Interval
from schemas.execution import StoreSpec
from schemas.recipe import validate_recipe
from schemas.sweep import Cost, SweepRecipe, SweepSpec, Trial
from tests.fixtures_recipe import SHORTEST

LEARNING_RATE = {
    "kind": "number",
    "field": "training.learning_rate",
    "low": 1e-4,
    "high": 1e-1,
    "log": True,
}
OBJECTIVE = {
    "kind": "choice",
    "field": "training.objective",
    "choices": [{"kind": "hard_targets"}, {"kind": "soft_targets", "k": 8}],
}
BATCH_SIZE = {"kind": "integer", "field": "training.batch_size", "low": 4, "high": 64, "step": 4}
SELECTION = {"kind": "file", "path": "c.jsonl", "columns": {"reference": "answer"}}


def sweep_spec(**changes: Any) -> SweepSpec:
    settings: dict[str, Any] = {
        "parameters": [LEARNING_RATE, OBJECTIVE, BATCH_SIZE],
        "num_trials": 12,
    }
    return SweepSpec.model_validate(settings | changes)


def sweep_recipe(store: StoreSpec | None = None, **changes: Any) -> SweepRecipe:
    """Return the shortest recipe with a sweep, whose settings are ``changes``."""
    raw: dict[str, Any] = dict(SHORTEST)
    raw["data"] = SHORTEST["data"] | {"selection": SELECTION}
    raw["sweep"] = sweep_spec(**changes).model_dump(mode="json")
    if store is not None:
        raw["store"] = store.model_dump(mode="json")
    return validate_recipe(raw, SweepRecipe, source="a test's sweep")


def interval(estimate: float) -> Interval:
    return Interval(estimate=estimate, low=estimate - 0.02, high=estimate + 0.02, num_rows=100)


def costs_of(latency: float, parameters: float = 1e6) -> dict[Cost, float]:
    return {"latency": latency, "parameters": parameters, "disk_bytes": 4 * parameters}


def complete(number: int, quality: float, latency: float = 0.1, parameters: float = 1e6) -> Trial:
    return Trial(
        number=number,
        values={"training.learning_rate": 10.0 ** -(number + 1)},
        state="complete",
        quality=interval(quality),
        costs=costs_of(latency, parameters),
        seconds=60.0,
    )
