"""Several training processes tell what they do, fail as one, and never outlive who started them."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from distillery.training.job import OnProgress, TrainingJob, TrainingOutcome
from distillery.training.launch import processes
from distillery.training.launch.processes import failure, train_in_processes
from distillery.training.preflight import default_num_processes
from schemas import errors
from schemas.errors import DistilleryError, StoreError, TrainingError, TrialPruned
from schemas.execution import ExecutionSpec, StageName
from schemas.training import TrainingSpec
from tests.deployments.test_server import LocalServer, server, wait_until
from tests.fixtures_training import (
    FAST,
    INLINE,
    SCRATCH,
    Bench,
    Killed,
    die_at,
    rows_to_learn,
    train_by,
)

__all__ = ["server"]

ROOT = Path(__file__).resolve().parents[3]
NUM_PROCESSES = 2


def _job(bench: Bench, **training: Any) -> TrainingJob:
    return TrainingJob(
        rows=bench.training_rows,
        prompts=bench.prompts,
        soft_targets=None,
        teacher=None,
        student=SCRATCH,
        training=FAST.model_copy(update=training),
        store=bench.spec,
        execution=INLINE,
        checkpoints_uri="train_student/0/checkpoints",
    )


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def launch(scratch: Path, target: str, on_progress: OnProgress | None = None) -> TrainingOutcome:
    """Run a target of `training_targets` in two processes."""
    with pytest.MonkeyPatch.context() as patch:
        train_by(target, patch)
        job = _job(Bench(scratch.parent / "store", rows_to_learn()))
        return train_in_processes(job, scratch, NUM_PROCESSES, on_progress)


def _family(scratch: Path) -> list[psutil.Process]:
    """Return the processes that work on ``scratch``."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(scratch) in (process.info["cmdline"] or [])
        and {"tests.training_targets", processes._WORKER} & set(process.info["cmdline"])
    ]


def _all_wait(scratch: Path) -> bool:
    return len(list(scratch.glob("waiting-*"))) == NUM_PROCESSES


def test_outcome_progress_and_log_come_as_from_this_process(
    scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[int, int, dict[str, float]]] = []
    with caplog.at_level(logging.INFO, "distillery"):
        outcome = launch(scratch, "succeed", lambda *progress: told.append(progress))
    assert told == [(1, 2, {"loss": float("inf")}), (2, 2, {"loss": 0.5})]
    assert (outcome.num_parameters, outcome.counts) == (7, {"steps": 2})
    assert outcome.facts["environment"] == {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_TORCH_DEVICE": "cpu",
    }
    job = TrainingJob.model_validate(outcome.facts["job"])
    assert job.execution.cpu_threads == 1
    assert job.rows.num_rows == len(rows_to_learn())
    # Both processes say it; it is one training that says it once.
    assert caplog.record_tuples == [("distillery.training", logging.WARNING, "2 rows are too long")]


@pytest.mark.slow
def test_an_error_of_ours_in_one_process_is_raised_here_and_ends_the_others(scratch: Path) -> None:
    with pytest.raises(StoreError, match=r"^the store is full\. Make room\.$") as raised:
        launch(scratch, "store_error")
    assert type(raised.value) is StoreError
    assert _family(scratch) == []


def test_a_trial_that_is_given_up_ends_all_processes(scratch: Path) -> None:
    def give_up(*_: object) -> None:
        raise TrialPruned("worse than others")

    with pytest.raises(TrialPruned, match="worse than others"):
        launch(scratch, "succeed", give_up)
    assert _family(scratch) == []


@pytest.mark.slow
def test_a_killed_process_is_named_with_its_signal_and_last_lines(scratch: Path) -> None:
    with pytest.raises(TrainingError) as raised:
        launch(scratch, "die")
    first, *tail = str(raised.value).splitlines()
    assert first.startswith("training process 1 (of 0 to 1) was ended by SIGKILL, as happens")
    assert tail == ["allocating 900 GiB"]
    assert _family(scratch) == []


@pytest.mark.slow
def test_any_other_exception_is_told_with_its_traceback(scratch: Path) -> None:
    with pytest.raises(TrainingError, match=r"process 1 .* raised KeyError: 'weights'\.") as raised:
        launch(scratch, "surprise")
    assert 'raise KeyError("weights")' in str(raised.value)


def test_a_process_that_cannot_start_is_named_with_what_it_printed(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_WORKER", "tests.training_nowhere")
    job = _job(Bench(scratch.parent / "store", rows_to_learn()))
    with pytest.raises(TrainingError, match=r"process \d \(of 0 to 1\) ended with exit code 1\."):
        train_in_processes(job, scratch, NUM_PROCESSES, None)


class Stopped(BaseException):
    """What Prefect raises in a flow that is cancelled is no Exception either."""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["wait", "wait_deaf"])
