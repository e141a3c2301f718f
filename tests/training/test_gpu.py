"""What only a GPU shows of training: precision, memory, and resuming, on one GPU; NCCL on two.

    pytest --noconftest -m gpu tests/training/test_gpu.py

runs on a machine with torch, transformers, peft, accelerate, tokenizers, safetensors, numpy,
pydantic, psutil, pyarrow, fsspec, filelock, jinja2, jsonschema and pytest alone. Rows are made in
memory, so neither `datasets` nor a store nor Prefect is needed; `--noconftest` leaves out what
other tests set up. The last test, of several GPUs, needs all that the library does.
"""

import gc
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback

from distillery.models.chat_format import IGNORED
from distillery.models.head import Head
from distillery.models.output_layer import SplitModel
from distillery.objectives.base import Inputs
from distillery.objectives.choice import objective_class
from distillery.objectives.losses import default_chunk_tokens, response_losses
from distillery.training.adapters import held_dtype, with_adapters
from distillery.training.batches import collator
from distillery.training.memory import MemoryEstimate, ModelShape
from distillery.training.preflight import check_packing, run_trial
from distillery.training.trainer import StudentTrainer, training_arguments
from schemas.objectives import HardTargets, SoftTargets
from schemas.training import LoraMethod, TrainingSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="this machine has no GPU that torch can use"
    ),
]

DEVICE = "cuda"
VOCAB_SIZE, PROMPT_TOKENS = 512, 8
LORA = LoraMethod(r=16, alpha=32)
LEARN = TrainingSpec(
    objective=HardTargets(),
    learning_rate=3e-3,
    batch_size=8,
    epochs=1,
    max_length=64,
    evaluations=1,
    dtype="bfloat16",
    weight_decay=0.0,
    device="auto",
)


