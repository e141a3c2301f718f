"""Tokens per second on a GPU, and the share of its bf16 peak: models of 0.5 B and 1.5 B parameters.

    python -m benchmarks.gpu --once {hard,soft} --model {0.5B,1.5B}

measures once and prints JSON. The models are Qwen2.5's of these sizes, new, with their vocabulary
of 151,936; the trainer is ours, with float32 master weights and both passes in bf16. Rows are
handed over in memory, so neither a store nor `datasets` nor Prefect is needed.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.processes import REPO, measure
from benchmarks.report import Metric
from benchmarks.results import Line
from schemas.objectives import HardTargets, SoftTargets
from schemas.training import TrainingSpec

VARIANTS = ("hard", "soft")
K = 64
NUM_STEPS, NUM_DROPPED = 12, 4
_MATMUL_SIZE, _NUM_MATMULS = 8192, 30
_TIMEOUT_S = 600.0


class Size(NamedTuple):
    """A model and what it is trained on."""

    config: dict[str, int]
    batch_size: int
    row_tokens: int
    prompt_tokens: int


_VOCAB_SIZE = 151_936
SIZES = {
    "0.5B": Size(
        {"vocab_size": _VOCAB_SIZE, "hidden_size": 896, "intermediate_size": 4864}
        | {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2},
        batch_size=8, row_tokens=2048, prompt_tokens=256,
    ),
    "1.5B": Size(
        {"vocab_size": _VOCAB_SIZE, "hidden_size": 1536, "intermediate_size": 8960}
        | {"num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2},
        batch_size=8, row_tokens=2048, prompt_tokens=256,
    ),
}  # fmt: skip


class Found(NamedTuple):
    """What one process measured."""

    step_s: float
    """Mean of the steps without the first ones."""
    tokens_per_s: float
    flops_per_s: float
    """Of the model's own operations: what is computed again is not counted."""
    peak_flops_per_s: float
    """Of a product of two large bf16 matrices, in the same process."""
    peak_bytes: int
    gradient_checkpointing: bool
    """Whether activations had to be computed again because memory ran out."""


def obstacle() -> str | None:
    """Return why nothing can be measured here; None when it can."""
    import torch

    if not torch.cuda.is_available():
        return "the steps on a GPU are skipped: this machine has none that torch can use."
    return None


def measure_gpu(folder: Path, *, repeats: int) -> list[Line]:
    """Return the lines of the table; each value is of fresh processes that took turns."""
    lines = []
    for model in SIZES:
        found: dict[str, list[Found]] = {variant: [] for variant in VARIANTS}
        for repeat in range(repeats):
            for variant in VARIANTS if repeat % 2 == 0 else VARIANTS[::-1]:
                one = _in_a_process(folder, variant, model)
                found[variant].append(one)
                said = f"gpu, {model}, {variant}, {repeat + 1}: {one.tokens_per_s:,.0f} tokens/s"
                print(said, file=sys.stderr, flush=True)
        lines += _lines(model, found)
    return lines


def _in_a_process(folder: Path, variant: str, model: str) -> Found:
    path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = dict(os.environ) | {"PYTHONPATH": path}
    command = ["-m", "benchmarks.gpu", "--once", variant, "--model", model]
    measure(command, folder=folder, environment=environment, timeout_s=_TIMEOUT_S)
    return Found(**json.loads((folder / "output.txt").read_text("utf-8").splitlines()[-1]))


def _lines(model: str, found: dict[str, list[Found]]) -> list[Line]:
    hard, soft = found["hard"], found["soft"]
    again = any(one.gradient_checkpointing for one in hard + soft)
    case = f"step, GPU, {model}{', activations computed again' if again else ''}"
    over = [one.step_s / other.step_s for one, other in zip(soft, hard, strict=True)]
    lines = [
        Line(case, Metric("soft targets (k = 64) over hard targets", goal=1.1, digits=2), over)
    ]
    for name, runs in (("hard", hard), ("soft", soft)):
        share = [100 * one.flops_per_s / one.peak_flops_per_s for one in runs]
        lines += [
            Line(case, Metric(f"{name}, % of the bf16 peak", goal=50, better="higher"), share),
            Line(case, Metric(f"{name}, tokens/s"), [one.tokens_per_s for one in runs]),
            Line(case, Metric(f"{name}, peak GiB", digits=1),
                 [one.peak_bytes / 2**30 for one in runs]),
        ]  # fmt: skip
    peaks = [one.peak_flops_per_s / 1e12 for one in hard + soft]
    return [*lines, Line(case, Metric("measured bf16 peak, TFLOP/s"), peaks)]


# -- One measurement --------------------------------------------------------------------------


class Rows:
    """Rows of random tokens in memory, in the shape that the trainer reads."""

    def __init__(self, size: Size, num_rows: int, *, is_soft: bool) -> None:
        """Draw ``num_rows`` rows, with soft targets if wanted."""
        draws = np.random.default_rng(0)
        vocab_size = size.config["vocab_size"]
        num_response = size.row_tokens - size.prompt_tokens
        self._rows = []
        for number in range(num_rows):
            ids = draws.integers(vocab_size, size=size.row_tokens)
            labels = ids.copy()
            labels[: size.prompt_tokens] = -100
            row = {"row": number, "prompt_id": str(number), "length": size.row_tokens}
            row |= {"input_ids": ids, "labels": labels}
            self._rows.append(row | (_soft(number, num_response, vocab_size) if is_soft else {}))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> Any:
        """Return a row, or a column."""
        if isinstance(key, str):
            return np.array([row[key] for row in self._rows])
        return self._rows[key]


