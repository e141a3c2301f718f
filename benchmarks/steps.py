"""Time of an optimizer step on the CPU: ours on hard and on soft targets, and TRL's SFTTrainer.

    python -m benchmarks.steps {hard,soft,trl} FOLDER

measures once, on what :func:`prepare` wrote into FOLDER, and prints time and loss of each step. All
three train the same new Llama on the same rows, in the same order, at the same settings: float32,
AdamW, rows of a batch filled up on the right, the loss on response tokens, nothing saved.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.processes import REPO, ProcessError, measure
from benchmarks.report import Metric
from benchmarks.results import Line
from benchmarks.synthetic import make_targets
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.objectives import HardTargets, SoftTargets
from schemas.refs import DatasetRef
from schemas.student import FromScratchStudent
from schemas.training import TrainingSpec

VARIANTS = ("hard", "soft", "trl")
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
_TIMEOUT_S = 600.0
_SAME_LOSS = 1e-4
_K = 64


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a measurement reads from its folder."""

    rows: DatasetRef
    soft_targets: DatasetRef

    @classmethod
    def read(cls, folder: Path) -> "Prepared":
        """Return what :func:`prepare` wrote."""
        found = json.loads((folder / "prepared.json").read_text("utf-8"))
        return cls(**{name: DatasetRef.model_validate(ref) for name, ref in found.items()})


