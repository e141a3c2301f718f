"""The settings of a training in the words of transformers' Trainer."""

import copy
import math
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import TrainingArguments

from schemas.training import TrainingSpec

# Checkpoints hold whole tensors, so that a training goes on with any number of processes above 1.
# Gradients of each micro-batch are shared out: those that wait for the last one would be whole.
_FSDP2: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "state_dict_type": "FULL_STATE_DICT",
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    },
    "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
}
# Accelerate's own would sum gradients over processes in bfloat16 too, where small ones vanish.
_SPLIT_BFLOAT16 = MixedPrecisionPolicy(
    param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.bfloat16
)


def training_arguments(
    training: TrainingSpec,
    folder: Path,
    *,
    steps: int = 1,
    validates: bool = False,
    is_trial: bool = False,
) -> TrainingArguments:
    """Return the trainer's arguments; checkpoints are written below ``folder``.

    Args:
        training: How the student is trained.
        folder: Scratch.
        steps: Optimizer steps.
        validates: Whether there are validation rows.
        is_trial: Nothing is learnt or kept.
    """
    every = math.ceil(steps / training.evaluations)
    keeps = not is_trial
    splits = training.parallelism == "fsdp2" and int(os.environ.get("WORLD_SIZE", "1")) > 1
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=0.0 if is_trial else training.learning_rate,
        # Transformers' own `constant` would leave the warm-up out.
        lr_scheduler_type=training.schedule.replace("constant", "constant_with_warmup"),
        warmup_steps=math.ceil(training.warmup_fraction * steps),
        weight_decay=training.weight_decay,
        adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm,
        bf16=training.dtype == "bfloat16",
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="steps" if validates and keeps else "no",
        eval_steps=every,
        save_strategy="steps" if keeps else "no",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=validates and keeps,
        metric_for_best_model="eval_loss" if validates else None,
        greater_is_better=False if validates else None,
        # So that patience counts over attempts.
        restore_callback_states_from_checkpoint=True,
        logging_steps=max(1, steps // 50),
        # Otherwise a NaN is shown as the average of the losses before it.
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=training.seed,
        data_seed=training.seed,
        use_cpu=training.device == "cpu" or not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        **(copy.deepcopy(_FSDP2) if splits else {}),  # transformers writes into it
    )
    if splits and arguments.bf16:
        arguments.fsdp_plugin_args["mixed_precision_policy"] = _SPLIT_BFLOAT16
    if splits and arguments.use_cpu:
        # Accelerate splits weights on any accelerator, but takes no notice of the wish on CPUs.
        arguments.distributed_state.distributed_type = DistributedType.MULTI_XPU
    # One process is one device: DataParallel would multiply the batch size by the GPUs it finds.
    arguments._n_gpu = min(1, arguments.n_gpu)
    rows = micro_batch(training, arguments.world_size)
    arguments.per_device_train_batch_size = arguments.per_device_eval_batch_size = rows
    arguments.gradient_accumulation_steps = training.batch_size // (rows * arguments.world_size)
    return arguments


def micro_batch(training: TrainingSpec, num_processes: int) -> int:
    """Return how many rows a forward pass holds: the largest divisor of a process's share.

    >>> micro_batch(TrainingSpec(batch_size=48, micro_batch_size=32), num_processes=1)
    24
    """
    share = training.batch_size // num_processes
    sizes = range(1, min(share, training.micro_batch_size) + 1)
    return max(size for size in sizes if share % size == 0)
