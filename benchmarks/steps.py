"""Time of an optimizer step on the CPU: ours on hard and on soft targets, and TRL's SFTTrainer.

All three train the same new Llama on the same rows of random words, in float32
(:mod:`benchmarks.trainers`).
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.report import Metric
from benchmarks.results import Line
from benchmarks.synthetic import make_targets
from benchmarks.trainers import Found, Trainer, Work, require_same_losses, run, write_rows
from distillery.storage.store import Store
from schemas.execution import StoreSpec
from schemas.objectives import HardTargets, SoftTargets
from schemas.student import FromScratchStudent
from schemas.training import TrainingSpec

VARIANTS: Mapping[str, Trainer] = {"hard": "ours", "soft": "ours", "trl": "trl"}
"""What is measured, and by whose trainer."""

VOCABULARIES = (8_192, 32_000)
"""Sizes of the vocabulary: with 4 layers of width 256 the output layer is 40 % and 72 % of the
weights that a token meets; in a Qwen2.5 of 0.5 B it is 28 %."""

NUM_STEPS, NUM_DROPPED = 6, 2
BATCH_SIZE, MICRO_BATCH_SIZE = 8, 4
ROW_WORDS = (40, 160)
"""Shortest and longest row; a third of it is the prompt."""
_SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_K = 64


def prepare(folder: Path, vocab_size: int) -> dict[str, Work]:
    """Return the work of each variant: a new Llama of ``vocab_size`` words, on random words."""
    tokenizer = str(folder / "tokenizer")
    save_tokenizer(folder / "tokenizer", vocab_size)
    draws = np.random.default_rng(0)
    lengths = draws.integers(*ROW_WORDS, size=NUM_STEPS * BATCH_SIZE).tolist()

    def text(num_words: int) -> str:
        numbers = draws.integers(vocab_size - len(_SPECIAL_TOKENS), size=num_words)
        return " ".join(f"w{number}" for number in numbers)

    spec = StoreSpec(root=str(folder / "store"))
    store = Store(spec.root)
    rows = write_rows(
        store, [(text(length // 3), text(length - length // 3)) for length in lengths]
    )
    student = FromScratchStudent(
        num_layers=4,
        hidden_size=256,
        intermediate_size=688,
        num_heads=4,
        max_length=512,
        tokenizer=tokenizer,
    )
    training = TrainingSpec(
        objective=HardTargets(),
        learning_rate=1e-4,
        batch_size=BATCH_SIZE,
        micro_batch_size=MICRO_BATCH_SIZE,
        epochs=1,
        max_length=512,
        evaluations=1,
        device="cpu",
    )
    hard = Work(store=spec, rows=rows, student=student, training=training)
    soft = Work(
        store=spec,
        rows=rows,
        student=student,
        training=training.model_copy(update={"objective": SoftTargets(k=_K)}),
        soft_targets=make_targets(store, rows, tokenizer, k=_K),
    )
    return {"hard": hard, "soft": soft, "trl": hard}


def save_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a tokenizer of ``vocab_size`` words, w0 and so on, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*_SPECIAL_TOKENS, *(f"w{n}" for n in range(vocab_size - len(_SPECIAL_TOKENS)))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|pad|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=list(_SPECIAL_TOKENS[2:]),
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _CHAT_TEMPLATE
    fast.save_pretrained(folder)


def measure_steps(folder: Path, *, repeats: int, threads: int) -> list[Line]:
    """Return the lines of the table; each value is of fresh processes that took turns."""
    lines = []
    for vocab_size in VOCABULARIES:
        place = folder / str(vocab_size)
        place.mkdir()
        works = prepare(place, vocab_size)
        runs: dict[str, list[Found]] = {variant: [] for variant in VARIANTS}
        for repeat in range(repeats):
            # Who goes first alternates: the pace of a machine drifts.
            for variant in list(VARIANTS)[:: 1 if repeat % 2 == 0 else -1]:
                found = run_variant(works, variant, place, threads)
                runs[variant].append(found)
                said = f"steps, vocabulary {vocab_size:,}, {variant}, {repeat + 1}"
                print(f"{said}: {found.step_s:.3f} s", file=sys.stderr, flush=True)
            require_same_losses(runs["hard"][-1].losses, runs["trl"][-1].losses)
        lines += _lines(vocab_size, runs)
    return lines


def run_variant(works: Mapping[str, Work], variant: str, folder: Path, threads: int) -> Found:
    """Return what a fresh process measures."""
    trainer = VARIANTS[variant]
    return run(works[variant], trainer, folder, threads=threads, dropped=NUM_DROPPED)


def _lines(vocab_size: int, runs: Mapping[str, list[Found]]) -> list[Line]:
    case = f"step, CPU, vocabulary {vocab_size:,}"
    lines = []
    for over, under, name, goal in (
        ("soft", "hard", "soft targets (k = 64) over hard targets", 1.1),
        ("hard", "trl", "hard targets over TRL's SFTTrainer", 1.0),
    ):
        pairs = list(zip(runs[over], runs[under], strict=True))
        times = [one.step_s / other.step_s for one, other in pairs]
        cpus = [one.cpu_s / other.cpu_s for one, other in pairs]
        lines += [
            Line(case, Metric(name, goal=goal, digits=2), times),
            Line(case, Metric(f"{name}, in CPU seconds", digits=2), cpus),
        ]
    for variant, name in zip(VARIANTS, ("hard", "soft", "TRL"), strict=True):
        times = [found.step_s for found in runs[variant]]
        lines.append(Line(case, Metric(f"{name}, s per step", digits=3), times))
    return lines
