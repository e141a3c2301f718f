"""What is trained of a student, in which precision it is held, and how it becomes one model."""

from pathlib import Path
from typing import Any

import torch

from schemas.training import LoraMethod, TrainingSpec


def held_dtype(training: TrainingSpec) -> torch.dtype:
    """Return the precision in which a student is opened for training.

    Trained weights are float32, as AdamW's updates vanish in bfloat16. With LoRA those are the
    adapters, whatever the rest is in; so that is held as the forward pass wants it.

    >>> held_dtype(TrainingSpec(dtype="bfloat16"))
    torch.float32
    >>> held_dtype(TrainingSpec(dtype="bfloat16", method=LoraMethod()))
    torch.bfloat16
    """
    is_frozen = isinstance(training.method, LoraMethod)
    dtype: torch.dtype = getattr(torch, training.dtype if is_frozen else "float32")
    return dtype


def with_adapters(model: Any, training: TrainingSpec) -> Any:
    """Return the model with float32 adapters when the method is LoRA, else the model."""
    if not isinstance(training.method, LoraMethod):
        return model
    from peft import LoraConfig, get_peft_model

    method = training.method
    modules = method.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.r,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
    )
    return get_peft_model(model, config, autocast_adapter_dtype=True)


def load_trained(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Load into ``model`` those of ``weights`` that training changes; the others stay its own."""
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    model.load_state_dict({name: weights[name] for name in trained}, strict=False)


def write_merged(model: Any, folder: Path, *, dtype: torch.dtype) -> int:
    """Write the model, its adapters merged, in ``dtype``; return its number of parameters."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.to(dtype).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())
