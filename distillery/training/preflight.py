"""Before training: does it fit, are packed rows kept apart, do two real steps work."""

import logging
import re
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainingArguments

from distillery.models.hardware import available_memory
from distillery.models.local import LocalModel
from distillery.objectives.base import Objective
from distillery.objectives.losses import default_chunk_tokens
from distillery.training.memory import MemoryEstimate, ModelShape, TeacherSize
from distillery.training.rows import lengths, whole_lengths
from schemas.errors import TrainingError
from schemas.training import TrainingSpec

logger = logging.getLogger(__name__)

_OF_TEACHERS = re.compile(r"(teacher|panel\d+)_length$")
_PACKED_TOKENS = 64
# Of the largest state: what a neighbour may change of a row.
_MOST_MOVED = 1e-6


def default_num_processes(training: TrainingSpec) -> int:
    """Return in how many processes ``training`` runs: one per GPU unless it says otherwise.

    Raises:
        TrainingError: There is no such device, fewer GPUs than processes, or a batch cannot be
            shared evenly.
    """
    on_gpu = training.device != "cpu" and torch.cuda.is_available()
    if training.device == "cuda" and not on_gpu:
        raise TrainingError(
            "training.device is 'cuda' but this machine has no usable GPU. Set training.device to "
            "'auto', or run the stage on a gpu-pool worker (execution.mode=deployment)."
        )
    if on_gpu and training.dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise TrainingError(
            "training.dtype is 'bfloat16', which this machine's GPU cannot compute. Set it to "
            "'float32'."
        )
    num_gpus = torch.cuda.device_count() if on_gpu else 0
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


def check_memory(
    model: Any,
    splits: dict[str, Any],
    training: TrainingSpec,
    vocab_size: int,
    teachers: Sequence[LocalModel],
    objective: Objective,
    *,
    arguments: TrainingArguments,
    holds_logits: bool,
) -> dict[str, Any]:
    """Return what training will take, bytes by part, for the manifest.

    Raises:
        TrainingError: More than the device has; it says what to change.
    """
    shape = ModelShape.of(model.config, vocab_size)
    if shape is None:
        kind = model.config.model_type
        logger.info(
            "the memory of a %s model is not known beforehand; two trial steps decide", kind
        )
        return {}
    parameters = list(model.parameters())
    columns = splits["train"].column_names
    beside = [name.removesuffix("length") for name in columns if _OF_TEACHERS.match(name)]
    has_second = "rationale_length" in columns
    extra = objective.extra()
    estimate = MemoryEstimate(
        shape=shape,
        num_parameters=sum(p.numel() for p in parameters),
        num_trainable=sum(p.numel() for p in parameters if p.requires_grad),
        training=training,
        sequences=2 if has_second else 1,
        max_length=max(_longest(splits), _longest(splits, "rationale_") if has_second else 0),
        vocab_size=vocab_size,
        teacher=TeacherSize.of(*(each.model for each in teachers)) if teachers else None,
        teacher_length=max((_longest(splits, whose) for whose in beside), default=0),
        num_processes=arguments.world_size,
        chunk_tokens=default_chunk_tokens(vocab_size, arguments.device),
        holds_logits=holds_logits,
        response_length=_longest(splits, "response_"),
        num_extra=sum(p.numel() for p in extra.parameters()) if extra is not None else 0,
        held=objective.held_bytes,
    )
    logger.info("training takes about %s", estimate.sentence)
    estimate.check(available_memory(arguments.device), str(arguments.device))
    return {"memory_estimate_bytes": estimate.parts | {"peak": estimate.total}}


def _longest(splits: dict[str, Any], whose: str = "") -> int:
    return max(max(lengths(rows, whose), default=0) for rows in splits.values())


def check_packing(model: Any, rows: Any) -> None:
    """Return when a packed row does not depend on the one before it.

    Raises:
        TrainingError: It sees its neighbour: the model ignores that positions restart.
    """
    device = next(model.parameters()).device
    num_tokens = lengths(rows)
    shortest = sorted(range(len(rows)), key=num_tokens.__getitem__)[:2]
    ids = [rows[at]["input_ids"][:_PACKED_TOKENS].to(device) for at in shortest]
    if len(ids) < 2:
        return
    positions_1T = torch.cat([torch.arange(len(row), device=device) for row in ids])[None]
    was_training = model.training
    model.eval()

    def of_second(first: torch.Tensor) -> torch.Tensor:
        """Return the logits of the second row behind ``first``."""
        packed_1T = torch.cat([first, ids[1]])[None]
        outputs = model(input_ids=packed_1T, position_ids=positions_1T, use_cache=False)
        logits: torch.Tensor = outputs.logits[0, len(first) :]
        return logits

    with torch.no_grad():
        packed, beside_another = of_second(ids[0]), of_second(torch.zeros_like(ids[0]))
    model.train(was_training)
    moved = float((packed - beside_another).abs().max()) / max(1.0, float(packed.abs().max()))
    if moved > _MOST_MOVED:
        raise TrainingError(
            "this model does not keep rows apart when they are packed: the logits of a row "
            f"differ by {moved:.3g} with the text before it, so it would learn from neighbours "
            "that have nothing to do with a row. Set training.batching to padded."
        )


def longest_rows(rows: Any, num_rows: int) -> Any:
    """Return the rows that take the most memory: a teacher's prompt may be most of a row."""
    num_tokens = whole_lengths(rows)
    return rows.select(sorted(range(len(rows)), key=lambda at: -num_tokens[at])[:num_rows])


def run_trial(trainer: Any) -> dict[str, Any]:
    """Return seconds per step of a trainer's few steps, and their peak memory on a GPU.

    It does all that the training to come does, but at a learning rate of 0: weights stay as they
    are, to the bit.

    Raises:
        TrainingError: Memory runs out, or a figure is not finite.
    """
    arguments = trainer.args
    on_gpu = arguments.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(arguments.device)
    start = time.perf_counter()
    try:
        trainer.train()
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"memory of {arguments.device} ran out in a trial step with the longest rows "
            f"({max(lengths(trainer.train_dataset))} tokens, "
            f"{arguments.per_device_train_batch_size} a batch). Set "
            "training.gradient_checkpointing to true, or lower training.micro_batch_size."
        ) from error
    step_s = (time.perf_counter() - start) / arguments.max_steps
    found: dict[str, Any] = {"trial_step_s": round(step_s, 4)}
    if on_gpu:
        found["trial_peak_bytes"] = torch.cuda.max_memory_allocated(arguments.device)
    return found
