"""What each of several training processes does; :mod:`.processes` runs this module."""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from distillery.training.job import OnProgress, TrainingJob, TrainingOutcome

Target = Callable[[TrainingJob, Path, OnProgress | None], TrainingOutcome]

# Longer than the first process needs to upload a checkpoint or to write the model while the others
# wait. One that dies is noticed at once.
_TIMEOUT = timedelta(hours=6)


def work(target: Target) -> None:
    """Run ``target`` on the job in the scratch folder, the first argument, and exit as it does.

    Its outcome, progress and log go to the file ``messages-<rank>.jsonl`` of that folder, a line of
    JSON each; its error goes to torch's error file. Only the first process reports progress.
    """
    _end_with_parent()
    from torch.distributed.elastic.multiprocessing.errors import record

    scratch, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    with (scratch / f"messages-{rank}.jsonl").open("ab", buffering=0) as messages:

        def send(kind: str, **content: Any) -> None:
            messages.write(json.dumps({"kind": kind, **content}).encode() + b"\n")

        def on_progress(step: int, num_steps: int, figures: dict[str, float]) -> None:
            send("progress", step=step, num_steps=num_steps, figures=figures)

        logging.getLogger().addHandler(_SendingHandler(send))
        logging.getLogger("distillery").setLevel(logging.INFO)
        job = TrainingJob.model_validate_json((scratch / "job.json").read_text(encoding="utf-8"))
        outcome = record(target)(job, scratch, on_progress if rank == 0 else None)
        assert outcome is not None  # which `record` makes of sys.exit(0)
        send("outcome", outcome=outcome.model_dump(mode="json"))


def _end_with_parent() -> None:
    """Have this process killed once its parent is gone, however that ended.

    A parent that is killed cannot stop its children, and processes that train for nobody would hold
    the GPUs and write the checkpoints of the next attempt. The parent keeps the other end of our
    standard input open and never writes to it, so it can be read only when there is no parent.
    """

    def watch() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


class _SendingHandler(logging.Handler):
    """Sends log records, tracebacks included, to the process that started this one."""

    def __init__(self, send: Callable[..., None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send("log", name=record.name, level=record.levelno, text=self.format(record))


def train(job: TrainingJob, scratch: Path, on_progress: OnProgress | None) -> TrainingOutcome:
    """Return the outcome of ``job``, trained together with the other processes."""
    from distillery.models.hardware import cpu_threads
    from distillery.training.loop import train as train_together

    with _joined(scratch, uses_gpu=job.training.device != "cpu"), cpu_threads(job.execution):
        return train_together(job, scratch, on_progress)


@contextlib.contextmanager
def _joined(scratch: Path, *, uses_gpu: bool) -> Iterator[None]:
    """Connect the processes inside, on no address but this machine's own.

    They meet in a file: torch's own meeting point is a port that is open to the whole network.
    """
    import torch
    import torch.distributed as dist

    if uses_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if uses_gpu else "gloo",
        init_method=(scratch / "meeting-point").as_uri(),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=_TIMEOUT,
    )
    yield
    # Not after an error: its report has to be written before the others lose the connection.
    dist.destroy_process_group()


if __name__ == "__main__":
    work(train)
