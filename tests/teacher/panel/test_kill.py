"""kill -9 of a panel at work: the next run pays for nothing twice, and chooses alike."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distillery.ledger import Ledger
from distillery.storage.fingerprint import sha256
from distillery.teacher import teacher_identity
from schemas.execution import StoreSpec
from schemas.task import TaskSpec
from tests.fixtures_generation import rows_of, run_all, train_prompts
from tests.fixtures_panel import DOUBTFUL, SETTLED, member, panel, says
from tests.stub_endpoint import STANDS_STILL, Reply, StubEndpoint
from tests.waiting import wait_until

TASK = TaskSpec.model_validate({"name": "questions", "type": "conversation"})
CASCADE = {"kind": "cascade", "min_log_probability": -0.1}
NUM_ROWS = 12

ANSWER = """
import sys
from schemas.execution import StoreSpec
from schemas.panel import PanelTeacher
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from tests.fixtures_generation import answer
prompts, panel, task, store = sys.argv[1:]
answer(
    DatasetRef.model_validate_json(prompts),
    PanelTeacher.model_validate_json(panel),
    StoreSpec.model_validate_json(store),
    task=TaskSpec.model_validate_json(task),
    chunk_rows=5,
)
"""


def respond_as_small() -> StubEndpoint:
    unsure = says(lambda asked: f"small {asked}", lambda a: DOUBTFUL if a > "q4" else SETTLED)
    return StubEndpoint(respond=unsure)


@pytest.mark.slow
def test_a_panel_killed_in_its_second_round_pays_for_nothing_twice(tmp_path: Path) -> None:
    store = StoreSpec(root=str(tmp_path / "store"))
    prompts = train_prompts(store, NUM_ROWS)
    big_says = says(lambda asked: f"big {asked}", lambda _: SETTLED)
    answered: list[str] = []

    def three_then_none(body: dict[str, object]) -> Reply:
        if len(answered) == 3:
            return STANDS_STILL
        answered.append("")
        return big_says(body)

    with respond_as_small() as small, StubEndpoint(respond=three_then_none) as big:
        teachers = panel(CASCADE, member("small", small), member("big", big))
        given = [each.model_dump_json() for each in (prompts, teachers, TASK, store)]
        child = subprocess.Popen([sys.executable, "-c", ANSWER, *given])
        big_id = sha256(teacher_identity(teachers.teachers[1].teacher))

        def three_are_kept() -> bool:
            if len(answered) < 3:
                return False
            with Ledger.open(store) as ledger:
                return any(s["num_rows"] == 3 for s in ledger.stats() if s["teacher_id"] == big_id)

        wait_until(three_are_kept)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        paid = small.num_requests

    with respond_as_small() as small, StubEndpoint(respond=big_says) as big:
        teachers = panel(CASCADE, member("small", small), member("big", big))
        made = run_all(prompts, teachers, store, task=TASK)
    from_small = [f"q{n}" for n in range(NUM_ROWS) if f"q{n}" <= "q4"]
    assert small.num_requests == NUM_ROWS - paid
    assert big.num_requests == NUM_ROWS - len(from_small) - 3
    rows = rows_of(made, store)
    assert [row["response"].split() for row in rows] == [
        ["small" if f"q{n}" in from_small else "big", f"q{n}"] for n in range(NUM_ROWS)
    ]
