"""Whether a training fits is known before it starts, and what to change where it does not."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    GPT2Config,
    LlamaConfig,
    LlamaModel,
    MambaConfig,
    MambaModel,
)

from distillery.training.adapters import held_dtype
from distillery.training.memory import MemoryEstimate, ModelShape, TeacherSize
from schemas.errors import TrainingError
from schemas.training import LoraMethod, TrainingSpec
from schemas.units import bytes_text

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
# Llama 3.2 1B.
CONFIG = LlamaConfig(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=True,
)
NUM_PARAMETERS = 1_235_814_400
LORA = LoraMethod()


def _estimate(
    training: TrainingSpec,
    *,
    config: Any = CONFIG,
    max_length: int = 1024,
    vocab_size: int = 128_256,
    teacher: TeacherSize | None = None,
    teacher_length: int = 1024,
    num_processes: int = 1,
    holds_logits: bool = False,
) -> MemoryEstimate:
    shape = ModelShape.of(config, vocab_size)
    assert shape is not None
    num_parameters = num_trainable = NUM_PARAMETERS
    if isinstance(training.method, LoraMethod):
        num_trainable = 11_272_192  # rank 16 at seven layers of each block
        num_parameters += num_trainable
    return MemoryEstimate(
        shape=shape,
        num_parameters=num_parameters,
        num_trainable=num_trainable,
        training=training,
        max_length=max_length,
        vocab_size=vocab_size,
        teacher=teacher,
        teacher_length=teacher_length,
        num_processes=num_processes,
        chunk_tokens=1024,
        holds_logits=holds_logits,
    )


# -- the figures ----------------------------------------------------------------------------------


def test_weights_gradients_and_two_adamw_states_are_float32() -> None:
    parts = _estimate(TrainingSpec()).parts
    assert parts["weights"] == parts["gradients"] == 4 * NUM_PARAMETERS
    assert parts["optimizer"] == 8 * NUM_PARAMETERS


def test_adapters_leave_gradients_and_states_for_themselves_alone() -> None:
    parts = _estimate(TrainingSpec(method=LORA)).parts
    assert parts["weights"] == 4 * (NUM_PARAMETERS + 11_272_192)
    assert parts["gradients"] == 4 * 11_272_192
    assert parts["optimizer"] == 8 * 11_272_192
    assert parts["logits"] == 4 * 1024 * 128_256  # no gradient of the output layer


def test_frozen_weights_are_held_in_half_precision_and_adapters_are_not() -> None:
    parts = _estimate(TrainingSpec(method=LORA, dtype="bfloat16")).parts
    # Autocast's copies are of the adapters alone; the output layer is in half precision already.
    assert parts["weights"] == 2 * NUM_PARAMETERS + (4 + 2) * 11_272_192
    assert parts["gradients"] == 4 * 11_272_192
    assert parts["optimizer"] == 8 * 11_272_192
    assert parts["logits"] == (4 + 2) * 1024 * 128_256
    full = _estimate(TrainingSpec(dtype="bfloat16")).parts
    assert 4 * NUM_PARAMETERS < full["weights"] < 6 * NUM_PARAMETERS


ROWS, TOKENS = 3, 37  # sizes that no weight has


def _small(num_layers: int, **changes: Any) -> LlamaConfig:
    return LlamaConfig(
        **changes,
        vocab_size=100,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def _kept_bytes(config: LlamaConfig, training: TrainingSpec) -> int:
    """Return what autograd keeps of a forward pass of padded rows, beside weights."""
    with torch.random.fork_rng(devices=[]):
        model: Any = LlamaModel(config).to(held_dtype(training))
    if isinstance(training.method, LoraMethod):
        import peft

        config = peft.LoraConfig(r=training.method.r, target_modules="all-linear")
        model = peft.get_peft_model(model, config)
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        if {TOKENS, ROWS * TOKENS} & set(tensor.shape):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids_BT = torch.ones(ROWS, TOKENS, dtype=torch.long)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, -1] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=training.dtype == "bfloat16"),
    ):
        model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", [{"kind": "full"}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_activations_are_those_that_autograd_keeps(dtype: Any, method: Any, attention: str) -> None:
    training = TrainingSpec(dtype=dtype, method=method, batch_size=ROWS)

    def estimated(config: LlamaConfig) -> int:
        return _estimate(training, config=config, max_length=TOKENS).parts["activations"]

    # What comes with two more layers, so that embeddings and ends are left out.
    one, three = (_small(layers, attn_implementation=attention) for layers in (1, 3))
    kept = _kept_bytes(three, training) - _kept_bytes(one, training)
    assert estimated(three) - estimated(one) == pytest.approx(kept, rel=0.05)


@pytest.mark.parametrize(
    ("named", "itemsize"),
    [({}, 4), ({"dtype": "bfloat16"}, 4), ({"dtype": "bfloat16", "method": LORA}, 2)],
    ids=["float32", "bfloat16", "lora"],
)
def test_checkpointing_keeps_one_state_per_layer_and_one_layer(
    named: dict[str, Any], itemsize: int
) -> None:
    def activations(num_layers: int, *, checkpointing: bool = False) -> int:
        training = TrainingSpec(gradient_checkpointing=checkpointing, **named)
        return _estimate(training, config=_small(num_layers)).parts["activations"]

    layer = activations(4) - activations(3)
    states = 16 * 1024 * itemsize * 64  # rows, tokens, bytes, width
    assert activations(4) - activations(4, checkpointing=True) == 3 * layer - 4 * states


def test_logits_are_one_chunk_and_the_gradient_of_the_output_layer() -> None:
    parts = _estimate(TrainingSpec()).parts
    assert parts["logits"] == 4 * 128_256 * (1024 + 2048)
    one_short_row = TrainingSpec(micro_batch_size=1, method=LORA)
    assert _estimate(one_short_row, max_length=16).parts["logits"] == 4 * 128_256 * 16


def test_logits_that_a_model_changes_are_held_for_all_tokens() -> None:
    held = _estimate(TrainingSpec(batch_size=4, method=LORA), holds_logits=True).parts
    chunk = _estimate(TrainingSpec(batch_size=4, method=LORA)).parts
    assert held.pop("logits") == 4 * 1024 * 128_256 * 16
    assert chunk.pop("logits") < held["weights"]
    assert held == chunk


def test_gradients_come_as_activations_go_unless_they_are_accumulated() -> None:
    at_once = _estimate(TrainingSpec(batch_size=4))
    accumulated = _estimate(TrainingSpec(batch_size=8, micro_batch_size=4))
    assert accumulated.parts == at_once.parts
    assert accumulated.total == sum(accumulated.parts.values())
    assert at_once.total == accumulated.total - at_once.parts["gradients"]


def test_fsdp2_divides_what_ddp_copies() -> None:
    alone = _estimate(TrainingSpec()).parts
    ddp = _estimate(TrainingSpec(), num_processes=4).parts
    split = _estimate(TrainingSpec(parallelism="fsdp2"), num_processes=4).parts
    assert ddp["weights"] == alone["weights"]
    assert ddp["gradients"] == 2 * alone["gradients"]  # and its buckets
    assert split["gradients"] == alone["gradients"] // 4
    assert split["optimizer"] == alone["optimizer"] // 4
    gathered = split["weights"] - alone["weights"] // 4  # embeddings and the layer in use
    assert 4 * 128_256 * 2048 < gathered < 4 * 128_256 * 2048 + alone["weights"] / 16
    assert ddp["activations"] == alone["activations"] // 4  # four of the sixteen rows


def test_a_teacher_beside_the_student_counts_its_weights_and_passing_states() -> None:
    with torch.random.fork_rng(devices=[]):
        teacher = LlamaModel(_small(2)).to(torch.bfloat16)
    size = TeacherSize.of(teacher)
    assert size.weight_bytes == 2 * sum(p.numel() for p in teacher.parameters())
    alone, beside = _estimate(TrainingSpec()), _estimate(TrainingSpec(), teacher=size)
    more = beside.total - alone.total
    assert more == beside.parts["teacher"]
    assert more == size.weight_bytes + 16 * 1024 * size.bytes_per_token + 4 * 1024 * 128_256
    assert "teacher" not in alone.parts
    told = _estimate(TrainingSpec(), teacher=size, teacher_length=3072)
    assert told.total - beside.total == 16 * 2048 * size.bytes_per_token


def test_attention_weights_of_a_teacher_grow_with_the_square_of_its_rows() -> None:
    with torch.random.fork_rng(devices=[]):
        teacher = LlamaModel(_small(2, attn_implementation="eager"))
    size, plain = TeacherSize.of(teacher), TeacherSize.of(LlamaModel(_small(2)))
    assert (size.bytes_per_look, plain.bytes_per_look) == (3 * 4 * 4, 0)  # 4 heads, float32
    more = size.activation_bytes(2, 100) - plain.activation_bytes(2, 100)
    assert more == 2 * 100 * 100 * size.bytes_per_look


def test_what_an_objective_holds_and_learns_beside_is_counted() -> None:
    def held(training: TrainingSpec, rows: int, tokens: int, responses: int) -> int:
        return 7 * rows * tokens * responses

    plain = _estimate(TrainingSpec())
    more = dataclasses.replace(plain, held=held, response_length=100, num_extra=1000)
    assert more.parts["layers compared"] == 7 * 16 * 1024 * 100
    added = {name: size - plain.parts.get(name, 0) for name, size in more.parts.items()}
    assert (added["weights"], added["gradients"], added["optimizer"]) == (4000, 4000, 8000)
    assert more.total == plain.total + 4000 + 8000 + more.parts["layers compared"]
    assert "layers compared" not in plain.parts
    with pytest.raises(TrainingError, match=r"Set training\.micro_batch_size to 8: about"):
        large = dataclasses.replace(more, held=lambda *sizes: 2**20 * held(*sizes))
        large.check(large.total * 6 // 10, "cuda:0")


def test_packed_rows_attend_through_one_mask_over_all_of_them() -> None:
    packed, padded = (
        _estimate(TrainingSpec(batching=kind), max_length=512).parts["activations"]
        for kind in ("packed", "padded")
    )
    tokens = 16 * 512
    assert packed - padded == 16 * 4 * tokens * (tokens - 512)


def test_experts_and_models_of_other_kinds_have_an_estimate() -> None:
    from transformers import MixtralConfig

    few, many = (
        _estimate(TrainingSpec(), config=MixtralConfig(num_experts_per_tok=count))
        for count in (1, 2)
    )
    assert few.parts["activations"] < many.parts["activations"]
    assert _estimate(TrainingSpec(), config=GPT2Config()).parts["activations"] > 0


@pytest.mark.parametrize("kind", ["gemma4", "gemma4_text", "gemma4_unified"])
def test_heads_of_several_sizes_count_as_the_largest(kind: str) -> None:
    config = AutoConfig.for_model(kind)
    text = config.get_text_config(decoder=True)
    sizes = {layer.head_dim for layer in text.per_layer_config}
    assert len(sizes) > 1
    shape = ModelShape.of(config, 0)
    assert shape is not None
    assert shape.queries == max(sizes) * text.num_attention_heads
    assert shape.keys == max(sizes) * text.num_key_value_heads
    assert _estimate(TrainingSpec(), config=config).parts["activations"] > 0


def test_feed_forward_blocks_of_several_sizes_count_as_the_largest() -> None:
    few, many = (
        AutoConfig.for_model("gemma3n_text", num_hidden_layers=5, intermediate_size=sizes)
        for sizes in ([64, 64, 128, 64, 64], [128] * 5)
    )
    assert ModelShape.of(few, 0) == ModelShape.of(many, 0)
    assert _estimate(TrainingSpec(), config=few).total > 0


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "blt"])
def test_a_model_whose_layers_are_not_told_has_no_estimate(kind: str) -> None:
    assert ModelShape.of(AutoConfig.for_model(kind), 0) is None


def test_a_teacher_whose_layers_are_not_told_counts_its_weights() -> None:
    config = MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4)
    with torch.random.fork_rng(devices=[]):
        teacher = MambaModel(config)
    size = TeacherSize.of(teacher)
    assert size == TeacherSize(4 * sum(p.numel() for p in teacher.parameters()), 0)


@settings(deadline=None, max_examples=50)
@given(
    batch_size=st.integers(1, 64),
    max_length=st.integers(16, 4096),
    vocab_size=st.integers(1, 200_000),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    method=st.sampled_from([{"kind": "full"}, LORA]),
    batching=st.sampled_from(["padded", "packed"]),
    holds_logits=st.booleans(),
)
def test_more_of_anything_never_takes_less(
    batch_size: int, max_length: int, vocab_size: int, holds_logits: bool, **named: Any
) -> None:
    def total(training: TrainingSpec, max_length: int, vocab_size: int) -> int:
        estimate = _estimate(training, max_length=max_length, holds_logits=holds_logits)
        return dataclasses.replace(estimate, vocab_size=vocab_size).total

    training = TrainingSpec(batch_size=batch_size, **named)
    base = total(training, max_length, vocab_size)
    assert total(training, max_length + 1, vocab_size) >= base
    assert total(training, max_length, vocab_size + 1) >= base
    checkpointed = training.model_copy(update={"gradient_checkpointing": True})
    assert total(checkpointed, max_length, vocab_size) <= base
    assert 0 < max(_estimate(training).parts.values()) < _estimate(training).total


_MEASURE = """
import json, sys
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM
from distillery.training.adapters import held_dtype, with_adapters
from distillery.objectives.losses import default_chunk_tokens, response_losses
from distillery.models.hardware import process_peak_bytes
from distillery.training.memory import MemoryEstimate, ModelShape
from distillery.models.output_layer import SplitModel, response_states
from schemas.training import TrainingSpec

