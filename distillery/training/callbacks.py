"""What happens beside a training: checkpoints go to the store, figures to whoever looks."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from transformers import TrainerCallback

from schemas.errors import TrainingError


def loss_names(parts: Sequence[str]) -> tuple[str, ...]:
    """Return the names of losses in the log: of training and validation, each with its parts."""
    return tuple(prefix + name for prefix in ("", "eval_") for name in ("loss", *parts))


class Reporting(TrainerCallback):  # type: ignore[misc]
    """Tells of progress, keeps the curve for TensorBoard, and uploads checkpoints."""

    def __init__(
        self,
        *,
        parts: Sequence[str],
        tensorboard: Path,
        upload: Callable[[Path], None],
        on_progress: Callable[[int, int, dict[str, float]], None] | None,
        tokens_per_step: float,
        wait_for_everyone: Callable[[], None],
    ) -> None:
        """Report to ``on_progress``, to event files below ``tensorboard``, and by ``upload``.

        Args:
            parts: Names of the parts of the loss.
            tensorboard: Folder of the event files.
            upload: Takes the folder of a checkpoint that is complete.
            on_progress: Gets step, steps and the newest figures.
            tokens_per_step: Mean number of tokens that a step reads, prompts included.
            wait_for_everyone: Returns once all processes are there.
        """
        self._figures = (*loss_names(parts), "grad_norm", "learning_rate")
        self._tensorboard, self._upload, self._on_progress = tensorboard, upload, on_progress
        self._tokens_per_step, self._wait = tokens_per_step, wait_for_everyone
        self._latest: dict[str, float] = {}
        self._last_log = (0, 0.0)
        self._writer: SummaryWriter | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin an event file; what an earlier attempt wrote after its last checkpoint is void."""
        if state.is_world_process_zero:
            step = state.global_step
            self._writer = SummaryWriter(
                str(self._tensorboard),
                purge_step=step + 1,
                # Two attempts within a second would otherwise write to one file.
                filename_suffix=f".from-{step}",
            )
        self._last_log = (state.global_step, time.monotonic())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log before every save, so that averages start over where a training resumes."""
        control.should_log = control.should_log or control.should_save

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Tell the newest figures.

        Raises:
            TrainingError: The validation loss is not finite.
        """
        figures = {name: float(logs[name]) for name in self._figures if name in (logs or {})}
        if not math.isfinite(figures.get("eval_loss", 0.0)):
            raise TrainingError(
                f"the validation loss at step {state.global_step} is not finite. The last good "
                "checkpoint stays in the store. Lower training.learning_rate (now "
                f"{args.learning_rate:g})."
            )
        self._latest |= figures | self._pace(state.global_step)
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, state.global_step)
        if self._on_progress and state.is_world_process_zero:
            self._on_progress(state.global_step, state.max_steps, dict(self._latest))

    def _pace(self, step: int) -> dict[str, float]:
        now, (last_step, last) = time.monotonic(), self._last_log
        if step <= last_step or now <= last:
            return {}
        self._last_log = (step, now)
        return {"tokens_per_s": (step - last_step) * self._tokens_per_step / (now - last)}

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Upload the checkpoint once every process has written its part."""
        self._wait()
        if state.is_world_process_zero:
            if self._writer is not None:
                self._writer.flush()
            self._upload(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Finish the event file."""
        if self._writer is not None:
            self._writer.close()
