"""A sweep in this process, on a scripted teacher and tiny students; and one that is killed."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distillery.storage.store import Store
from distillery.sweep.study import Study
from schemas.execution import StoreSpec
from schemas.recipe import Recipe, load_recipe, validate_recipe
from schemas.sweep import Sweep, SweepRecipe
from tests.fixtures_recipe import (
    label_of,
    make_recipe,
    scripted_teacher,
    texts,
    write_recipe,
    write_rows,
)
from tests.fixtures_sweep import LEARNING_RATE
from tests.stub_endpoint import StubEndpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

# Each is possible by itself, 12 over 4 heads is not: such a trial fails.
WIDTH = {"kind": "choice", "field": "student.hidden_size", "choices": [32, 12]}
HEADS = {"kind": "choice", "field": "student.num_heads", "choices": [2, 4]}
NUM_TRIALS = 6


@pytest.fixture
def teacher() -> Iterator[StubEndpoint]:
    with StubEndpoint(respond=scripted_teacher) as endpoint:
        yield endpoint


def make_sweep(folder: Path, base_url: str, **settings: Any) -> dict[str, Any]:
    """Return a recipe whose selection rows include one of the test rows and a training prompt."""
    raw = make_recipe(folder, base_url, gate={"min_retention": 0.5})
    rows = texts()
    chosen = [*rows[344:384], rows[264], rows[0]]
    write_rows(
        folder / "selection.jsonl",
        [{"id": f"s{n}", "text": text, "label": label_of(text)} for n, text in enumerate(chosen)],
    )
    columns = {"id": "id", "reference": "label"}
    path = str(folder / "selection.jsonl")
    raw["data"]["selection"] = {"kind": "file", "path": path, "columns": columns}
    # Good enough at any learning rate of the sweep that it has a student.
    raw["sweep"] = {
        "parameters": [LEARNING_RATE | {"low": 1e-3}, WIDTH, HEADS],
        "num_trials": NUM_TRIALS,
        "startup_trials": 3,
    } | settings
    return raw


def run(raw: dict[str, Any]) -> Sweep:
    from flows.sweep_students import sweep_students

    recipe = validate_recipe(raw, SweepRecipe, source="a test's sweep")
    outcome: Sweep = sweep_students(
        **{name: getattr(recipe, name) for name in SweepRecipe.model_fields}
    )
    return outcome


def sealed(raw: dict[str, Any], stage: str) -> list[Path]:
    return sorted(Path(raw["store"]["root"]).glob(f"{stage}/*/manifest.json"))


def test_students_are_chosen_on_selection_rows_and_the_winner_alone_meets_the_test_rows(
    tmp_path: Path, teacher: StubEndpoint
) -> None:
    raw = make_sweep(tmp_path, teacher.base_url)
    outcome = run(raw)

    states = {trial.number: trial.state for trial in outcome.trials}
    failed = {
        t.number
        for t in outcome.trials
        if (t.values["student.hidden_size"], t.values["student.num_heads"]) == (12, 4)
    }
    assert failed and {n for n, state in states.items() if state == "failed"} == failed
    assert all(
        t.reason and "rotary embeddings" in t.reason for t in outcome.trials if t.number in failed
    )
    able = [trial for trial in outcome.trials if trial.quality]
    assert outcome.winner.quality == max((t.quality for t in able), key=lambda q: q.estimate)  # type: ignore[union-attr]
    # 42 rows, one of which is a test row.
    assert {trial.quality.num_rows for trial in able if trial.quality} == {41}

    assert len(sealed(raw, "answer_selection")) == len(able)
    students = {json.loads(path.read_text())["facts"]["contestant"] for path in (
        sealed(raw, "answer_test_prompts"))}  # fmt: skip
    assert students == {"teacher", "baseline", "student"}
    assert len(sealed(raw, "answer_test_prompts")) == 3
    assert len(sealed(raw, "train_baseline")) == 1

    asked = [request["messages"][-1]["content"] for request in teacher.requests]
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    trained = {json.loads(line)["text"] for line in lines}
    assert {text: asked.count(text) for text in trained & set(asked)} == dict.fromkeys(
        trained - {texts()[0]}, 1
    )
    store = Store(raw["store"]["root"])
    page = (store.read_bytes(f"{outcome.report.uri}/report.html") or b"").decode()
    assert "239 requests" in page and "0 paid twice" in page

    # The recipe that was written finds the student trained.
    written = tmp_path / "winner.yaml"
    written.write_bytes(store.read_bytes(f"{outcome.report.uri}/recipe.yaml") or b"")
    from flows.distill_student import distill_student

    num_trained = len(sealed(raw, "train_student"))
    again = distill_student(**load_recipe(written, [], Recipe).parameters())
    assert again.student == outcome.distillation.student
    assert len(sealed(raw, "train_student")) == num_trained

    # And the sweep itself is over.
    asked_before = teacher.num_requests
    assert run(raw).trials == outcome.trials
    assert teacher.num_requests == asked_before


def test_a_pruned_trial_reads_pruned_and_leaves_nothing(
    tmp_path: Path, teacher: StubEndpoint
) -> None:
    from prefect.client.orchestration import get_client

    rate = {"kind": "choice", "field": "training.learning_rate", "choices": [2e-2, 1e-6]}
    raw = make_sweep(tmp_path, teacher.base_url, parameters=[rate], num_trials=8, startup_trials=1)
    raw["task"]["name"] = "pruning"
    outcome = run(raw)
    pruned = [trial for trial in outcome.trials if trial.state == "pruned"]
    assert pruned and all(trial.values["training.learning_rate"] == 1e-6 for trial in pruned)
    assert all(trial.reason and "given up after" in trial.reason for trial in pruned)
    root = Path(raw["store"]["root"])
    files = [path for path in root.glob("train_student/**/*") if path.is_file()]
    [kept] = sealed(raw, "train_student")
    assert {path.relative_to(root).parts[1] for path in files} == {kept.parent.name}
    with get_client(sync_client=True) as client:
        # Other sweeps on this server have trials of the same number.
        states = {
            (run.name, run.state.name if run.state else None)
            for run in client.read_flow_runs(limit=200)
        }
    assert (f"trial {pruned[0].number}", "Pruned") in states


# Dies where a trial is trained and its student answers.
KILLED = """
import os, signal, sys
import flows
from distillery.storage.stage import Attempt
seal, left = Attempt.seal, {nth}
def die(attempt):
    global left
    if attempt.stage.name == {stage!r}:
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
    return seal(attempt)