kind, changes = sys.argv[1], json.loads(sys.argv[2])
rows, tokens, vocab_size = 8, 256, 8000
training = TrainingSpec(batch_size=rows, **changes)
torch.set_num_threads(1)
dtype = getattr(torch, training.dtype)


def steps(config, batch):
    make = LlamaForCausalLM if kind == "llama" else Gemma2ForCausalLM
    model = with_adapters(make(config).to(held_dtype(training)), training)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    split = SplitModel(model)
    labels = batch["labels"][:, 1:]
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            states = response_states(model.train(), batch, batch["labels"]).to(dtype)
        losses = response_losses(
            states, split.head, labels[labels >= 0], vocab_size=config.vocab_size, normaliser=1.0
        )
        losses.loss.backward()
        del states, losses
        optimizer.step()
        optimizer.zero_grad()
    return model, sum(p.numel() for p in parameters), split.holds_logits


def batch_of(rows, tokens):
    ids = torch.randint(0, 50, (rows, tokens))
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def config(width, layers, vocab_size):
    return (LlamaConfig if kind == "llama" else Gemma2Config)(
        vocab_size=vocab_size, hidden_size=width, intermediate_size=4 * width, head_dim=32,
        num_hidden_layers=layers, num_attention_heads=width // 32,
        num_key_value_heads=width // 32, attn_implementation="sdpa",
    )


