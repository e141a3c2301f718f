"""A small recipe with real stages: colours to labels, a scripted teacher, a tiny student."""

import json
from pathlib import Path
from typing import Any

import yaml

from schemas.recipe import Recipe, validate_recipe
from tests.stub_endpoint import Reply

COLOURS = {"warm": ["red", "orange", "crimson", "amber"], "cold": ["blue", "teal", "navy", "azure"]}
OBJECTS = ["door", "lamp", "coat", "boat", "shelf", "cup", "wheel", "roof", "sign", "chair"]


SHORTEST: dict[str, Any] = {
    "task": {"name": "t", "type": "classification"},
    "data": {
        "train": {"kind": "file", "path": "a.jsonl"},
        "test": {"kind": "file", "path": "b.jsonl", "columns": {"reference": "answer"}},
    },
    "teacher": {"kind": "openai", "model": "m", "base_url": "http://host/v1"},
    "student": {"kind": "pretrained", "model": "s"},
}


def changed(place: str, value: Any) -> dict[str, Any]:
    """Return SHORTEST with one value changed."""
    recipe: Any = yaml.safe_load(yaml.safe_dump(SHORTEST))
    *path, last = place.split(".")
    section = recipe
    for key in path:
        section = section.setdefault(key, {})
    section[last] = value
    return dict(recipe)


def label_of(text: str) -> str:
    return next(label for label, names in COLOURS.items() if any(n in text for n in names))


def texts() -> list[str]:
    names = [name for group in COLOURS.values() for name in group]
    return [f"the {o} number {i} is {n}" for i in range(5) for o in OBJECTS for n in names]


def scripted_teacher(request: dict[str, Any]) -> Reply:
    """Answers as a perfect teacher would."""
    return Reply(text=label_of(request["messages"][-1]["content"]))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_recipe(folder: Path, base_url: str, **changes: Any) -> dict[str, Any]:
    """Return a recipe whose data files are in ``folder`` and whose teacher is at ``base_url``."""
    all_texts = texts()
    train, gold, test = all_texts[:240], all_texts[240:264], all_texts[264:344]
    write_rows(folder / "train.jsonl", [{"id": f"t{i}", "text": t} for i, t in enumerate(train)])
    for name, rows in (("gold", gold), ("test", test)):
        labelled = [
            {"id": f"{name}{i}", "text": t, "label": label_of(t)} for i, t in enumerate(rows)
        ]
        write_rows(folder / f"{name}.jsonl", labelled)

    def source(name: str) -> dict[str, Any]:
        columns = {"id": "id"} | ({"reference": "label"} if name != "train" else {})
        return {"kind": "file", "path": str(folder / f"{name}.jsonl"), "columns": columns}

    recipe: dict[str, Any] = {
        "task": {
            "name": "colours",
            "type": "classification",
            "answer_format": {"kind": "labels", "labels": ["warm", "cold"]},
        },
        "data": {name: source(name) for name in ("train", "gold", "test")},
        "teacher": {
            "kind": "openai",
            "model": "scripted",
            "base_url": base_url,
            "max_new_tokens": 8,
            "max_attempts": 2,
            "concurrency": 8,
        },
        "student": {
            "kind": "from_scratch",
            "num_layers": 1,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "max_length": 64,
            "vocab_size": 320,
            "initializer_std": 0.1,
        },
        "training": {
            "learning_rate": 0.02,
            "batch_size": 16,
            "epochs": 8,
            "evaluations": 4,
            "max_length": 64,
        },
        "evaluation": {
            "max_new_tokens": 8,
            "latency_rows": 5,
            "latency_warmup": 1,
            "throughput_rows": 16,
            "bootstrap_samples": 200,
            "context_tokens": 64,
        },
        "store": {"root": str(folder / "store")},
        "execution": {"chunk_rows": 100, "cpu_threads": 1},
    }
    for section, fields in changes.items():
        recipe[section] = recipe.get(section, {}) | fields
    return recipe


def load(raw: dict[str, Any]) -> Recipe:
    return validate_recipe(raw, Recipe, source="a test's recipe")


def write_recipe(folder: Path, raw: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path
