"""What each of several training processes does; run as a module by :mod:`.agent`."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

from distillery.training.job import OnProgress, TrainingJob, TrainingOutcome
from distillery.training.launch.lifeline import end_with_parent
from distillery.training.launch.messages import Outbox, OutboxHandler

Target = Callable[[TrainingJob, Path, OnProgress | None], TrainingOutcome]

# Longer than the first process needs to upload a checkpoint or to write the model, while the
# others wait. One that dies is noticed by the agent at once.
_TIMEOUT = timedelta(hours=6)


def main() -> None:
    """Take part in the training whose scratch folder is the first argument."""
    work(train)


def work(target: Target) -> None:
    """Run ``target`` on the job in the scratch folder; end as it does.

    Its outcome, progress and log, or its error, go to the process that started the training.

    Args:
        target: Gets the job, the scratch folder, and in the first process a function that takes
            progress.
    """
    end_with_parent(int(os.environ["DISTILLERY_AGENT_PID"]))
    scratch, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    outbox = Outbox(scratch, rank)
    logging.getLogger().addHandler(OutboxHandler(outbox))
    logging.getLogger("distillery").setLevel(logging.INFO)

    def on_progress(step: int, num_steps: int, figures: dict[str, float]) -> None:
        outbox.send("progress", step=step, num_steps=num_steps, figures=figures)

    try:
        job = TrainingJob.model_validate_json((scratch / "job.json").read_text(encoding="utf-8"))
        outcome = target(job, scratch, on_progress if rank == 0 else None)
    except Exception as error:
        outbox.send_error(error)
        raise
    outbox.send("outcome", outcome=outcome.model_dump(mode="json"))


def train(job: TrainingJob, scratch: Path, on_progress: OnProgress | None) -> TrainingOutcome:
    """Return what comes of ``job``, trained together with the other processes."""
    from distillery.models.students import cpu_threads
    from distillery.training.loop import train as train_together

    with joined(scratch, uses_gpu=job.training.device != "cpu"), cpu_threads(job.execution):
        return train_together(job, scratch, on_progress)


@contextlib.contextmanager
def joined(scratch: Path, *, uses_gpu: bool) -> Iterator[None]:
    """Let the processes reach each other inside, on no address but this machine's own.

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
    # Not after an error: it has to be told before the others lose the connection.
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
