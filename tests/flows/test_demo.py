"""The demo as the README shows it: real teacher, real training, and nothing the second time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_the_demo_distils_and_the_second_run_reuses_every_stage(tmp_path: Path) -> None:
    environment = os.environ | {"PREFECT_HOME": str(tmp_path / "prefect")}
    (tmp_path / "prefect").mkdir()
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "cli", "run", "recipes/demo.yaml"]
    command.append(f"store.root={tmp_path / 'store'}")

    def run() -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
        return done

    first = run()
    # The table must tell something: the baseline clearly below, the student close to the teacher.
    found = re.findall(r"^ *(teacher|baseline|student) .* ([\d.]+) % \[", first.stdout, re.M)
    accuracy = {name: float(percent) for name, percent in found}
    assert accuracy["teacher"] > 95
    assert accuracy["baseline"] < 0.8 * accuracy["teacher"]
    assert accuracy["student"] > 0.92 * accuracy["teacher"]
    assert "Promoted to support-triage/champion" in first.stdout

    second = run()
    assert len(re.findall(r": reused", second.stderr)) == 10
    table = re.compile(r"^ (?:teacher|baseline|student) .*$", re.M)
    assert table.findall(second.stdout) == table.findall(first.stdout)
