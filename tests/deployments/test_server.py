"""The real thing on free ports: a server, two workers, and a parent that is killed."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.fixtures_models import make_tiny_model
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
POOLS = ("cpu-pool", "gpu-pool")
# Between the news of the first and the last there is time to stop it, also for a late test.
TRAINING_STEPS = 1500
PATIENCE_S = 600

pytestmark = pytest.mark.slow


@dataclass
class LocalServer:
    """What `make up` starts, in a folder and on a port of its own."""

    folder: Path
    port: int

    @property
    def env(self) -> dict[str, str]:
        ours = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        return ours | {
            "DISTILLERY_STATE": str(self.folder / "state"),
            "DISTILLERY_PORT": str(self.port),
            # With as many threads as cores, a busy neighbour makes tiny models ten times slower.
            "OMP_NUM_THREADS": "1",
        }

    def local(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deployments.local", command],
            cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip

    def prefect(self, *arguments: str) -> subprocess.Popen[str]:
        own = {
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_HOME": str(self.folder / "home"),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=ROOT, env=self.env | own, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return what the API answers; it is asked again while SQLite is locked."""
        url = f"http://127.0.0.1:{self.port}/api/{path}"
        deadline = time.monotonic() + PATIENCE_S
        answer = httpx.request(method, url, json=body, timeout=PATIENCE_S)
        while answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.5)
            answer = httpx.request(method, url, json=body, timeout=PATIENCE_S)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """Return the runs of a deployment, oldest first."""
        body = {"deployments": {"name": {"any_": [deployment]}}}
        found: list[dict[str, Any]] = self.ask("POST", "flow_runs/filter", body)
        return sorted(found, key=lambda run: str(run["created"]))

    def set_schedule(self, *, active: bool) -> None:
        deployment = self.ask("GET", "deployments/name/distill-student/nightly")
        [schedule] = deployment["schedules"]
        path = f"deployments/{deployment['id']}/schedules/{schedule['id']}"
        self.ask("PATCH", path, {"active": active})

    def is_scheduled(self) -> bool:
        [schedule] = self.ask("GET", "deployments/name/distill-student/nightly")["schedules"]
        assert schedule["schedule"]["timezone"] == "Europe/Berlin"
        return bool(schedule["active"])

    def bear_silence(self) -> None:
        """Have no run marked as crashed because it is suspended and sends no heartbeat."""
        automations = self.ask("POST", "automations/filter", {})
        assert automations
        for automation in automations:
            self.ask("PATCH", f"automations/{automation['id']}", {"enabled": False})

    def pids(self) -> dict[str, int]:
        records = (self.folder / "state" / "local").glob("*.json")
        return {path.stem: json.loads(path.read_text())["pid"] for path in records}

    def processes_of(self, pool: str) -> list[psutil.Process]:
        """Return the flow runs that the worker of ``pool`` has started."""
        return list(psutil.Process(self.pids()[pool]).children())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    server = LocalServer(tmp_path_factory.mktemp("server"), free_port())
    try:
        started = server.local("up")
        assert started.returncode == 0, started.stdout + started.stderr
        yield server
    finally:
        family: list[psutil.Process] = []
        for pid in server.pids().values():
            with contextlib.suppress(psutil.NoSuchProcess):
                family += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        server.local("down")
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture(scope="module")
def parameters(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo's sections, made tiny: a random teacher, a random student, few rows."""
    folder = tmp_path_factory.mktemp("models")
    teacher = make_tiny_model(folder / "teacher", num_layers=2)
    student = make_tiny_model(folder / "student", num_layers=1, seed=1)

    def rows(split: str, num_rows: int, **columns: str) -> dict[str, Any]:
        path = f"recipes/demo/{split}.jsonl"
        return {"kind": "file", "path": path, "max_rows": num_rows, "columns": columns}

    return json.dumps(
        {
            "task": {"name": "smoke", "type": "classification"},
            "data": {
                "train": rows("train", 60),
                "validation": rows("validation", 20),
                "test": rows("test", 20, reference="answer"),
            },
            "teacher": {
                "kind": "transformers",
                "model": str(teacher),
                "dtype": "float32",
                "max_new_tokens": 8,
            },
            "student": {"kind": "pretrained", "model": str(student), "dtype": "float32"},
            "filters": {"responses": [], "min_keep_fraction": 0},
            "training": {
                "min_steps": TRAINING_STEPS,
                "batch_size": 8,
                "patience": None,
            },
            "evaluation": {
                "max_new_tokens": 8,
                "latency_rows": 5,
                "latency_warmup": 1,
                "throughput_rows": 8,
                "concurrencies": [1, 8],
                "bootstrap_samples": 100,
            },
            "store": {"root": str(folder / "store")},
        }
    )


def wait_until(condition: Callable[[], Any], what: str, *, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.3)


def test_up_again_changes_nothing(server: LocalServer) -> None:
    assert not server.is_scheduled()
    pids = server.pids()
    server.set_schedule(active=True)
    assert server.local("up").returncode == 0
    assert server.pids() == pids
    assert server.is_scheduled()
    server.set_schedule(active=False)


def test_wrong_parameter_is_refused_before_a_run_exists(server: LocalServer) -> None:
    asked = server.prefect(
        "deployment", "run", "distill-student/demo", "--param", 'training={"epochs": "many"}'
    )
    output, _ = asked.communicate(timeout=PATIENCE_S)
    assert asked.returncode == 1
    assert "'many' is not of type 'number'" in output
    assert server.runs("demo") == []


def test_killed_parent_finds_its_child_still_training(server: LocalServer, parameters: str) -> None:
    command = ("deployment", "run", "distill-student/demo", "--watch", "--params", parameters)
    watching = server.prefect(*command)

    def is_training() -> bool:
        found = server.ask("POST", "artifacts/filter", progress)
        return any(float(artifact["data"]) > 0 for artifact in found)

    progress = {"artifacts": {"key": {"any_": ["progress-train-student"]}}}
    server.bear_silence()
    wait_until(is_training, "the child has trained some steps")
    [trainer] = server.processes_of("gpu-pool")
    # The training would be over before the next parent has started.
    trainer.suspend()
    [child] = server.runs("train-student")
    assert (child["work_pool_name"], child["state_name"]) == ("gpu-pool", "Running")
    [parent] = server.processes_of("cpu-pool")
    parent.kill()
    output, _ = watching.communicate(timeout=PATIENCE_S)
    assert watching.returncode == 1, output

    again = server.prefect(*command)
    waiting = {"task_runs": {"name": {"any_": ["run train-student"]}}}
    wait_until(
        lambda: len(server.ask("POST", "task_runs/filter", waiting)) == 2,
        "the next parent waits for the child",
    )
    trainer.resume()
    output, _ = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, output
    first, second = server.runs("demo")
    assert (first["state_name"], second["state_name"]) == ("Crashed", "Completed")
    [trained] = server.runs("train-student")
    assert (trained["id"], trained["state_name"]) == (child["id"], "Completed")

    table = json.loads(server.ask("GET", "artifacts/comparison-smoke/latest")["data"])
    assert [row["model"] for row in table] == ["teacher", "baseline", "student"]


def test_trials_of_a_sweep_run_on_the_gpu_pool(server: LocalServer, parameters: str) -> None:
    sections = json.loads(parameters)
    columns = {"reference": "answer"}
    path = "recipes/demo/selection.jsonl"
    sections["data"]["selection"] = {
        "kind": "file", "path": path, "max_rows": 20, "columns": columns
    }  # fmt: skip
    # The second choice leaves every row out.
    lengths = {"kind": "choice", "field": "training.max_length", "choices": [256, 16]}
    rates = {"kind": "number", "field": "training.learning_rate", "low": 1e-4, "high": 1e-3}
    sections["sweep"] = {
        "parameters": [lengths, rates], "num_trials": 5, "parallel_trials": 2, "pruning": False,
    }  # fmt: skip
    sections["training"] = {"epochs": 1, "batch_size": 8, "evaluations": 2}
    sections["execution"] = {"mode": "deployment"}
    command = ("deployment", "run", "sweep-students/sweep", "--watch")
    asked = server.prefect(*command, "--params", json.dumps(sections))
    output, _ = asked.communicate(timeout=PATIENCE_S)
    assert asked.returncode == 0, output

    table = json.loads(server.ask("GET", "artifacts/sweep-smoke/latest")["data"])
    by_state = {
        state: {row["trial"] for row in table if row["max_length"] == length}
        for state, length in (("Completed", "256"), ("Failed", "16"))
    }
    assert {row["trial"] for row in table if row["state"] == "failed"} == by_state["Failed"]
    trials = server.runs("try-student")
    assert {run["work_pool_name"] for run in trials} == {"gpu-pool"}
    ended = {run["name"].removeprefix("trial "): run["state_name"] for run in trials}
    assert ended == {number: state for state, of in by_state.items() for number in of}
    reasons = str(server.ask("GET", "artifacts/sweep-smoke-text/latest")["data"])
    assert not by_state["Failed"] or "training.max_length" in reasons


def test_down_stops_everything_and_again_is_harmless(server: LocalServer) -> None:
    processes = [psutil.Process(pid) for pid in server.pids().values()]
    assert len(processes) == 3
    first, second = server.local("down"), server.local("down")
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout == "stopped cpu-pool, gpu-pool, server\n"
    assert second.stdout == "nothing is running\n"
    assert not any(process.is_running() for process in processes)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)) != 0