class Rows:
    """Rows of random tokens in memory, in the shape that the trainer reads."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            values = [row[key] for row in self._rows]
            return values if key == "prompt_id" else torch.tensor(values)
        return self._rows[key]


NO_ROWS = Rows([])


def _rows(num_rows: int, num_tokens: int = 40, vocab_size: int = VOCAB_SIZE) -> Rows:
    """Draw rows that differ in length by a few tokens, each for a teacher as well."""
    draws = torch.Generator().manual_seed(0)

    def row(number: int) -> dict[str, Any]:
        length = num_tokens - number % 4
        ids = torch.randint(3, vocab_size, (length,), generator=draws)
        labels = ids.clone()
        labels[:PROMPT_TOKENS] = IGNORED
        row = {"row": number, "prompt_id": str(number), "length": length}
        return row | {"input_ids": ids, "labels": labels}

    return Rows(map(row, range(num_rows)))


def _new_model(
    width: int = 128, layers: int = 2, vocab_size: int = VOCAB_SIZE, seed: int = 0
) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        initializer_range=0.1 if width < 512 else 0.02,
    )
    return LlamaForCausalLM(config).to(DEVICE)


def _student(training: TrainingSpec, **shape: int) -> Any:
    return with_adapters(_new_model(**shape).to(held_dtype(training)), training)


def _trainer(
    model: Any,
    training: TrainingSpec,
    rows: Rows,
    folder: Path,
    *,
    steps: int = 2,
    is_trial: bool = False,
    teacher: Any = None,
) -> StudentTrainer:
    split = SplitModel(model)
    arguments = training_arguments(training, folder, steps=steps, is_trial=is_trial)
    assert arguments.device.type == DEVICE
    nobody: Any = None  # rows are tokens: neither a store nor a tokenizer is read
    beside: Any = None if teacher is None else SimpleNamespace(model=teacher)
    vocab_size = model.config.vocab_size
    inputs = Inputs(training, nobody, nobody, vocab_size, scores=None, teacher=beside)
    objective = objective_class(training).open(inputs)
    collate = collator(training, 0, objective)
    splits = {"train": rows, "validation": NO_ROWS}
    trainer = StudentTrainer(model, arguments, splits, collate, objective, split, training)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _losses(trainer: StudentTrainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def _share_known(model: Any, rows: Rows) -> float:
    """Return how many response tokens the model writes as they are in ``rows``."""
    SplitModel.join(model)
    model.eval()
    known: list[bool] = []
    for at in range(len(rows)):
        row = rows[at]
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
            written = model(row["input_ids"][None].to(DEVICE)).logits[0, :-1].argmax(-1).cpu()
        labels = row["labels"][1:]
        known += (written == labels)[labels != IGNORED].tolist()
    return sum(known) / len(known)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
def test_the_loss_in_chunks_is_that_of_all_logits_in_float64(
    dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    num_tokens, width, vocab_size = 700, 256, 5000
    hidden = torch.randn(num_tokens, width, device=DEVICE).to(dtype).requires_grad_()
    weight = (torch.randn(vocab_size, width, device=DEVICE) / 16).to(dtype).requires_grad_()
    labels = torch.randint(vocab_size, (num_tokens,), device=DEVICE)
    losses: Any = response_losses(
        hidden, Head(weight), labels, vocab_size=vocab_size, normaliser=num_tokens, chunk_tokens=96
    )
    losses.loss.backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected: Any = torch.nn.functional.cross_entropy(exact[0] @ exact[1].T, labels)
    expected.backward()
    torch.testing.assert_close(losses.loss.double(), expected, rtol=tolerance, atol=0)
    for found, wanted in zip((hidden, weight), exact, strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        scale = float(wanted.grad.abs().max())
        torch.testing.assert_close(found.grad.double(), wanted.grad, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("way", [{}, {"method": LORA}, {"batching": "packed"}], ids=str)
def test_a_batch_is_learnt_by_heart_in_half_precision(tmp_path: Path, way: dict[str, Any]) -> None:
    training = LEARN.model_copy(update=way | {"micro_batch_size": 4})
    rows = _rows(LEARN.batch_size)
    model = _student(training)
    trainer = _trainer(model, training, rows, tmp_path, steps=200)
    trainer.train()
    losses = _losses(trainer)
    assert losses[0] > 4
    assert losses[-1] < 0.1
    assert _share_known(model, rows) == 1.0


def test_a_student_that_overfits_one_batch_agrees_with_the_teacher_beside_it(
    tmp_path: Path,
) -> None:
    online = SoftTargets(source="online", hard_weight=0.0, soft_weight=1.0)
    training = LEARN.model_copy(update={"objective": online})
    teacher = _new_model(seed=1).bfloat16().requires_grad_(False)
    rows = _rows(LEARN.batch_size)
    both = Rows(
        row | {"teacher_input_ids": row["input_ids"], "teacher_labels": row["labels"]}
        for row in (rows[at] for at in range(len(rows)))
    )
    trainer = _trainer(_student(training), training, both, tmp_path, steps=200, teacher=teacher)
    trainer.train()
    divergence = _losses(trainer, "soft_loss")
    assert divergence[-1] < 0.05 < 0.5 < divergence[0]


def test_packed_rows_are_kept_apart(tmp_path: Path) -> None:
    check_packing(_new_model(), _rows(2))
    check_packing(_new_model().bfloat16(), _rows(2))


_SHAPE = {"width": 1024, "layers": 8, "vocab_size": 32_000}


@pytest.mark.parametrize(
    "way",
    [
        {"dtype": "float32"},
        {},
        {"gradient_checkpointing": True},
        {"method": LORA},
        {"method": LORA, "gradient_checkpointing": True},
        {"micro_batch_size": 2},
    ],
    ids=str,
)
def test_two_steps_take_about_what_was_estimated(tmp_path: Path, way: dict[str, Any]) -> None:
    training = LEARN.model_copy(update={"micro_batch_size": 8, "max_length": 1024} | way)
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = _student(training, **_SHAPE)
    parameters = list(model.parameters())
    rows = _rows(training.batch_size, training.max_length, _SHAPE["vocab_size"])
    shape = ModelShape.of(model.config, _SHAPE["vocab_size"])
    assert shape is not None
    estimate = MemoryEstimate(
        shape=shape,
        num_parameters=sum(p.numel() for p in parameters),
        num_trainable=sum(p.numel() for p in parameters if p.requires_grad),
        training=training,
        max_length=training.max_length,
        vocab_size=_SHAPE["vocab_size"],
        teacher=None,
        teacher_length=0,
        num_processes=1,
        chunk_tokens=default_chunk_tokens(_SHAPE["vocab_size"], torch.device(DEVICE)),
        holds_logits=False,
    )
    found = run_trial(_trainer(model, training, rows, tmp_path, is_trial=True))
    ratio = (found["trial_peak_bytes"] - before) / estimate.total
    assert 0.6 < ratio < 1.3, f"{ratio:.2f} of {estimate.sentence}"


def _trained(training: TrainingSpec, folder: Path, resume: Path | None = None) -> Any:
    """Return losses and trained weights of ten steps, with a checkpoint after the fifth."""
    model = _student(training)
    trainer = _trainer(model, training, _rows(40), folder, steps=10)
    trainer.train(resume_from_checkpoint=resume and str(resume))
    weights = {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}
    return _losses(trainer), weights


@pytest.mark.parametrize("way", [{}, {"method": LORA}], ids=["full", "lora"])
def test_a_training_that_resumes_strays_no_further_than_one_that_is_repeated(
    tmp_path: Path, way: dict[str, Any]
) -> None:
    """On most GPUs not at all; sums whose order the GPU chooses would move both alike."""
    training = LEARN.model_copy(update=way | {"evaluations": 2})
    losses, weights = _trained(training, tmp_path / "first")
    same_losses, same_weights = _trained(training, tmp_path / "again")
    checkpoint = tmp_path / "first" / "checkpoint-5"
    resumed_losses, resumed_weights = _trained(training, tmp_path / "resumed", checkpoint)
    assert len(losses) == len(resumed_losses) == 10

    def furthest(others: dict[str, Any]) -> float:
        return max(float((weights[name] - others[name]).abs().max()) for name in weights)

    assert furthest(resumed_weights) <= 4 * furthest(same_weights)
    if same_losses == losses:
        assert resumed_losses == losses


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has no second GPU")
def test_weights_split_between_gpus_learn_what_whole_ones_learn(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    pytest.importorskip("pandas")
    from tests.fixtures_training import FAST, Bench, rows_to_learn

    found = {}
    for parallelism in ("ddp", "fsdp2"):
        bench = Bench(tmp_path / parallelism, rows_to_learn())
        several = {"device": "cuda", "num_processes": 2, "parallelism": parallelism}
        facts: Any = bench.train(training=FAST.model_copy(update=several)).manifest.facts
        found[parallelism] = [entry["loss"] for entry in facts["curve"] if "loss" in entry]
    assert found["fsdp2"] == pytest.approx(found["ddp"], rel=1e-4)
    assert found["ddp"][-1] < 0.8 * found["ddp"][0]
