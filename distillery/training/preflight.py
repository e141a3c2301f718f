"""Before training: does it fit, are packed rows kept apart, do two real steps work."""

import logging
import time
from typing import Any

import torch
from transformers import TrainingArguments

from distillery.local_model import LocalModel
from distillery.training.losses import default_chunk_tokens
from distillery.training.memory import TeacherSize, available_memory, estimate_memory, peak_memory
from schemas.errors import TrainingError
from schemas.training import TrainingSpec

logger = logging.getLogger(__name__)

_PACKED_TOKENS = 64
_MOST_DIFFERENCE = 1e-3


def check_device(training: TrainingSpec) -> None:
    """Raise when a GPU is asked for where there is none.

    Raises:
        TrainingError: What to do instead.
    """
    if training.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "training.device is 'cuda' but this machine has no usable GPU. Set training.device to "
            "'auto', or run the stage on a gpu-pool worker (execution.mode=deployment)."
        )


def check_memory(
    model: Any,
    splits: dict[str, Any],
    training: TrainingSpec,
    vocab_size: int,
    teacher: LocalModel | None,
    *,
    arguments: TrainingArguments,
) -> dict[str, Any]:
    """Return what training will take, bytes by part, for the manifest.

    Raises:
        TrainingError: More than the device has; it says what to change.
    """
    parameters = list(model.parameters())
    estimate = estimate_memory(
        model.config,
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        training,
        max_length=max(max(list(rows["length"]), default=0) for rows in splits.values()),
        vocab_size=vocab_size,
        teacher=TeacherSize.of(teacher.model) if teacher else None,
        num_processes=arguments.world_size,
        chunk_tokens=default_chunk_tokens(vocab_size, arguments.device),
    )
    logger.info("training takes about %s", estimate.sentence)
    estimate.check(available_memory(arguments.device), str(arguments.device))
    return {"memory_estimate_bytes": estimate.parts | {"peak": estimate.total}}


def check_packing(model: Any, rows: Any) -> None:
    """Return when a row in one sequence with others gives what it gives alone.

    Raises:
        TrainingError: It sees its neighbour: the model takes no heed of positions that start again.
    """
    device = next(model.parameters()).device
    lengths = list(rows["length"])
    shortest = sorted(range(len(rows)), key=lengths.__getitem__)[:2]
    ids = [torch.tensor(rows[at]["input_ids"][:_PACKED_TOKENS], device=device) for at in shortest]
    if len(ids) < 2:
        return
    positions_1T = torch.cat([torch.arange(len(row), device=device) for row in ids])[None]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        alone = [model(input_ids=row[None], use_cache=False).logits[0] for row in ids]
        packed = model(
            input_ids=torch.cat(ids)[None], position_ids=positions_1T, use_cache=False
        ).logits[0]
    model.train(was_training)
    difference = float((torch.cat(alone) - packed).abs().max())
    scale = float(packed.abs().max())
    if difference > _MOST_DIFFERENCE * max(1.0, scale):
        raise TrainingError(
            f"this model does not keep rows apart that stand in one sequence: its states differ by "
            f"{difference:.3g} from those of each row alone. It would learn from neighbours that "
            "have nothing to do with a row. Set training.batching to padded."
        )


def longest_rows(rows: Any, num_rows: int) -> Any:
    """Return the rows that take the most memory."""
    lengths = list(rows["length"])
    return rows.select(sorted(range(len(rows)), key=lambda at: -lengths[at])[:num_rows])


def run_trial(trainer: Any) -> dict[str, Any]:
    """Return seconds per step and peak memory of a trainer's few steps, for the manifest.

    It does all that the training to come does, but at a learning rate of 0: weights stay as they
    are, to the bit.

    Raises:
        TrainingError: Memory runs out, or a figure is not finite.
    """
    arguments = trainer.args
    start = time.perf_counter()
    try:
        with peak_memory(arguments.device) as peak:
            trainer.train()
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"memory of {arguments.device} ran out in a trial step with the longest rows "
            f"({max(trainer.train_dataset['length'])} tokens, "
            f"{arguments.per_device_train_batch_size} a batch). Set "
            "training.gradient_checkpointing to true, or lower training.micro_batch_size."
        ) from error
    step_s = (time.perf_counter() - start) / arguments.max_steps
    return {"trial_step_s": round(step_s, 4), "trial_peak_bytes": peak.bytes}
