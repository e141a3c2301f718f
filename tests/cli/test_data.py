"""`distillery data rejected`: what filters dropped, and what lets a row pass."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cli.app import app
from schemas.filters import FilterSpec, RefusalFilter
from tests.fixtures_filters import filter_rows, response_row, task_with
from tests.fixtures_recipe import make_recipe, write_recipe


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store in which two of three responses were dropped."""
    texts = ["I am sorry.", "fine", "As an AI, I"]
    rows = [response_row(text, prompt_id=f"t{n}") for n, text in enumerate(texts)]
    filter_rows(tmp_path, rows, FilterSpec(responses=(RefusalFilter(),)), task_with())
    return tmp_path


def _run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["data", "rejected", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_rejected_rows_of_a_store_are_shown_with_what_was_seen(store: Path) -> None:
    shown = _run(store, "--limit", 1)
    assert "I am sorry." in shown
    assert "refusal" in shown
    assert "1 of 2 rejected rows; --limit 2 shows all." in shown


def test_as_json_each_row_is_an_object(store: Path) -> None:
    rows = [json.loads(line) for line in _run(store, "--json", "--filter", "refusal").splitlines()]
    assert [(row["prompt_id"], row["reason"]) for row in rows] == [
        ("t0", "refusal"),
        ("t2", "refusal"),
    ]


def test_restoring_prints_what_the_recipe_has_to_say(store: Path) -> None:
    printed = _run(store, "--restore", "t2", "--restore", "t0")
    assert yaml.safe_load(printed.partition(":\n\n")[2]) == {"filters": {"restore": ["t0", "t2"]}}


def test_prompts_of_a_recipe_are_shown_before_anybody_is_asked(tmp_path: Path) -> None:
    raw = make_recipe(tmp_path, "http://127.0.0.1:9/v1")
    raw["filters"] = {
        **raw.get("filters", {}),
        "prompts": [{"kind": "language", "languages": ["de"]}],
        "restore": ["t1"],
    }
    shown = _run(write_recipe(tmp_path, raw), "--reason", "other_language", "--limit", 1)
    assert "(not asked)" in shown