def test_an_exception_here_stops_all_processes(scratch: Path, target: str) -> None:
    def on_progress(step: int, *_: Any) -> None:
        if _all_wait(scratch):
            assert len(_family(scratch)) == NUM_PROCESSES
            raise Stopped

    with pytest.raises(Stopped):
        launch(scratch, target, on_progress)
    assert _family(scratch) == []


# Shells start what runs in the background with Ctrl-C ignored.
_PARENT = """
import signal, sys
from pathlib import Path
from tests.training.launch.test_processes import launch
signal.signal(signal.SIGINT, signal.default_int_handler)
launch(Path(sys.argv[1]), "wait_deaf")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_a_parent_that_is_stopped(scratch: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-c", _PARENT, str(scratch)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as parent:
        wait_until(lambda: _all_wait(scratch), "both processes train")
        family = _family(scratch)
        assert len(family) == NUM_PROCESSES
        parent.send_signal(how)
    assert psutil.wait_procs(family, timeout=60)[1] == []


def test_a_line_is_read_once_and_only_when_it_is_whole(tmp_path: Path) -> None:
    told: list[int] = []
    inbox = processes._Inbox(tmp_path, NUM_PROCESSES, lambda step, *_: told.append(step))
    inbox.read()
    line = '{"kind": "progress", "step": %d, "num_steps": 9, "figures": {}}\n'
    with (tmp_path / "messages-1.jsonl").open("a") as file:
        file.write(line % 1 + (line % 2)[:9])
        file.flush()
        inbox.read()
        assert told == [1]
        file.write((line % 2)[9:])
        file.flush()
        inbox.read()
        inbox.read()
    assert told == [1, 2]


def _write_error(folder: Path, rank: int, at_s: int, text: str) -> None:
    path = folder / f"error-{rank}.json"
    path.write_text(json.dumps({"message": {"message": text}}))
    os.utime(path, (at_s, at_s))


@pytest.mark.parametrize("kind", [DistilleryError, *DistilleryError.__subclasses__()])
def test_every_error_of_ours_comes_through_with_its_class(
    tmp_path: Path, kind: type[DistilleryError]
) -> None:
    if kind.__module__ != errors.__name__:
        pytest.skip("training raises those of schemas.errors only")
    _write_error(tmp_path, 0, 1, f"{kind.__name__}: row '7': it is full.\nMake room.")
    error = failure(tmp_path, [1, None])
    assert (type(error), str(error)) == (kind, "row '7': it is full.\nMake room.")


def test_the_first_of_several_errors_wins_and_half_a_report_is_none(tmp_path: Path) -> None:
    _write_error(tmp_path, 0, 3, "StoreError: late")
    _write_error(tmp_path, 2, 2, "StoreError: early")
    (tmp_path / "error-1.json").write_text('{"mess')
    assert str(failure(tmp_path, [1, 1, 1])) == "early"


@pytest.mark.parametrize(
    ("codes", "raised", "rank"),
    [
        ([1, -9], [0], 1),  # killed: the other complains of it
        ([1, 7], [0], 1),
        ([-6, 1, 1], [2, 1], 2),
        ([None, -6], [], 1),
    ],
)
def test_the_process_that_failed_by_itself_is_named(
    tmp_path: Path, codes: list[int | None], raised: list[int], rank: int
) -> None:
    for at, told in enumerate(raised):
        _write_error(tmp_path, told, at, "RuntimeError: connection closed by peer")
    for each in range(len(codes)):
        (tmp_path / f"output-{each}.log").touch()
    assert f"training process {rank} (of 0" in str(failure(tmp_path, codes))


@pytest.mark.parametrize(
    ("num_gpus", "settings", "expected"),
    [
        (0, {"device": "auto"}, 1),
        (4, {"device": "auto"}, 4),
        (4, {"device": "cpu"}, 1),
        (4, {"device": "cuda", "num_processes": 2}, 2),
        (0, {"device": "auto", "num_processes": 2}, 2),
        (4, {"device": "cpu", "num_processes": 8}, 8),
    ],
)
def test_there_is_a_process_for_each_gpu_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, settings: dict[str, Any], expected: int
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: num_gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)
    assert default_num_processes(TrainingSpec(batch_size=16, **settings)) == expected


@pytest.mark.parametrize(
    ("num_gpus", "settings", "message"),
    [
        (
            2,
            {"num_processes": 4},
            r"^training\.num_processes=4 but .* 2 usable GPUs.* at most 2, or",
        ),
        (
            0,
            {"num_processes": 4, "batch_size": 6},
            r"batch_size=6 .* among 4 .* of 4, or .* to 3\.$",
        ),
        (8, {"batch_size": 12}, r"batch_size=12 .* among 8 .* of 8, or .* to 6\.$"),
    ],
)
def test_processes_without_a_gpu_or_an_equal_share_are_refused(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: num_gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: num_gpus)
    with pytest.raises(TrainingError, match=message):
        default_num_processes(TrainingSpec(**settings))


@pytest.mark.slow
def test_training_together_opens_no_port_to_the_network_and_shares_the_threads(
    scratch: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening: set[str] = set()
    names: list[str] = []

    def on_progress(step: int, *_: Any) -> None:
        if step == 4:
            for process in _family(scratch):
                names.append(process.environ()["OMP_NUM_THREADS"])
                connections = process.net_connections()
                listening.update(c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN)
            raise Stopped

    train_by("train_to_step_4", monkeypatch)
    job = _job(bench, device="auto", num_processes=2)
    job = job.model_copy(update={"execution": ExecutionSpec(cpu_threads=4)})
    with pytest.raises(Stopped):
        train_in_processes(job, scratch, NUM_PROCESSES, on_progress)
    assert listening == {"127.0.0.1"}
    assert names == ["2"] * NUM_PROCESSES


def _losses(result: Any) -> list[float]:
    return [entry["loss"] for entry in result.manifest.facts["curve"] if "loss" in entry]


def _train_to_step_4(bench: Bench, training: TrainingSpec) -> None:
    """Start a training in several processes that dies after its fourth step."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        train_by("train_to_step_4", patch)
        bench.train(training=training, on_progress=die_at(4))


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_two_processes_learn_what_one_learns_and_go_on_after_a_kill(
    bench: Bench, tmp_path: Path, parallelism: Any
) -> None:
    training = FAST.model_copy(update={"parallelism": parallelism, "num_processes": 2})
    alone = Bench(tmp_path / "alone", bench.rows)
    expected = alone.train(training=training.model_copy(update={"num_processes": 1}))
    _train_to_step_4(bench, training)
    result = bench.train(training=training)
    assert result.manifest.fingerprint == expected.manifest.fingerprint
    assert result.manifest.facts["resumed_from_step"] == 3
    assert _losses(result) == pytest.approx(_losses(expected), rel=2e-5)
    best = "best_validation_loss"
    assert result.manifest.facts[best] == pytest.approx(expected.manifest.facts[best], rel=2e-5)
    for name, weight in bench.weights(result).items():
        assert weight.numpy() == pytest.approx(alone.weights(expected)[name].numpy(), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_processes_that_were_over_when_they_failed_train_no_more(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallelism: Any
) -> None:
    training = FAST.model_copy(update={"parallelism": parallelism, "num_processes": 2})
    alone = Bench(tmp_path / "alone", bench.rows)
    expected = alone.train(training=training.model_copy(update={"num_processes": 1}))
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="the store is full"):
        train_by("train_and_fail", patch)
        bench.train(training=training)
    told: list[int] = []
    result = bench.train(training=training, on_progress=lambda step, *_: told.append(step))
    assert result.manifest.facts["resumed_from_step"] == 15
    assert told == []
    for name, weight in bench.weights(result).items():
        assert weight.numpy() == pytest.approx(alone.weights(expected)[name].numpy(), abs=1e-3)


