"""Every recipe of recipes/smoke runs from end to end, as a user runs it."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.references import read_references, serve
from schemas.recipe import Recipe, load_recipe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TWINS = {
    "classification": ("intents", "accuracy"),
    "nli": ("entailment", "accuracy"),
    "qa": ("reading", "F1"),
    "math": ("word-problems", "accuracy"),
    "conversation": ("technical-support", "ROUGE-L"),
    "summarization": ("highlights", "ROUGE-L"),
}
"""Task and primary metric of the twins whose teacher is an endpoint, by recipe."""


class Smoke:
    """Runs the recipes on rows in one folder, in which they leave what they make."""

    def __init__(self, folder: Path, api: str) -> None:
        self.folder = folder
        self._environment = os.environ | {"PREFECT_API_URL": api, "SMOKE_DIR": str(folder)}
        for script in ("demo/generate_tickets.py --intents", "smoke/generate_rows.py"):
            name, *options = script.split()
            command = [sys.executable, str(ROOT / "recipes" / name), *options, "--out", str(folder)]
            subprocess.run(command, check=True)

    def run(self, verb: str, recipe: str, *overrides: str) -> str:
        command = [sys.executable, "-m", "cli", verb, f"recipes/smoke/{recipe}.yaml"]
        command += [f"store.root={self.folder / 'store'}", *overrides]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Smoke:
    return Smoke(tmp_path_factory.mktemp("smoke"), prefect_server)


@pytest.fixture(scope="module")
def teacher(smoke: Smoke) -> str:
    """The folder of the teacher that recipes/smoke/teacher.yaml trains."""
    folder = str(smoke.folder / "teacher")
    assert f"Teacher: {folder} (" in smoke.run("train-teacher", "teacher", f"output={folder}")
    return folder


@pytest.fixture(scope="module")
def endpoint(smoke: Smoke) -> Iterator[str]:
    """The address of a teacher that knows the right answers of the twins."""
    known: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMOKE_DIR", str(smoke.folder))
        for name in TWINS:
            known |= read_references(load_recipe(ROOT / f"recipes/smoke/{name}.yaml", [], Recipe))
    with serve(known) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_the_demo_in_small_ends_with_a_verdict(smoke: Smoke) -> None:
    assert "romoted to support-triage/champion" in smoke.run("run", "demo")


def test_exported_files_are_rows_of_the_table(smoke: Smoke) -> None:
    formats = "[{kind: onnx, precision: fp32}, {kind: gguf, precision: q8_0}]"
    # The one head is of a size that onnxruntime's attention takes.
    printed = smoke.run("run", "demo", f"export.formats={formats}", "student.num_heads=1")
    lines = {line.split("  ")[0].strip(): line for line in printed.splitlines()[::-1]}
    student, onnx, gguf = (lines[name] for name in ("student", "onnx fp32", "gguf q8_0"))
    figure = re.compile(r"\d+\.\d % \[")
    assert figure.findall(onnx)[0] == figure.findall(student)[0]  # the same answers
    assert figure.findall(gguf)


def test_banking77_in_small_learns_from_the_teacher_of_another_recipe(
    smoke: Smoke, teacher: str
) -> None:
    overrides = (f"teacher.model={teacher}", f"student.tokenizer={teacher}")
    assert "romoted to intents/champion" in smoke.run("run", "banking77", *overrides)


@pytest.mark.parametrize("recipe", TWINS)
def test_a_task_type_in_small_is_judged_by_its_primary_metric(
    smoke: Smoke, teacher: str, endpoint: str, recipe: str
) -> None:
    task, metric = TWINS[recipe]
    overrides = (f"student.model={teacher}", f"teacher.base_url={endpoint}")
    printed = smoke.run("run", recipe, *overrides)
    assert f"romoted to {task}/champion" in printed
    # Backwards: of lines that begin alike, those of the first table count.
    lines = {line.split("  ")[0].strip(): line for line in printed.splitlines()[::-1]}
    assert f" {metric} " in lines["model"]
    assert re.search(r" 100\.0 % \[\d+\.\d, 100\.0\] ", lines["teacher"])
    assert {"baseline", "student", "in-context student"} <= lines.keys()


def test_every_recipe_of_the_folder_is_run_here() -> None:
    names = {path.stem for path in ROOT.glob("recipes/smoke/*.yaml")}
    assert names == {"demo", "banking77", "teacher", *TWINS}