def _soft(seed: int, num_tokens: int, vocab_size: int) -> dict[str, Any]:
    from benchmarks.synthetic import random_targets

    ids_NK, log_p_NK, log_rest_N = random_targets(
        num_tokens, vocab_size=vocab_size, k=K, spread="zipf", seed=seed
    )
    return {
        "topk_ids": ids_NK.ravel(),
        "topk_log_probs": log_p_NK.ravel().astype(np.float16),
        "log_rest": log_rest_N,
        "counts": np.empty(0),
    }


def flops_per_step(size: Size, num_parameters: int) -> float:
    """Return the floating-point operations of one optimizer step.

    Forward and backward take 6 per weight and token. The input embedding is a look-up, the output
    layer is met at response tokens only. Attention takes 6 * T * heads * head size per layer and
    token: scores and values over half of T on average, as the mask is causal, times 3 for both
    passes. ``num_parameters`` counts the tied embedding once.
    """
    config = size.config
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    output = width * config["vocab_size"]
    num_tokens = size.batch_size * size.row_tokens
    num_response = size.batch_size * (size.row_tokens - size.prompt_tokens)
    attention = 6.0 * size.row_tokens * width * layers
    inner = (6.0 * (num_parameters - output) + attention) * num_tokens
    return inner + 6.0 * output * num_response


def measure_once(size: Size, variant: str, *, device: str = "cuda") -> Found:
    """Return what training takes here; where memory runs out, activations are computed again."""
    import torch

    try:
        return _measure_once(size, variant, device, recompute=False)
    except torch.OutOfMemoryError:
        pass  # outside of this block, so that nothing of the failed attempt is held
    gc.collect()
    torch.cuda.empty_cache()
    return _measure_once(size, variant, device, recompute=True)


def _measure_once(size: Size, variant: str, device: str, *, recompute: bool) -> Found:
    import torch
    from transformers import PrinterCallback, Qwen2Config, Qwen2ForCausalLM, TrainerCallback

    from distillery.models.output_layer import SplitModel
    from distillery.objectives.base import Inputs
    from distillery.objectives.choice import objective_class
    from distillery.storage.store import Store
    from distillery.training.batches import collator
    from distillery.training.trainer import StudentTrainer, training_arguments

    is_gpu = device == "cuda"
    wait: Callable[[], None] = torch.cuda.synchronize if is_gpu else lambda: None
    peak = matmul_flops_per_s(device, wait) if is_gpu else 1.0
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2ForCausalLM(Qwen2Config(**size.config, tie_word_embeddings=True))
    training = TrainingSpec(
        objective=SoftTargets(k=K) if variant == "soft" else HardTargets(),
        batch_size=size.batch_size,
        micro_batch_size=size.batch_size,
        max_length=size.row_tokens,
        dtype="bfloat16",
        gradient_checkpointing=recompute,
        device=device,
    )
    times_s: list[float] = []

    class Clocked(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait()
            times_s.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        # A trial keeps nothing and learns nothing, at full cost.
        arguments = training_arguments(training, Path(folder), steps=NUM_STEPS, is_trial=True)
        rows = Rows(size, size.batch_size, is_soft=variant == "soft")
        # Rows come with tokens and probabilities, so no tokenizer and no scores are read.
        objective = objective_class(training).open(
            Inputs(
                training=training,
                store=Store(folder),
                chat_format=None,  # type: ignore[arg-type]
                vocab_size=size.config["vocab_size"],
                scores=None,
                teacher=None,
            )
        )
        trainer = StudentTrainer(
            model,
            arguments,
            {"train": rows, "validation": []},
            collator(training, 0, objective),
            objective,
            SplitModel(model),
            training,
            callbacks=[Clocked()],
        )
        trainer.remove_callback(PrinterCallback)
        if is_gpu:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    kept = times_s[NUM_DROPPED - 1 :]
    step_s = (kept[-1] - kept[0]) / (len(kept) - 1)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return Found(
        step_s=step_s,
        tokens_per_s=size.batch_size * size.row_tokens / step_s,
        flops_per_s=flops_per_step(size, num_parameters) / step_s,
        peak_flops_per_s=peak,
        peak_bytes=torch.cuda.max_memory_allocated() if is_gpu else 0,
        gradient_checkpointing=recompute,
    )


def matmul_flops_per_s(device: str, wait: Callable[[], None]) -> float:
    """Return the operations per second of a product of two large bf16 matrices."""
    import torch

    shape = (_MATMUL_SIZE, _MATMUL_SIZE)
    one, two = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(_NUM_MATMULS):  # until the clock has settled
        one @ two
    wait()
    began = time.perf_counter()
    for _ in range(_NUM_MATMULS):
        one @ two
    wait()
    return 2.0 * _MATMUL_SIZE**3 * _NUM_MATMULS / (time.perf_counter() - began)


def main() -> None:
    """Measure one variant once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--once", choices=VARIANTS, required=True)
    parser.add_argument("--model", choices=SIZES, required=True)
    arguments = parser.parse_args()
    print(json.dumps(measure_once(SIZES[arguments.model], arguments.once)._asdict()))


if __name__ == "__main__":
    main()
