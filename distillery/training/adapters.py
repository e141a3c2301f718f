"""What is trained of a student, in which precision it is held, and how it becomes one model."""

import warnings
from pathlib import Path
from typing import Any

import torch

from schemas.errors import TrainingError
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
    """Return the model with float32 adapters when the method is LoRA, else the model.

    Raises:
        TrainingError: An adapter is on a weight that two layers share, so that merging would change
            the other layer too.
    """
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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # refused below
        adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    ends = (adapted.get_input_embeddings(), adapted.get_output_embeddings())
    if ends[0].weight is ends[1].weight and any(hasattr(end, "base_layer") for end in ends):
        raise TrainingError(
            f"training.method.target_modules {modules!r} puts an adapter on the input embedding or "
            "the output layer, which share one weight in this student, so merging it would change "
            "both. Leave them out, or choose a student whose embeddings are not tied."
        )
    return adapted


def load_trained(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Load into ``model`` those of ``weights`` that training changes; the others stay its own."""
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    model.load_state_dict({name: weights[name] for name in trained}, strict=False)


def write_merged(model: Any, folder: Path, *, dtype: torch.dtype) -> int:
    """Write the model, its adapters merged, in ``dtype``; return its number of parameters.

    Each weight is merged in float32 and rounded once, one after the other: all in float32 may take
    more memory than training did.
    """
    if hasattr(model, "unload"):
        for layer in model.modules():
            if hasattr(layer, "base_layer") and hasattr(layer, "merge"):
                layer.base_layer.float()
                layer.merge()
                layer.base_layer.to(dtype)
        model = model.unload()
    model.to(dtype).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())
