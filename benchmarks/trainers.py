"""One training by ours and by TRL's SFTTrainer: same rows, weights and settings, each step clocked.

    python -m benchmarks.trainers {ours,trl} WORK.json

trains once, as a file of :func:`run` says, and prints time, CPU and loss of each step and the most
memory that the process held. Rows of a batch are filled up on the right, the loss is on response
tokens, and nothing is saved.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel

from benchmarks.processes import REPO, ProcessError, measure
from distillery.data.chat import dump_messages, load_messages
from distillery.storage.store import Store
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef
from schemas.student import StudentSpec
from schemas.training import TrainingSpec

Trainer = Literal["ours", "trl"]
TRAINERS: tuple[Trainer, ...] = ("ours", "trl")
_TIMEOUT_S = 600.0


class Work(BaseModel):
    """What is trained, on what, and how."""

    store: StoreSpec
    """Where the rows are."""
    rows: DatasetRef
    """Training rows; every one is read once."""
    student: StudentSpec
    training: TrainingSpec
    soft_targets: DatasetRef | None = None

    @property
    def num_steps(self) -> int:
        """Return the optimizer steps of one epoch."""
        return self.rows.num_rows // self.training.batch_size


class Found(NamedTuple):
    """What a fresh process measured."""

    step_s: float
    """Mean of its steps, without the first ones."""
    cpu_s: float
    """CPU of the same."""
    losses: list[float]
    """Of all steps, nats per response token."""
    peak_bytes: int
    """The most resident memory that the process held, from its start on."""


def write_rows(store: Store, pairs: Sequence[tuple[str, str]]) -> DatasetRef:
    """Return training rows with these prompts and responses."""
    import pandas as pd

    from schemas.frames import TrainingFrame, arrow_schema

    rows = [
        {
            "prompt_id": str(number),
            "split": "train",
            "messages": dump_messages([{"role": "user", "content": prompt}]),
            "response": response,
            "reasoning": None,
            "teacher": None,
            "chosen_because": None,
        }
        for number, (prompt, response) in enumerate(pairs)
    ]
    schema = arrow_schema(TrainingFrame)
    with store.row_writer("rows", schema) as writer:
        writer.write(pd.DataFrame(rows, columns=schema.names))
    return writer.ref("rows")


def run(work: Work, trainer: Trainer, folder: Path, *, threads: int, dropped: int) -> Found:
    """Return what a fresh process measures.

    Args:
        work: What to train.
        trainer: Whose.
        folder: Scratch.
        threads: Of torch.
        dropped: First steps that do not count: memory is new to them.

    Raises:
        ProcessError: It failed.
    """
    file = folder / "work.json"
    file.write_text(work.model_dump_json(), "utf-8")
    environment = dict(os.environ) | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = ["-m", "benchmarks.trainers", trainer, str(file)]
    measure(command, folder=folder, environment=environment, timeout_s=_TIMEOUT_S)
    found = json.loads((folder / "output.txt").read_text("utf-8").splitlines()[-1])

    def per_step(clock_s: list[float]) -> float:
        return (clock_s[-1] - clock_s[dropped - 1]) / (len(clock_s) - dropped)

    step_s, cpu_s = per_step(found["times_s"]), per_step(found["cpu_s"])
    return Found(step_s, cpu_s, found["losses"], found["peak_bytes"])


def require_same_losses(ours: list[float], theirs: list[float], *, within: float = 1e-4) -> None:
    """Raise when two trainings differ in what they learnt: then their times say nothing.

    Args:
        ours: Losses of all steps.
        theirs: The same of the other.
        within: The share of a loss by which they may differ.
    """
    if len(ours) != len(theirs) or not np.allclose(ours, theirs, rtol=within, atol=0):
        raise ProcessError(f"ours and TRL's did not do the same work: losses {ours} and {theirs}.")


# -- One measurement --------------------------------------------------------------------------


class _Enough(Exception):
    """All steps are done."""


class _Clock:
    """Notes when each step is logged, and its loss; ends the training after the last, unsaved."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self.times_s: list[float] = []
        self.cpu_s: list[float] = []
        self.losses: list[float] = []

    def tick(self, figures: Mapping[str, Any]) -> None:
        """Note that a step is over."""
        self.times_s.append(time.perf_counter())
        self.cpu_s.append(time.process_time())
        self.losses.append(float(figures["loss"]))
        if len(self.times_s) == self._num_steps:
            raise _Enough

    def follow(self, train: Callable[[], object]) -> None:
        """Call ``train``, of whose steps each has to tick."""
        with contextlib.suppress(_Enough):
            train()
        assert len(self.times_s) == self._num_steps, f"{len(self.times_s)} steps were logged"