steps(config(32, 1, 64), batch_of(2, 8))  # libraries and kernels
import psutil
before = psutil.Process().memory_info().rss
real = config(256, 6, vocab_size)
model, trainable, holds_logits = steps(real, batch_of(rows, tokens))
peak_bytes = process_peak_bytes()
assert holds_logits == (kind == "gemma2")
estimate = MemoryEstimate(
    shape=ModelShape.of(real, vocab_size), num_trainable=trainable, training=training,
    num_parameters=sum(p.numel() for p in model.parameters()), max_length=tokens,
    vocab_size=vocab_size, teacher=None, teacher_length=0, num_processes=1,
    holds_logits=holds_logits,
    chunk_tokens=default_chunk_tokens(vocab_size, torch.device("cpu")),
)
print(json.dumps([peak_bytes - before, estimate.total]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"gradient_checkpointing": True}),
        ("llama", {"method": {"kind": "lora"}}),
        ("llama", {"method": {"kind": "lora"}, "dtype": "bfloat16"}),
        ("gemma2", {}),
    ],
    ids=["full", "checkpointing", "lora", "lora in bfloat16", "whole logits"],
)
def test_real_steps_take_what_was_estimated(kind: str, changes: dict[str, Any]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _MEASURE, kind, json.dumps(changes)],
        cwd=ROOT,
        # Otherwise glibc keeps what tensors gave back, and the peak is its own.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=True,
    )
    measured, estimated = json.loads(ran.stdout.splitlines()[-1])
    assert 0.8 < measured / estimated < 1.25


