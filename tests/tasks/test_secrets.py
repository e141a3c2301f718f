"""A teacher's key may be a Prefect secret in whatever process its stage runs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import importlib, sys
from distillery.teacher.http import keys
importlib.import_module(sys.argv[1])
print(keys._read_secret.__module__)
"""


def test_the_flow_that_evaluates_can_read_secrets_in_a_process_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "flows.evaluate_models"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "tasks.secrets\n", done.stderr
