"""kill -9 in each stage, then the same command: what was finished is used again."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.execution import StageName
from tests.fixtures_recipe import make_recipe, scripted_teacher, write_recipe
from tests.stub_endpoint import StubEndpoint

pytestmark = pytest.mark.slow

ANSWER, NUM_CONTESTANTS = StageName.ANSWER_TEST_PROMPTS, 3
STAGES = [
    StageName.LOAD_PROMPTS,
    StageName.VALIDATE_PROMPTS,
    StageName.FILTER_PROMPTS,
    StageName.GENERATE_RESPONSES,
    StageName.FILTER_RESPONSES,
    StageName.RELEASE_DATASET,
    StageName.TRAIN_BASELINE,
    StageName.TRAIN_STUDENT,
    ANSWER,
    StageName.MEASURE_PERFORMANCE,
    StageName.COMPARE_MODELS,
]

# Dies at the worst moment: all of a stage is written, its manifest is not.
KILLED_BEFORE_SEAL = """
import os, signal, sys
import flows
from distillery.storage.stage import Attempt
seal = Attempt.seal
def die(attempt):
    if attempt.stage.name == {stage!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    return seal(attempt)
Attempt.seal = die
sys.argv = ["distillery", "run", {recipe!r}]
from cli.app import main
main()
"""


def test_a_run_killed_in_any_stage_goes_on_from_there(tmp_path: Path, prefect_server: str) -> None:
    environment = {"PREFECT_API_URL": prefect_server, "HF_HUB_OFFLINE": "1"}
    with StubEndpoint(respond=scripted_teacher) as teacher:
        recipe = write_recipe(tmp_path, make_recipe(tmp_path, teacher.base_url))

        def run(code: list[str]) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, *code],
                env=os.environ | environment,
                capture_output=True,
                text=True,
                timeout=600,
            )

        asked_after_generation = None
        for position, stage in enumerate(STAGES):
            script = KILLED_BEFORE_SEAL.format(stage=str(stage), recipe=str(recipe))
            done = run(["-c", script])
            assert done.returncode == -signal.SIGKILL, done.stderr
            reused = re.findall(r"(\w+)(?: \(\w+\))?: reused", done.stderr)
            # The stage before died unsealed the last time, and was done again in this run.
            sealed = STAGES[: max(0, position - 1)]
            assert reused == [
                str(one) for one in sealed for _ in range(NUM_CONTESTANTS if one is ANSWER else 1)
            ]
            if stage is StageName.GENERATE_RESPONSES:
                asked_after_generation = teacher.num_requests
            elif position > STAGES.index(StageName.GENERATE_RESPONSES) and position < STAGES.index(
                ANSWER
            ):
                assert teacher.num_requests == asked_after_generation

        done = run(["-m", "cli", "run", str(recipe)])
        assert done.returncode == 0, done.stderr
        assert "teacher" in done.stdout and "student" in done.stdout
        # The measurement names everybody's answers, so they are not looked up.
        assert re.findall(r"(\w+)(?: \(\w+\))?: reused", done.stderr) == [
            str(stage) for stage in STAGES[:-1] if stage is not ANSWER
        ]
