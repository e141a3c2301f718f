"""Stand for a training in several processes: each does what TARGET names."""

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from distillery.training.job import OnProgress, TrainingJob, TrainingOutcome
from distillery.training.launch.worker import train, work
from schemas.errors import StoreError

RANK = int(os.environ.get("RANK", "0"))
logger = logging.getLogger("distillery.training")


def succeed(job: TrainingJob, scratch: Path, on_progress: OnProgress | None) -> TrainingOutcome:
    logger.warning("2 rows are too long")
    logger.debug("a detail")
    if on_progress:
        on_progress(1, 2, {"loss": float("inf")})
        on_progress(2, 2, {"loss": 0.5})
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "ACCELERATE_TORCH_DEVICE")
    return _outcome(
        environment={name: os.environ[name] for name in names},
        told_progress=on_progress is not None,
        job=job.model_dump(mode="json"),
    )


def store_error(job: TrainingJob, scratch: Path, on_progress: OnProgress | None) -> TrainingOutcome:
    if RANK == 1:
        raise StoreError("the store is full. Make room.")
    return wait(job, scratch, on_progress)


def surprise(job: TrainingJob, scratch: Path, on_progress: OnProgress | None) -> TrainingOutcome:
    if RANK == 1:
        raise KeyError("weights")
    return wait(job, scratch, on_progress)


def die(job: TrainingJob, scratch: Path, on_progress: OnProgress | None) -> TrainingOutcome:
    if RANK == 1:
        print("allocating 900 GiB", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return wait(job, scratch, on_progress)


def wait(job: TrainingJob, scratch: Path, on_progress: OnProgress | None) -> TrainingOutcome:
    """Last for ever."""
    (scratch / f"waiting-{RANK}").touch()
    step = 0
    while True:
        step += 1
        if on_progress:
            on_progress(step, 1_000_000, {})
        time.sleep(0.1)


def wait_deaf(job: TrainingJob, scratch: Path, on_progress: OnProgress | None) -> TrainingOutcome:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return wait(job, scratch, on_progress)


def train_to_step_4(
    job: TrainingJob, scratch: Path, on_progress: OnProgress | None
) -> TrainingOutcome:
    """Train as workers do, but stand still once step 4 is told: for ever, or until killed."""

    def tell_and_wait(step: int, num_steps: int, figures: dict[str, float]) -> None:
        assert on_progress is not None
        on_progress(step, num_steps, figures)
        while step >= 4:
            time.sleep(0.1)

    return train(job, scratch, on_progress and tell_and_wait)


def train_and_fail(
    job: TrainingJob, scratch: Path, on_progress: OnProgress | None
) -> TrainingOutcome:
    """Train as workers do, to the end, but never tell what came of it."""
    train(job, scratch, on_progress)
    raise StoreError("the store is full. Make room.")


def _outcome(**facts: Any) -> TrainingOutcome:
    return TrainingOutcome(num_parameters=7, counts={"steps": 2}, timings_s={}, facts=facts)


if __name__ == "__main__":
    work(globals()[os.environ["TARGET"]])
