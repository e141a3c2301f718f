"""Pruned models: which layers and neurons stay, and that the rest of the model is as it was."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillery.models.pruning import (
    check_prunable,
    feed_forward_width,
    kept_layers,
    most_important,
    neuron_importance,
    prune,
)
from schemas.errors import RecipeError
from schemas.student import PrunedStudent

WIDTH, NUM_LAYERS = 24, 6
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": WIDTH,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
SLIDING, FULL = "sliding_attention", "full_attention"


def random_model(kind: str, **changes: Any) -> Any:
    """Return a random model of six layers, in evaluation mode."""
    import transformers

    settings: dict[str, Any] = SHAPE | {"tie_word_embeddings": kind == "Gemma3Text"}
    if kind == "Gemma3Text":
        settings |= {"sliding_window": 4, "layer_types": [SLIDING, SLIDING, FULL] * 2}
    config = getattr(transformers, f"{kind}Config")(**settings | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.uniform_(weight)
    return model.eval()


each_kind = pytest.mark.parametrize("kind", ["Llama", "Gemma3Text", "Qwen2", "Qwen3", "Phi3"])


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(2, 32).reshape(2, 15) * 7 % 300
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


def block(model: Any, layer: int) -> Any:
    return model.get_decoder().layers[layer].mlp


def bypassed(model: Any, layers: list[int]) -> torch.Tensor:
    """Return the logits of a model whose named layers give their input back."""
    for layer in layers:
        model.get_decoder().layers[layer].forward = lambda states, *_, **__: states
    return logits(model)


@given(st.integers(2, 100).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n))))
def test_layers_are_spread_evenly_from_the_first_to_the_last(numbers: tuple[int, int]) -> None:
    of_model, wanted = numbers
    kept = kept_layers(PrunedStudent(model="m", num_layers=wanted), of_model)
    steps = [b - a for a, b in itertools.pairwise(kept)]
    assert (len(kept), kept[0], kept[-1]) == (wanted, 0, of_model - 1)
    assert min(steps) >= 1 and max(steps) - min(steps) <= 1


def test_a_single_layer_is_the_first_one() -> None:
    assert kept_layers(PrunedStudent(model="m", num_layers=1), 18) == (0,)


def test_layers_are_those_that_are_named_and_all_where_none_is() -> None:
    assert kept_layers(PrunedStudent(model="m", layers=(1, 5, 17)), 18) == (1, 5, 17)
    assert kept_layers(PrunedStudent(model="m", intermediate_size=8), 3) == (0, 1, 2)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (PrunedStudent(model="m", layers=(0, 18)), "names layer 18, but 'm' has 18 layers"),
        (PrunedStudent(model="m", num_layers=19), "num_layers=19 is more than the 18 layers"),
    ],
)
def test_layers_that_are_not_there_are_refused(spec: PrunedStudent, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        kept_layers(spec, 18)


@each_kind
def test_a_model_that_keeps_everything_is_the_same_to_the_bit(kind: str) -> None:
    model = random_model(kind)
    all_neurons = {layer: torch.arange(WIDTH) for layer in range(NUM_LAYERS)}
    for neurons in (None, all_neurons):
        assert prune(model, range(NUM_LAYERS), neurons).state_dict().keys() == (
            model.state_dict().keys()
        )
        assert logits(prune(model, range(NUM_LAYERS), neurons)).equal(logits(model))


@each_kind
def test_a_model_of_some_layers_is_the_model_called_without_the_others(
    kind: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = random_model(kind)
    pruned = prune(model, (0, 2, 3))
    pruned.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = bypassed(model, [1, 4, 5])
    assert logits(pruned).equal(expected) and logits(opened).equal(expected)


@each_kind
def test_a_pruned_model_generates_alike_with_and_without_a_cache(kind: str) -> None:
    pruned = prune(random_model(kind), (1, 2, 5))
    asked = {"inputs": torch.tensor([[5, 9, 17, 4, 90, 33]]), "max_new_tokens": 12}
    asked |= {"do_sample": False, "min_new_tokens": 12}
    assert pruned.generate(**asked).equal(pruned.generate(**asked, use_cache=False))
    numbers = [layer.self_attn.layer_idx for layer in pruned.get_decoder().layers]
    assert numbers == [0, 1, 2]


def test_what_the_configuration_says_of_a_layer_stays_with_it(tmp_path: Path) -> None:
    from transformers import AutoConfig

    pruned = prune(random_model("Gemma3Text"), (1, 2, 5))
    pruned.save_pretrained(tmp_path)
    saved = AutoConfig.from_pretrained(tmp_path)
    assert (saved.num_hidden_layers, saved.layer_types) == (3, [SLIDING, FULL, FULL])
    assert [layer.self_attn.is_sliding for layer in pruned.get_decoder().layers] == [1, 0, 0]


def test_tied_embeddings_stay_tied_and_others_do_not_become_so() -> None:
    for kind, is_tied in (("Gemma3Text", True), ("Llama", False)):
        pruned = prune(random_model(kind), (0, 5))
        ends = (pruned.get_input_embeddings().weight, pruned.get_output_embeddings().weight)
        assert (ends[0] is ends[1]) == is_tied
        assert pruned.config.tie_word_embeddings == is_tied


def silence(model: Any, layer: int, neurons: list[int]) -> None:
    """Let the named neurons never be active."""
    mlp = block(model, layer)
    with torch.no_grad():
        if hasattr(mlp, "up_proj"):
            mlp.up_proj.weight[neurons] = 0
        else:
            mlp.gate_up_proj.weight[[WIDTH + n for n in neurons]] = 0


@each_kind
def test_neurons_that_are_never_active_go_first_and_change_nothing(kind: str) -> None:
    model = random_model(kind)
    silent = {layer: [layer, 7, 20] for layer in range(NUM_LAYERS)}
    for layer, neurons in silent.items():
        silence(model, layer, neurons)
    importance = neuron_importance(model, [[5, 9, 17], [4, 90, 33, 8]], device="cpu")
    kept = most_important(importance, WIDTH - 3)
    for layer, neurons in silent.items():
        assert kept[layer].tolist() == [n for n in range(WIDTH) if n not in neurons]
    pruned = prune(model, range(NUM_LAYERS), kept)
    assert feed_forward_width(pruned, "") == pruned.config.intermediate_size == WIDTH - 3
    torch.testing.assert_close(logits(pruned), logits(model), atol=1e-4, rtol=1e-5)


def test_importance_is_the_norm_over_rows_of_the_mean_over_tokens() -> None:
    model = random_model("Llama")
    rows, seen = [[5, 9, 17, 11], [4, 90]], []
    down = block(model, 3).down_proj
    hook = down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    importance = neuron_importance(model, rows, device="cpu")
    hook.remove()
    means = torch.stack([inputs[0][0].abs().mean(0).double() for inputs in seen])
    torch.testing.assert_close(importance[3], (means**2).sum(0).sqrt())
    assert importance.shape == (NUM_LAYERS, WIDTH)
    assert not down._forward_pre_hooks


def test_planted_neurons_are_found() -> None:
    model = random_model("Gemma3Text")
    with torch.no_grad():
        block(model, 4).up_proj.weight[[3, 11]] *= 100
    importance = neuron_importance(model, [[5, 9, 17, 11], [4, 90]], device="cpu")
    assert most_important(importance, 2)[4].tolist() == [3, 11]


def test_layers_and_neurons_go_together() -> None:
    model = random_model("Qwen2")
    for layer in range(NUM_LAYERS):
        silence(model, layer, [layer, 23])
    kept = {layer: torch.tensor([n for n in range(23) if n != layer]) for layer in range(6)}
    pruned = prune(model, (0, 3, 5), kept)
    expected = bypassed(model, [1, 2, 4])
    torch.testing.assert_close(logits(pruned), expected, atol=1e-4, rtol=1e-5)


def saved(kind: str, folder: Path, **changes: Any) -> str:
    random_model(kind, **changes).save_pretrained(folder)
    return str(folder)


def test_what_can_be_pruned_is_known_from_the_configuration_alone(tmp_path: Path) -> None:
    folder = saved("Phi3", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    check_prunable(PrunedStudent(model=folder, num_layers=6, intermediate_size=WIDTH - 1))


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("Llama", {"num_layers": 7}, "num_layers=7 is more than the 6 layers"),
        ("Llama", {"num_layers": 6}, "keeps all 6 layers of .* so nothing is pruned"),
        ("Llama", {"layers": (2, 6)}, "names layer 6, but .* has 6 layers"),
        ("Llama", {"intermediate_size": WIDTH}, "intermediate_size=24 is not smaller than the 24"),
        ("Mixtral", {"intermediate_size": 8}, r"layer 0 .*\(MixtralDecoderLayer\) has no feed-for"),
        ("GPT2", {"intermediate_size": 8}, r"layer 0 .*\(GPT2Block\) has no feed-forward block"),
    ],
)
def test_what_cannot_be_pruned_so_is_refused(
    kind: str, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = saved(kind, tmp_path)
    with pytest.raises(RecipeError, match=reason):
        check_prunable(PrunedStudent(model=folder, **settings))


def test_blocks_of_another_kind_still_lose_layers(tmp_path: Path) -> None:
    check_prunable(PrunedStudent(model=saved("Mixtral", tmp_path), num_layers=3))
    model = random_model("GPT2")
    assert logits(prune(model, (0, 1, 2))).shape == (2, 15, 300)


def test_layers_that_depend_on_their_number_are_refused() -> None:
    # Every second layer has experts: what was the third one would have to be dense.
    model = random_model("Qwen2Moe", decoder_sparse_step=2, num_experts=4, moe_intermediate_size=8)
    assert prune(model, (0, 1, 4, 5)).config.num_hidden_layers == 4
    with pytest.raises(RecipeError, match=r"depends on their number, as 'model\.layers\.1"):
        prune(model, (0, 2, 4))
