"""Training in several processes of this machine, which end when this one does."""

import contextlib
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from distillery.training.job import OnProgress, TrainingJob, TrainingOutcome
from distillery.training.launch.failures import failure
from distillery.training.launch.messages import Inbox, Message
from schemas.errors import TrainingError
from schemas.training import TrainingSpec

_WORKER = "distillery.training.launch.worker"
_POLL_S = 0.2
# A little more than the agent leaves its processes.
_GRACE_S = 5.0


def default_num_processes(training: TrainingSpec) -> int:
    """Return in how many processes ``training`` runs: one per GPU unless it says otherwise.

    Raises:
        TrainingError: There are fewer GPUs than that, or a batch cannot be shared evenly.
    """
    num_gpus = _num_gpus(training)
    if training.device == "cuda" and not num_gpus:
        return 1  # which refuses to train without a GPU
    number = training.num_processes or max(1, num_gpus)
    if 0 < num_gpus < number:
        raise TrainingError(
            f"training.num_processes={number} but this machine has {num_gpus} usable GPUs, and "
            f"each process needs one. Set training.num_processes to at most {num_gpus}, or "
            "training.device to 'cpu'."
        )
    if training.batch_size % number:
        fits = max(n for n in range(1, number) if training.batch_size % n == 0)
        raise TrainingError(
            f"training.batch_size={training.batch_size} cannot be shared evenly among {number} "
            f"training processes. Set it to a multiple of {number}, or training.num_processes to "
            f"{fits}."
        )
    return number


def _num_gpus(training: TrainingSpec) -> int:
    if training.device == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def train_in_processes(
    job: TrainingJob, scratch: Path, num_processes: int, on_progress: OnProgress | None
) -> TrainingOutcome:
    """Return what comes of ``job``, trained in ``num_processes`` processes.

    Whatever ends this function, also a signal or the death of this process, ends them too.

    Args:
        job: What to train. Threads of a CPU are shared among the processes.
        scratch: A folder on this machine; the model is in its `model/` afterwards.
        num_processes: How many; on GPUs at most as many as there are.
        on_progress: Told about every logged step.

    Raises:
        DistilleryError: A process raised it.
        TrainingError: A process failed otherwise; its rank, its exit code or signal and the last
            lines of its output are told.
    """
    environment = {}
    if not _num_gpus(job.training):
        job = _for_cpu(job, num_processes)
        environment = {
            "OMP_NUM_THREADS": str(job.execution.cpu_threads),
            # Accelerate's own name for it, cpu:1, is one that torch.load does not know.
            "ACCELERATE_TORCH_DEVICE": "cpu",
        }
    (scratch / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
    outcome = _launch(_WORKER, scratch, num_processes, on_progress, environment)
    return TrainingOutcome.model_validate(outcome)


def _for_cpu(job: TrainingJob, num_processes: int) -> TrainingJob:
    """Return the job for one of several processes on the CPU."""
    import torch

    num_threads = job.execution.cpu_threads or torch.get_num_threads()
    share = {"cpu_threads": max(1, num_threads // num_processes)}
    return job.model_copy(
        update={
            "training": job.training.model_copy(update={"device": "cpu"}),
            "execution": job.execution.model_copy(update=share),
        }
    )


def _launch(
    module: str,
    scratch: Path,
    num_processes: int,
    on_progress: OnProgress | None,
    environment: dict[str, str],
) -> Any:
    """Return the outcome that ``module`` sends from the first of its processes."""
    listener = _Listener(scratch, num_processes, on_progress)
    arguments = (str(os.getpid()), module, str(scratch), str(num_processes))
    with (scratch / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            [sys.executable, "-P", "-m", "distillery.training.launch.agent", *arguments],
            env=os.environ | _environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C in a terminal is for this process, which then stops the agent.
            start_new_session=True,
        )
    try:
        while agent.poll() is None:
            time.sleep(_POLL_S)
            listener.listen()
    finally:
        _stop(agent)
    listener.listen()
    if agent.returncode:
        raise failure(scratch, num_processes, listener.errors, agent.returncode)
    return listener.outcome


def _environment() -> dict[str, str]:
    """Return what the processes need to import what this one does, and to talk unheard."""
    loopback = next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(address.address == "127.0.0.1" for address in addresses)
    )
    return {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
    }


def _stop(agent: subprocess.Popen[bytes]) -> None:
    """End the agent and its processes; return when they are gone."""
    if agent.poll() is not None:
        return
    family = psutil.Process(agent.pid).children(recursive=True)
    agent.terminate()
    try:
        agent.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()
    for process in psutil.wait_procs(family, timeout=0)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=_GRACE_S)


class _Listener:
    """Passes on what the processes tell, and keeps how they ended."""

    def __init__(self, folder: Path, num_processes: int, on_progress: OnProgress | None) -> None:
        self.outcome: Any = None
        self.errors: dict[int, Message] = {}
        self._inbox = Inbox(folder, num_processes)
        self._on_progress = on_progress
        self._logged: dict[tuple[str, str], int] = {}

    def listen(self) -> None:
        """Treat all messages that have come since."""
        for rank, message in self._inbox.new():
            match message["kind"]:
                case "progress" if self._on_progress:
                    self._on_progress(
                        message["step"], message["num_steps"], dict(message["figures"])
                    )
                case "log":
                    self._log(rank, message)
                case "error":
                    self.errors[rank] = message
                case "outcome" if rank == 0:
                    self.outcome = message["outcome"]

    def _log(self, rank: int, message: Message) -> None:
        """Log what a process logged, once, if several say the same."""
        name, text = message["name"], message["text"]
        if self._logged.setdefault((name, text), rank) == rank:
            logging.getLogger(name).log(message["level"], "%s", text)
