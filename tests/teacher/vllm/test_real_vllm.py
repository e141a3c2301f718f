"""Real vLLM on this CPU serves the demo's teacher, with heads that its attention takes.

`make test-vllm` runs these; they make the environment with vLLM in a cache folder, 3 GB, or take
the interpreter that DISTILLERY_VLLM_PYTHON names.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.wide_heads import widen_heads
from deployments.vllm.environment import CannotInstall, cpu_environment, default_folder
from distillery.data.chat import Message
from distillery.objectives.soft.local import LocalScorer
from distillery.objectives.soft.served import ServedScorer
from distillery.objectives.soft.stored import ScoringRow
from distillery.teacher import Sampling, make_request, open_teacher, teacher_identity
from distillery.teacher.local import release_models
from distillery.teacher.protocol import Response, kept
from distillery.teacher.vllm.lease import Lease
from schemas.objectives import SoftTargets
from schemas.teacher import TeacherSpec, TransformersTeacher, VLLMTeacher
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

NUM_TICKETS = 48
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def python() -> str:
    if named := os.environ.get("DISTILLERY_VLLM_PYTHON"):
        return named
    try:
        return str(cpu_environment(default_folder()))
    except CannotInstall as error:
        pytest.skip(f"vLLM for CPUs cannot be installed here: {error}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo's teacher, with sampling defaults that would spoil its responses."""
    wide = widen_heads(Path("recipes/demo/teacher"), tmp_path_factory.mktemp("teacher"))
    defaults = json.loads((wide / "generation_config.json").read_text())
    defaults |= {"do_sample": True, "temperature": 1.5, "top_k": 3, "repetition_penalty": 3.0}
    (wide / "generation_config.json").write_text(json.dumps(defaults))
    return wide


@pytest.fixture(scope="module")
def served(python: str, folder: Path) -> Iterator[VLLMTeacher]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        teacher = VLLMTeacher(
            model=str(folder),
            python=python,
            dtype="float32",
            max_new_tokens=16,
            extra_args=("--enforce-eager",),  # compiling takes minutes on two cores
        )
        lease = Lease(teacher)  # so that all tests of this file find one server
        yield teacher
        lease.release()


@pytest.fixture(scope="module")
def tickets() -> list[Message]:
    lines = Path("recipes/demo/test.jsonl").read_text().splitlines()[:NUM_TICKETS]
    return [Message(role="user", content=json.loads(line)["text"]) for line in lines]


def responses(teacher: TeacherSpec, tickets: list[Message]) -> list[str]:
    found: dict[str, str] = {}

    def note(response: Response) -> object:
        assert response.state == "ok", response
        found[response.request.prompt_id] = response.text
        return kept()

    identity, sampling = teacher_identity(teacher), Sampling.of(teacher)
    backend = open_teacher(teacher)
    backend.answer(
        [
            make_request(identity, [ticket], sampling, prompt_id=str(n))
            for n, ticket in enumerate(tickets)
        ],
        note,  # type: ignore[arg-type]
    )
    backend.close()
    release_models()
    return [found[str(n)] for n in range(len(tickets))]


def test_greedy_responses_are_those_of_transformers(
    served: VLLMTeacher, tickets: list[Message]
) -> None:
    here = TransformersTeacher(model="recipes/demo/teacher", dtype="float32", max_new_tokens=16)
    expected = responses(here, tickets)
    assert responses(served, tickets) == expected
    assert len(set(expected)) > NUM_TICKETS / 2


def test_log_probabilities_are_those_of_transformers(
    served: VLLMTeacher, folder: Path, tickets: list[Message]
) -> None:
    answer = '{"intent":"refund","product":"monitor","priority":"high"}'
    rows = [ScoringRow(str(n), "train", [ticket], answer) for n, ticket in enumerate(tickets)]
    spec = SoftTargets(k=32)  # more than vLLM shows by default
    here = TransformersTeacher(model=str(folder), dtype="float32", device="cpu")
    for ours, theirs in zip(
        ServedScorer(served, spec).score(rows), LocalScorer(here, spec).score(rows), strict=True
    ):
        num_tokens = len(theirs.response_ids)
        assert list(ours.response_ids[:num_tokens]) == list(theirs.response_ids)
        np.testing.assert_allclose(
            ours.log_probs_NK[:num_tokens], theirs.log_probs_NK, atol=2e-3, rtol=1e-3
        )
        np.testing.assert_array_equal(ours.ids_NK[:num_tokens, 0], theirs.ids_NK[:, 0])


def test_kill_9_leaves_no_process_of_vllm(served: VLLMTeacher, tmp_path: Path) -> None:
    # Another length makes it another server than the one of the tests above.
    teacher = served.model_copy(update={"max_model_len": 64})
    (tmp_path / "teacher.json").write_text(teacher.model_dump_json())
    program = (
        "import sys, time; from pathlib import Path\n"
        "from distillery.teacher.vllm.lease import Lease; from schemas.teacher import VLLMTeacher\n"
        "lease = Lease(VLLMTeacher.model_validate_json(Path(sys.argv[1]).read_text()))\n"
        "Path(sys.argv[2]).touch(); time.sleep(600)"
    )
    ready = tmp_path / "ready"
    command = [sys.executable, "-c", program, str(tmp_path / "teacher.json"), str(ready)]
    owner = subprocess.Popen(command)
    try:
        wait_until(ready.exists, within_s=PATIENCE_S)
        below = psutil.Process(owner.pid).children(recursive=True)
        assert any("VLLM" in process.name() for process in below), below
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    gone, alive = psutil.wait_procs(below, timeout=60)
    assert not alive and len(gone) >= 3