Attempt.seal = die
sys.argv = ["distillery", "sweep", {recipe!r}]
from cli.app import main
main()
"""


def test_a_killed_sweep_goes_on_to_the_same_winner(tmp_path: Path, prefect_server: str) -> None:
    environment = os.environ | {"PREFECT_API_URL": prefect_server, "HF_HUB_OFFLINE": "1"}

    def started(code: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *code], env=environment, capture_output=True, text=True, timeout=900
        )

    def trials(raw: dict[str, Any], name: str) -> list[Any]:
        with Study(StoreSpec.model_validate(raw["store"]), name) as study:
            return [(t.values, t.state, t.quality, t.reason) for t in study.trials()]

    with StubEndpoint(respond=scripted_teacher) as endpoint:
        raw = make_sweep(tmp_path, endpoint.base_url)
        whole = run(raw)
        expected = trials(raw, whole.study)

        raw["store"]["root"] = str(tmp_path / "killed")
        recipe = write_recipe(tmp_path, raw)
        for nth, stage in ((1, "train_student"), (2, "train_student"), (1, "try_student")):
            script = KILLED.format(nth=nth, stage=stage, recipe=str(recipe))
            done = started(["-c", script])
            assert done.returncode == -signal.SIGKILL, done.stderr
        done = started(["-m", "cli", "sweep", str(recipe)])
    assert done.returncode == 0, done.stderr
    assert trials(raw, whole.study) == expected
    assert f"Trial {whole.winner.number} wins" in re.sub(r"\s+", " ", done.stdout)