# -- what is said ---------------------------------------------------------------------------------


def test_the_sentence_names_every_part() -> None:
    estimate = _estimate(TrainingSpec())
    total = bytes_text(estimate.total)
    assert estimate.sentence.startswith(f"{total} of memory: weights 4.60 GiB, gradients 4.60 GiB")
    assert all(f" {part} " in estimate.sentence for part in estimate.parts)


def test_what_fits_is_let_through() -> None:
    estimate = _estimate(TrainingSpec())
    estimate.check(estimate.total, "cuda:0")


FSDP2 = "training.parallelism to fsdp2 and training.num_processes to {}, on as many GPUs"
CHECKPOINTING: dict[str, Any] = {"gradient_checkpointing": True}
ADVICE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("training.gradient_checkpointing to true", {}, CHECKPOINTING),
    ("training.micro_batch_size to 4", CHECKPOINTING, CHECKPOINTING | {"micro_batch_size": 4}),
    (
        "training.dtype to bfloat16",
        CHECKPOINTING | {"batch_size": 1},
        CHECKPOINTING | {"batch_size": 1, "dtype": "bfloat16"},
    ),
    (
        "training.method.kind to lora",
        CHECKPOINTING | {"batch_size": 1},
        CHECKPOINTING | {"batch_size": 1, "method": LORA},
    ),
    (
        "training.method.kind to lora",
        CHECKPOINTING | {"batch_size": 1, "dtype": "bfloat16"},
        CHECKPOINTING | {"batch_size": 1, "dtype": "bfloat16", "method": LORA},
    ),
]