def _ours(work: Work, clock: _Clock) -> None:
    from distillery.training.job import TrainingJob
    from distillery.training.loop import train

    job = TrainingJob(
        rows=work.rows,
        prompts=work.rows,  # not read: the student has a tokenizer
        soft_targets=work.soft_targets,
        teacher=None,
        student=work.student,
        training=work.training,
        store=work.store,
        execution=ExecutionSpec(),
        checkpoints_uri="checkpoints",
    )
    with tempfile.TemporaryDirectory() as scratch:
        # Every log tells the progress, and every step is logged.
        clock.follow(lambda: train(job, Path(scratch), lambda _, __, figures: clock.tick(figures)))


def _trl(work: Work, clock: _Clock) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    from distillery.models.loading import quiet_transformers
    from distillery.models.students import open_student
    from distillery.training.adapters import held_dtype, with_adapters
    from distillery.training.batches import RowOrder, micro_batch

    quiet_transformers()
    training, num_steps = work.training, work.num_steps
    set_seed(training.seed)
    model, chat_format = open_student(work.student, (), dtype=held_dtype(training))
    model = with_adapters(model, training)

    class InOurOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> RowOrder:
            lengths = [len(ids) for ids in train_dataset["input_ids"]]
            size, seed = training.batch_size, training.seed
            return RowOrder(lengths, batch_size=size, steps=num_steps, seed=seed)

    class Clocked(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *_: Any, logs: Mapping[str, Any], **__: Any) -> None:
            clock.tick(logs)

    with tempfile.TemporaryDirectory() as scratch:
        rows = micro_batch(training, num_processes=1)
        arguments = SFTConfig(
            output_dir=scratch,
            max_steps=num_steps,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=training.batch_size // rows,
            learning_rate=training.learning_rate,
            lr_scheduler_type=training.schedule,
            warmup_steps=math.ceil(training.warmup_fraction * num_steps),
            weight_decay=training.weight_decay,
            adam_beta2=training.adam_beta2,
            max_grad_norm=training.max_grad_norm,
            max_length=None,
            bf16=training.dtype == "bfloat16",
            gradient_checkpointing=training.gradient_checkpointing,
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = InOurOrder(
            model,
            arguments,
            train_dataset=Dataset.from_list(_tokenized(work, chat_format)),
            processing_class=chat_format.tokenizer,
            callbacks=[Clocked()],
        )
        clock.follow(trainer.train)


def _tokenized(work: Work, chat_format: Any) -> list[dict[str, list[int]]]:
    """Return the rows as tokens and labels, the same that ours learns from."""
    rows = Store(work.store.root).dataset(work.rows).to_table().to_pylist()
    tokenized = [chat_format.row(load_messages(row["messages"]), row["response"]) for row in rows]
    return [dataclasses.asdict(tokens) for tokens in tokenized]


def main() -> None:
    """Train once."""
    from distillery.models.hardware import process_peak_bytes

    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("trainer", choices=TRAINERS)
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args()
    work = Work.model_validate_json(arguments.work.read_text("utf-8"))
    clock = _Clock(work.num_steps)
    (_trl if arguments.trainer == "trl" else _ours)(work, clock)
    found = {"times_s": clock.times_s, "cpu_s": clock.cpu_s, "losses": clock.losses}
    print(json.dumps(found | {"peak_bytes": process_peak_bytes()}))


if __name__ == "__main__":
    main()