@pytest.mark.slow
def test_a_checkpoint_of_split_weights_is_not_taken_for_a_whole_one(bench: Bench) -> None:
    split = FAST.model_copy(update={"parallelism": "fsdp2", "num_processes": 2})
    _train_to_step_4(bench, split)
    with pytest.raises(TrainingError, match=r"made with training\.parallelism 'fsdp2', and 'ddp'"):
        bench.train(training=FAST)


@pytest.mark.slow
def test_cancelling_the_run_in_prefect_stops_all_training_processes(
    server: LocalServer, bench: Bench
) -> None:
    training = FAST.model_copy(
        update={"min_steps": 50_000, "num_processes": NUM_PROCESSES, "patience": None}
    )
    parameters = {
        "rows": bench.training_rows,
        "prompts": bench.prompts,
        "student": SCRATCH,
        "training": training,
        "store": bench.spec,
        "execution": INLINE,
    }
    dumped: dict[str, Any] = {
        name: value.model_dump(mode="json") for name, value in parameters.items()
    }
    dumped["name"] = StageName.TRAIN_STUDENT
    asked = server.prefect(
        "deployment", "run", "train-student/train-student", "--params", json.dumps(dumped)
    )
    output, _ = asked.communicate(timeout=300)
    assert asked.returncode == 0, output

    def is_training() -> bool:
        found = server.ask("POST", "artifacts/filter", progress)
        return any(float(artifact["data"]) > 0 for artifact in found)

    progress = {"artifacts": {"key": {"any_": ["progress-train-student"]}}}
    wait_until(is_training, "the processes have trained some steps")
    [run] = server.runs("train-student")
    [flow] = server.processes_of("gpu-pool")
    family = flow.children(recursive=True)
    training_together = [p for p in family if processes._WORKER in p.cmdline()]
    assert len(training_together) == NUM_PROCESSES
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    server.ask("POST", f"flow_runs/{run['id']}/set_state", state)
    assert psutil.wait_procs([flow, *family], timeout=300)[1] == []
    wait_until(lambda: server.runs("train-student")[0]["state_name"] == "Cancelled", "it is told")
