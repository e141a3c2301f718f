"""Training in several processes of this machine, which end when this one does.

Each is told by torchrun's environment variables which one it is, and writes torch's error file.
torch's own launchers are not used: they replace the signal handlers of the process that they run
in (Prefect cancels by them), open a port to the network, and outlive a parent that is killed.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

import schemas.errors
from distillery.training.job import OnProgress, TrainingJob, TrainingOutcome
from schemas.errors import DistilleryError, TrainingError

_WORKER = "distillery.training.launch.worker"
_POLL_S = 0.2
_TAIL_LINES = 20


def train_in_processes(
    job: TrainingJob, scratch: Path, num_processes: int, on_progress: OnProgress | None
) -> TrainingOutcome:
    """Return the outcome of ``job``, trained in ``num_processes`` processes.

    Whatever ends this function, including a signal or the death of this process, ends them too.

    Args:
        job: What to train. Threads of a CPU are shared among the processes.
        scratch: A folder on this machine; the model is in its `model/` afterwards.
        num_processes: How many; on GPUs at most as many as there are.
        on_progress: Called at every logged step.

    Raises:
        DistilleryError: A process raised it.
        TrainingError: A process failed otherwise; the message has its rank, its exit code or
            signal, and the last lines of its output.
    """
    import torch

    addresses = psutil.net_if_addrs().items()
    loopback = next(
        name for name, all_of in addresses if "127.0.0.1" in (a.address for a in all_of)
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
    }
    if job.training.device == "cpu" or not torch.cuda.device_count():
        num_threads = (job.execution.cpu_threads or torch.get_num_threads()) // num_processes
        execution = job.execution.model_copy(update={"cpu_threads": max(1, num_threads)})
        training = job.training.model_copy(update={"device": "cpu"})
        job = job.model_copy(update={"training": training, "execution": execution})
        environment["OMP_NUM_THREADS"] = str(execution.cpu_threads)
        # Accelerate's own name for it, cpu:1, is one that torch.load does not know.
        environment["ACCELERATE_TORCH_DEVICE"] = "cpu"
    (scratch / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
    inbox = _Inbox(scratch, num_processes, on_progress)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(num_processes):
            processes.append(_start(rank, scratch, environment))
        codes: list[int | None] = [None]
        while None in codes and not any(codes):
            time.sleep(_POLL_S)
            codes = [process.poll() for process in processes]
            inbox.read()
    finally:
        for process in processes:
            process.kill()
            process.communicate()  # until it is gone
    if any(codes):
        raise failure(scratch, codes)
    return TrainingOutcome.model_validate(inbox.outcome)


def _start(rank: int, scratch: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    own = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "TORCHELASTIC_ERROR_FILE": str(scratch / f"error-{rank}.json"),
    }
    with (scratch / f"output-{rank}.log").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-u", "-P", "-m", _WORKER, str(scratch)],
            env=environment | own,
            stdin=subprocess.PIPE,  # their lifeline: it closes when this process is gone
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C in a terminal is for this process, which then stops them.
            start_new_session=True,
        )


class _Inbox:
    """Passes on what the processes send, and keeps the outcome of the first."""

    def __init__(self, folder: Path, num_processes: int, on_progress: OnProgress | None) -> None:
        self.outcome: Any = None
        self._on_progress = on_progress
        self._paths = [folder / f"messages-{rank}.jsonl" for rank in range(num_processes)]
        self._num_read = [0] * num_processes
        self._logged: dict[tuple[str, str], int] = {}

    def read(self) -> None:
        """Treat what has come since; a line that is not whole yet waits."""
        for rank, path in enumerate(self._paths):
            if path.exists():
                with path.open("rb") as file:
                    file.seek(self._num_read[rank])
                    whole, newline, _ = file.read().rpartition(b"\n")
                self._num_read[rank] += len(whole + newline)
                for line in whole.splitlines():
                    self._treat(rank, json.loads(line))

    def _treat(self, rank: int, message: dict[str, Any]) -> None:
        match message["kind"]:
            case "progress" if self._on_progress:
                self._on_progress(message["step"], message["num_steps"], message["figures"])
            case "log":
                name, text = message["name"], message["text"]
                # Several processes may say the same; it is one training that says it once.
                if self._logged.setdefault((name, text), rank) == rank:
                    logging.getLogger(name).log(message["level"], "%s", text)
            case "outcome" if rank == 0:
                self.outcome = message["outcome"]


def failure(scratch: Path, codes: list[int | None]) -> DistilleryError:
    """Return the one error to raise for processes of which at least one has failed.

    An error of ours comes as it was raised; the first, if there are several. Otherwise the process
    is named that failed by itself, as the others fail because it is gone: one that was killed, or
    exited at once, leaves no error file, and the others complain of it. SIGABRT is a consequence
    too: NCCL ends its process so when it loses another.

    Args:
        scratch: Where the processes left their error files and output.
        codes: Exit codes by rank when the first failure was noticed; None: still running.
    """
    raised = _raised(scratch, len(codes))
    for text in raised.values():
        kind, _, message = text.partition(": ")
        error = getattr(schemas.errors, kind, None)
        if isinstance(error, type) and issubclass(error, DistilleryError):
            return error(message)
    failed = [rank for rank, code in enumerate(codes) if code]
    silent = [rank for rank in failed if codes[rank] != -signal.SIGABRT and rank not in raised]
    rank = [*silent, *raised, *failed][0]
    how = f"raised {raised[rank].rstrip('.')}" if rank in raised else _ended(codes[rank] or 0)
    output = (scratch / f"output-{rank}.log").read_text(encoding="utf-8", errors="replace")
    tail = output.strip().splitlines()[-_TAIL_LINES:]
    return TrainingError(
        f"training process {rank} (of 0 to {len(codes) - 1}) {how}. Correct the cause and run "
        "again: training resumes from its last checkpoint."
        + "\n".join([" The end of its output:", *tail] if tail else [])
    )


def _raised(scratch: Path, num_processes: int) -> dict[int, str]:
    """Return class and message of what processes raised, by rank, in the order of time."""
    files = {rank: scratch / f"error-{rank}.json" for rank in range(num_processes)}
    found = [(file.stat().st_mtime_ns, rank) for rank, file in files.items() if file.exists()]
    texts = {}
    for _, rank in sorted(found):
        with contextlib.suppress(ValueError):  # it was stopped while it wrote
            texts[rank] = json.loads(files[rank].read_bytes())["message"]["message"]
    return texts


def _ended(exit_code: int) -> str:
    """Return how a process ended, in words.

    >>> _ended(-11), _ended(3)
    ('was ended by SIGSEGV', 'ended with exit code 3')
    """
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    hint = ", as happens when a machine runs out of memory" if -exit_code == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"
