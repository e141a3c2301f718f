"""The decoder layers of a model, and what they make on the way through it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from schemas.errors import RecipeError


def decoder_layers(model: Any) -> tuple[str, Any]:
    """Return the list of a model's decoder layers, and its name.

    Raises:
        RecipeError: It has none.
    """
    import torch

    number = model.config.get_text_config(decoder=True).num_hidden_layers
    ours = {id(module) for module in model.get_decoder().modules()}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == number and id(module) in ours:
            return name, module
    raise RecipeError(
        f"a {type(model).__name__} does not have its {number} layers in one list, so they cannot "
        "be told apart. Choose another model."
    )


def attention_obstacle(model: Any, wanted: str) -> str | None:
    """Have ``model`` compute its attention as ``wanted``, such as `eager`; return why it does not.

    Its files do not say so when it is saved.
    """
    model.set_attn_implementation(wanted)
    if model.config.get_text_config(decoder=True)._attn_implementation == wanted:
        return None
    return (
        f"a {type(model).__name__} does not let its attention be computed as {wanted!r}, which "
        "shows its weights. Choose another model, or set training.objective.match to relations."
    )


@contextlib.contextmanager
def noted(modules: Sequence[Any], take: Callable[[Any], Any]) -> Iterator[list[Any]]:
    """Yield what ``take`` makes of the output of each module; there after a forward pass inside.

    Where activations are recomputed in the backward pass (gradient checkpointing), what was noted
    in the forward pass stays, and its gradients are right as long as ``take`` computes nothing.
    """
    found: list[Any] = [None] * len(modules)

    def noting(place: int) -> Any:
        def note(_module: Any, _inputs: Any, output: Any) -> None:
            found[place] = take(output)

        return note

    hooks = [module.register_forward_hook(noting(n)) for n, module in enumerate(modules)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
