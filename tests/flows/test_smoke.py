"""Every recipe of recipes/smoke runs from end to end, as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


class Smoke:
    """Runs the recipes on tickets in one folder, in which they leave what they make."""

    def __init__(self, folder: Path, api: str) -> None:
        self.folder = folder
        self._environment = os.environ | {"PREFECT_API_URL": api, "SMOKE_DIR": str(folder)}
        script = str(ROOT / "recipes" / "demo" / "generate_tickets.py")
        subprocess.run([sys.executable, script, "--intents", "--out", str(folder)], check=True)

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


def test_the_demo_in_small_ends_with_a_verdict(smoke: Smoke) -> None:
    assert "romoted to support-triage/champion" in smoke.run("run", "demo")


def test_classification_in_small_learns_from_the_teacher_of_another_recipe(
    smoke: Smoke, teacher: str
) -> None:
    overrides = (f"teacher.model={teacher}", f"student.tokenizer={teacher}")
    assert "romoted to intents/champion" in smoke.run("run", "classification", *overrides)


def test_every_recipe_of_the_folder_is_run_here() -> None:
    names = {path.stem for path in ROOT.glob("recipes/smoke/*.yaml")}
    assert names == {"demo", "classification", "teacher"}