def prepare(folder: Path, vocab_size: int) -> None:
    """Write a tokenizer of ``vocab_size`` words, rows of random words, and soft targets."""
    import pandas as pd

    from distillery.data.chat import dump_messages
    from distillery.storage.store import Store
    from schemas.frames import TrainingFrame, arrow_schema

    _save_tokenizer(folder / "tokenizer", vocab_size)
    draws = np.random.default_rng(0)
    lengths = draws.integers(*ROW_WORDS, size=NUM_STEPS * BATCH_SIZE)

    def text(num_words: int) -> str:
        numbers = draws.integers(vocab_size - len(_SPECIAL_TOKENS), size=num_words)
        return " ".join(f"w{number}" for number in numbers)

    rows = [
        {
            "prompt_id": str(number),
            "split": "train",
            "messages": dump_messages([{"role": "user", "content": text(length // 3)}]),
            "response": text(length - length // 3),
            "reasoning": None,
        }
        for number, length in enumerate(lengths.tolist())
    ]
    store, schema = Store(str(folder / "store")), arrow_schema(TrainingFrame)
    with store.row_writer("rows", schema) as writer:
        writer.write(pd.DataFrame(rows, columns=schema.names))
    ref = writer.ref("rows")
    targets = make_targets(store, ref, str(folder / "tokenizer"), k=_K)
    made = {"rows": ref.model_dump(), "soft_targets": targets.model_dump()}
    (folder / "prepared.json").write_text(json.dumps(made), "utf-8")


def _save_tokenizer(folder: Path, vocab_size: int) -> None:
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
        prepare(place, vocab_size)
        runs: dict[str, list[Found]] = {variant: [] for variant in VARIANTS}
        for repeat in range(repeats):
            # Who goes first alternates: the pace of a machine drifts.
            for variant in VARIANTS if repeat % 2 == 0 else VARIANTS[::-1]:
                found = run_variant(place, variant, threads)
                runs[variant].append(found)
                said = f"steps, vocabulary {vocab_size:,}, {variant}, {repeat + 1}"
                print(f"{said}: {found.step_s:.3f} s", file=sys.stderr, flush=True)
            require_same_losses(runs["hard"][-1].losses, runs["trl"][-1].losses)
        lines += _lines(vocab_size, runs)
    return lines


def require_same_losses(ours: list[float], theirs: list[float]) -> None:
    """Raise when two trainings differ in what they learnt: then their times say nothing."""
    if len(ours) != len(theirs) or not np.allclose(ours, theirs, rtol=_SAME_LOSS):
        raise ProcessError(f"ours and TRL's did not do the same work: losses {ours} and {theirs}.")


def _lines(vocab_size: int, runs: dict[str, list["Found"]]) -> list[Line]:
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


class Found(NamedTuple):
    """What a fresh process measured."""

    step_s: float
    """Mean of its steps, without the first ones."""
    cpu_s: float
    """CPU of the same."""
    losses: list[float]
    """Of all steps, nats per response token."""


def run_variant(folder: Path, variant: str, threads: int) -> Found:
    """Return what a fresh process measures in ``folder``."""
    environment = dict(os.environ) | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(REPO)}
    command = ["-m", "benchmarks.steps", variant, str(folder)]
    measure(command, folder=folder, environment=environment, timeout_s=_TIMEOUT_S)
    found = json.loads((folder / "output.txt").read_text("utf-8").splitlines()[-1])
    return Found(_per_step(found["times_s"]), _per_step(found["cpu_s"]), found["losses"])


def _per_step(clock_s: list[float]) -> float:
    """Return the mean time of the steps after the first ones."""
    return (clock_s[-1] - clock_s[NUM_DROPPED - 1]) / (NUM_STEPS - NUM_DROPPED)


# -- One measurement --------------------------------------------------------------------------


def _training(objective: str) -> TrainingSpec:
    return TrainingSpec(
        objective=SoftTargets(k=_K) if objective == "soft" else HardTargets(),
        learning_rate=1e-4,
        batch_size=BATCH_SIZE,
        micro_batch_size=MICRO_BATCH_SIZE,
        epochs=1,
        max_length=512,
        evaluations=1,
        device="cpu",
    )


def _student(folder: Path) -> FromScratchStudent:
    return FromScratchStudent(
        num_layers=4,
        hidden_size=256,
        intermediate_size=688,
        num_heads=4,
        max_length=512,
        tokenizer=str(folder / "tokenizer"),
    )


class _Enough(Exception):
    """All steps are done."""


class _Clock:
    """Notes when each step is logged, and its loss; ends the training after the last, unsaved."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self.cpu_s: list[float] = []
        self.losses: list[float] = []

    def tick(self, figures: Mapping[str, Any]) -> None:
        """Note that a step is over."""
        self.times_s.append(time.perf_counter())
        self.cpu_s.append(time.process_time())
        self.losses.append(float(figures["loss"]))
        if len(self.times_s) == NUM_STEPS:
            raise _Enough

    def follow(self, train: Callable[[], object]) -> None:
        """Call ``train``, of whose steps each has to tick."""
        with contextlib.suppress(_Enough):
            train()
        assert len(self.times_s) == NUM_STEPS, f"{len(self.times_s)} steps were logged"


def _ours(folder: Path, objective: str, clock: _Clock) -> None:
    from distillery.training.job import TrainingJob
    from distillery.training.loop import train

    prepared = Prepared.read(folder)
    job = TrainingJob(
        rows=prepared.rows,
        prompts=prepared.rows,  # not read: the student has a tokenizer
        soft_targets=prepared.soft_targets if objective == "soft" else None,
        teacher=None,
        student=_student(folder),
        training=_training(objective),
        store=StoreSpec(root=str(folder / "store")),
        execution=ExecutionSpec(),
        checkpoints_uri="checkpoints",
    )
    with tempfile.TemporaryDirectory() as scratch:
        # Every log tells the progress, and every step is logged.
        clock.follow(lambda: train(job, Path(scratch), lambda _, __, figures: clock.tick(figures)))


def _trl(folder: Path, clock: _Clock) -> None:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    from distillery.models.loading import quiet_transformers
    from distillery.models.students import open_student
    from distillery.training.batches import RowOrder

    quiet_transformers()
    training = _training("hard")
    set_seed(training.seed)
    model, chat_format = open_student(_student(folder), (), dtype=torch.float32)

    class InOurOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> RowOrder:
            lengths = [len(ids) for ids in train_dataset["input_ids"]]
            return RowOrder(lengths, batch_size=BATCH_SIZE, steps=NUM_STEPS, seed=training.seed)

    class Clocked(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *_: Any, logs: Mapping[str, Any], **__: Any) -> None:
            clock.tick(logs)

    with tempfile.TemporaryDirectory() as scratch:
        arguments = SFTConfig(
            output_dir=scratch,
            max_steps=NUM_STEPS,
            per_device_train_batch_size=MICRO_BATCH_SIZE,
            gradient_accumulation_steps=BATCH_SIZE // MICRO_BATCH_SIZE,
            learning_rate=training.learning_rate,
            lr_scheduler_type=training.schedule,
            warmup_steps=1,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            max_length=None,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        rows = Dataset.from_list(_tokenized(folder, chat_format))
        trainer = InOurOrder(
            model,
            arguments,
            train_dataset=rows,
            processing_class=chat_format.tokenizer,
            callbacks=[Clocked()],
        )
        clock.follow(trainer.train)


def _tokenized(folder: Path, chat_format: Any) -> list[dict[str, list[int]]]:
    """Return the rows as tokens and labels, the same that ours learns from."""
    from distillery.data.chat import load_messages
    from distillery.storage.store import Store

    rows = Store(str(folder / "store")).dataset(Prepared.read(folder).rows).to_table().to_pylist()
    tokenized = [chat_format.row(load_messages(row["messages"]), row["response"]) for row in rows]
    return [dataclasses.asdict(tokens) for tokens in tokenized]


def main() -> None:
    """Measure one variant once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    clock = _Clock()
    if arguments.variant == "trl":
        _trl(arguments.folder, clock)
    else:
        _ours(arguments.folder, arguments.variant, clock)
    print(json.dumps(vars(clock)))


if __name__ == "__main__":
    main()