@pytest.mark.parametrize(("what", "spec", "changed"), ADVICE)
def test_the_first_change_that_makes_it_fit_is_named_with_what_comes_of_it(
    what: str, spec: dict[str, Any], changed: dict[str, Any]
) -> None:
    # Long rows: activations in half the bytes are then more than the copies of weights.
    before, after = (_estimate(TrainingSpec(**each), max_length=16_384) for each in (spec, changed))
    largest, size = max(before.parts.items(), key=lambda part: part[1])
    with pytest.raises(TrainingError) as caught:
        before.check(after.total, "cuda:0")
    assert str(caught.value) == (
        f"training takes about {bytes_text(before.total)} of memory, {bytes_text(size)} of it "
        f"{largest}, but cuda:0 has {bytes_text(after.total)}. Set {what}: about "
        f"{bytes_text(after.total)}."
    )


def test_the_largest_micro_batch_that_fits_is_named() -> None:
    with pytest.raises(TrainingError) as caught:
        _estimate(TrainingSpec(batch_size=64, **CHECKPOINTING)).check(30 * GIB, "cuda:0")
    named = re.search(r"Set training\.micro_batch_size to (\d+): about", str(caught.value))
    assert named is not None
    sizes = [
        size
        for size in (1, 2, 4, 8, 16, 32)
        if _estimate(TrainingSpec(batch_size=64, micro_batch_size=size, **CHECKPOINTING)).total
        <= 30 * GIB
    ]
    assert int(named[1]) == max(sizes)


def test_more_gpus_are_named_where_nothing_else_is_left() -> None:
    least = CHECKPOINTING | {"micro_batch_size": 1, "dtype": "bfloat16", "method": LORA}
    spec = TrainingSpec(batch_size=12, **least)
    split = spec.model_copy(update={"parallelism": "fsdp2"})
    room = _estimate(split, num_processes=4).total
    assert _estimate(split, num_processes=3).total > room
    with pytest.raises(TrainingError, match=re.escape(FSDP2.format(4))):
        _estimate(spec).check(room, "cuda:0")
    with pytest.raises(TrainingError) as caught:
        _estimate(spec).check(room, "cpu")
    assert "fsdp2" not in str(caught.value)


def test_several_changes_are_named_where_one_is_not_enough() -> None:
    small = CHECKPOINTING | {"micro_batch_size": 1, "dtype": "bfloat16", "method": LORA}
    after = _estimate(TrainingSpec(**small), max_length=16_384)
    with pytest.raises(TrainingError) as caught:
        _estimate(TrainingSpec(), max_length=16_384).check(after.total, "cpu")
    assert str(caught.value).endswith(
        "Set training.gradient_checkpointing to true, training.micro_batch_size to 1, "
        "training.dtype to bfloat16 and training.method.kind to lora: about "
        f"{bytes_text(after.total)}."
    )


def test_shorter_rows_or_a_smaller_student_are_the_last_resort() -> None:
    least = CHECKPOINTING | {"micro_batch_size": 1, "dtype": "bfloat16", "method": LORA}
    spec = TrainingSpec(**least)
    room = _estimate(spec, max_length=4096).total
    with pytest.raises(TrainingError) as caught:
        _estimate(spec, max_length=8192).check(room, "cpu")
    assert "Set training.max_length to 4096, which leaves longer rows out: about" in str(
        caught.value
    )
    with pytest.raises(TrainingError, match=r"Choose a smaller student: .* about 3\.\d+ GiB\."):
        _estimate(spec).check(GIB, "cpu")


def test_processes_on_a_cpu_share_its_memory() -> None:
    estimate = _estimate(TrainingSpec(), num_processes=2)
    estimate.check(2 * estimate.total, "cpu")
    estimate.check(estimate.total, "cuda:0")
    with pytest.raises(TrainingError, match=r"but cpu has .* for each of 2 processes\."):
        estimate.check(2 * estimate.total - 2, "cpu")
