"""A smaller model made of a larger one: some of its layers, and narrower feed-forward blocks.

Source: Muralidharan et al. 2024 (Minitron), arXiv:2407.14679.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distillery.models.layers import decoder_layers
from distillery.models.loading import ModelFiles
from schemas.errors import RecipeError
from schemas.student import PrunedStudent


def kept_layers(spec: PrunedStudent, num_layers: int) -> tuple[int, ...]:
    """Return the numbers of the layers that a student keeps of a model with ``num_layers``.

    Layer `i` of the student is layer `kept_layers(...)[i]` of the model. They are spread evenly,
    the first and the last among them, unless the recipe names them.

    Raises:
        RecipeError: The model has no such layer, or not so many.

    >>> kept_layers(PrunedStudent(model="teacher", num_layers=6), 18)
    (0, 3, 7, 10, 14, 17)
    """
    if spec.layers:
        if spec.layers[-1] >= num_layers:
            raise RecipeError(
                f"student.layers names layer {spec.layers[-1]}, but {spec.model!r} has "
                f"{num_layers} layers, numbered from 0. Name layers up to {num_layers - 1}."
            )
        return spec.layers
    kept = num_layers if spec.num_layers is None else spec.num_layers
    if kept > num_layers:
        raise RecipeError(
            f"student.num_layers={kept} is more than the {num_layers} layers of {spec.model!r}, "
            "which is pruned, not grown. Lower it."
        )
    steps = max(kept - 1, 1)
    return tuple((2 * place * (num_layers - 1) + steps) // (2 * steps) for place in range(kept))


def check_prunable(spec: PrunedStudent) -> None:
    """Return when the model can be pruned as ``spec`` says; of its files only the small are read.

    Raises:
        RecipeError: Layers are not there or all kept, blocks are not wide enough or of an unknown
            kind, or the model's layers depend on each other's number.
    """
    import torch

    model = ModelFiles.of(spec).skeleton()
    num_layers = int(_text_config(model.config).num_hidden_layers)
    layers, neurons = kept_layers(spec, num_layers), None
    if len(layers) == num_layers and spec.intermediate_size is None:
        raise RecipeError(
            f"the student keeps all {num_layers} layers of {spec.model!r}, so nothing is pruned. "
            "Keep fewer, or set student.kind to pretrained."
        )
    if spec.intermediate_size is not None:
        of_model = feed_forward_width(model, spec.model)
        if spec.intermediate_size >= of_model:
            raise RecipeError(
                f"student.intermediate_size={spec.intermediate_size} is not smaller than the "
                f"{of_model} of {spec.model!r}. Lower it, or remove it."
            )
        neurons = {layer: torch.arange(spec.intermediate_size) for layer in layers}
    _parts(model, layers, neurons, name=spec.model)


def neuron_importance(model: Any, sequences: Iterable[Sequence[int]], *, device: str) -> Any:
    """Return how much each neuron of each feed-forward block matters: [layer, neuron], float64.

    A neuron's activation is what the down-projection reads of it. Aggregated as in the paper: the
    mean of its absolute value over the tokens of a sequence, then the L2 norm over sequences. They
    are read one at a time, by the model as it is before any layer goes.

    Args:
        model: Moved to ``device`` and back to the CPU; its blocks are of a known kind.
        sequences: Token ids.
        device: Where the model runs.
    """
    import torch

    blocks = [layer.mlp.down_proj for layer in decoder_layers(model)[1]]
    squares_LF = torch.zeros(len(blocks), blocks[0].in_features, dtype=torch.float64)

    def noting(number: int) -> Any:
        def note(_: Any, inputs: tuple[Any, ...]) -> None:
            mean_F = inputs[0].abs().flatten(0, -2).mean(0, dtype=torch.float32)
            squares_LF[number] += mean_F.double().cpu() ** 2

        return note

    hooks = [block.register_forward_pre_hook(noting(n)) for n, block in enumerate(blocks)]
    model.to(device)
    try:
        with torch.inference_mode():
            for ids in sequences:
                model.get_decoder()(torch.tensor([[*ids]], device=device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        model.to("cpu")
    return squares_LF.sqrt()


def most_important(importance_LF: Any, size: int) -> dict[int, Any]:
    """Return the ``size`` most important neurons of each layer, in the order of the model."""
    places_LK = importance_LF.topk(size, dim=1).indices.sort(dim=1).values
    return dict(enumerate(places_LK))


def prune(
    model: Any, layers: Sequence[int], neurons: Mapping[int, Any] | None = None, *, name: str = ""
) -> Any:
    """Return a model of the chosen layers, and of the chosen neurons of their blocks.

    It is an ordinary model of its architecture: whatever its configuration says of each layer
    (Gemma's sliding windows) goes along, and tied embeddings stay tied.

    Args:
        model: On the CPU; the result shares weights with it.
        layers: Numbers of the layers that stay.
        neurons: By number of the layer, the neurons that stay. None: all.
        name: The model's, for messages.

    Raises:
        RecipeError: The model's layers depend on each other's number.
    """
    config, weights = _parts(model, layers, neurons, name=name)
    pruned: Any = type(model).from_pretrained(
        None, config=config, state_dict=weights, dtype=model.dtype
    )
    return pruned


def feed_forward_width(model: Any, name: str) -> int:
    """Return how many neurons the feed-forward blocks have.

    Raises:
        RecipeError: They are not gated blocks as Llama, Gemma, Qwen and Phi have.
    """
    import torch

    width = getattr(_text_config(model.config), "intermediate_size", None) or 0
    for number, layer in enumerate(decoder_layers(model)[1]):
        block = getattr(layer, "mlp", None)
        shapes = {
            child: (linear.out_features, linear.in_features)
            for child, linear in (block.named_children() if block is not None else ())
            if isinstance(linear, torch.nn.Linear)
        }
        outer = shapes.get("down_proj", (0, 0))[0]
        gated = {"down_proj": (outer, width)}
        known = (
            gated | {"gate_proj": (width, outer), "up_proj": (width, outer)},
            gated | {"gate_up_proj": (width + width, outer)},
        )
        if shapes not in known:
            raise RecipeError(
                f"layer {number} of {name!r} ({type(layer).__name__}) has no feed-forward block "
                "of the kind that can be made narrower: gate_proj, up_proj and down_proj, or "
                f"gate_up_proj and down_proj. It has {sorted(shapes)}. Remove "
                "student.intermediate_size and prune layers only."
            )
    return int(width)


def _parts(
    model: Any, layers: Sequence[int], neurons: Mapping[int, Any] | None, *, name: str
) -> tuple[Any, dict[str, Any]]:
    """Return configuration and weights of a pruned model; refuse what would not be whole."""
    import torch

    config = copy.deepcopy(model.config)
    text = _text_config(config)
    of_model = text.num_hidden_layers
    for field, value in text.to_dict().items():
        is_per_layer = isinstance(value, list | tuple) and len(value) == of_model
        if is_per_layer and not field.endswith("_token_id"):
            setattr(text, field, [value[layer] for layer in layers])
    text.num_hidden_layers = len(layers)
    if neurons is not None:
        text.intermediate_size = len(neurons[layers[0]])

    prefix, places = (
        f"{decoder_layers(model)[0]}.",
        {layer: place for place, layer in enumerate(layers)},
    )
    weights = {}
    for key, weight in model.state_dict().items():
        if not key.startswith(prefix):
            weights[key] = weight
            continue
        number, _, rest = key.removeprefix(prefix).partition(".")
        if (layer := int(number)) in places:
            narrow = weight if neurons is None else _narrowed(rest, weight, neurons[layer])
            weights[f"{prefix}{places[layer]}.{rest}"] = narrow
    with torch.device("meta"):
        wanted = type(model)(config).state_dict()
    odd = [
        key
        for key in sorted(wanted.keys() | weights.keys())
        if key not in wanted or key not in weights or wanted[key].shape != weights[key].shape
    ]
    if odd:
        raise RecipeError(
            f"{name!r} ({type(model).__name__}) cannot be pruned: what its layers are made of "
            f"depends on their number, as {odd[0]!r} shows. Choose other layers, or another model."
        )
    return config, weights


def _narrowed(key: str, weight: Any, neurons: Any) -> Any:
    """Return a weight of a layer with what ``neurons`` have of it."""
    import torch

    match key.rpartition(".")[0]:
        case "mlp.gate_proj" | "mlp.up_proj":
            return weight[neurons]
        case "mlp.gate_up_proj":
            return weight[torch.cat([neurons, neurons + len(weight) // 2])]
        case "mlp.down_proj" if weight.dim() == 2:
            return weight[:, neurons]
    return weight


def _text_config(config: Any) -> Any:
    return config.get_text_config(decoder=True)
