"""LoRA of a pretrained model with a vocabulary of 262,144, in bfloat16 on the CPU: ours and TRL's.

The model is Gemma 3 270M, in which two thirds of the weights are the output layer. It is read from
the folder that DISTILLERY_GEMMA names, or from where the tests keep it. Rows are made up of
English words, as long as the rows of the tasks that they stand for.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.gemma import CACHE
from benchmarks.report import Metric
from benchmarks.results import Line
from benchmarks.trainers import TRAINERS, Found, Trainer, Work, require_same_losses, run, write_rows
from distillery.data.chat import load_messages
from distillery.models.loading import ModelFiles
from distillery.storage.store import Store
from distillery.training.batches import RowOrder
from schemas.execution import StoreSpec
from schemas.student import PretrainedStudent
from schemas.training import LoraMethod, TrainingSpec

MOST_REPEATS = 2
"""Of four minutes on a quiet machine, most of them TRL's."""

# Both compute in bfloat16, which has 8 bits: sums in another order differ in the third digit.
_SAME_LOSS = 0.01
_TEXT = """
the to of and in a for is that on with as by from this be are was it at an have has not account card
bank payment money transfer order price market report year week day month people company city school
water power model method result paper study data network language system show find use make give
take need help work call send change open close start stop learn train new old large small first
last long short high low good late early other same different more
"""


class Case(NamedTuple):
    """Rows of one kind, and how they are trained on."""

    name: str
    prompt_words: int
    """Median; half of the rows are within a third of it."""
    response_words: int
    """The same."""
    batch_size: int
    micro_batch_size: int
    num_steps: int
    num_dropped: int
    """First steps that do not count: memory is new to them, and the longest rows come first."""


CASES = (
    Case("labels of 5 tokens", 14, 4, 32, 32, num_steps=2, num_dropped=1),
    Case("summaries of 200 tokens", 200, 190, 4, 4, num_steps=2, num_dropped=1),
)


def model_folder() -> Path:
    """Return where the pretrained model is, if it is anywhere."""
    return Path(os.environ.get("DISTILLERY_GEMMA", CACHE))


def obstacle() -> str | None:
    """Return why nothing can be measured here; None when it can be."""
    if (folder := model_folder() / "config.json").is_file():
        return None
    return (
        f"training of Gemma 3 270M is skipped: {folder} is not there. DISTILLERY_GEMMA names the "
        "folder of the model."
    )


def measure_lora(folder: Path, *, repeats: int, threads: int) -> list[Line]:
    """Return the lines of the table; each value is of fresh processes that took turns.

    Raises:
        ProcessError: One failed, or ours and TRL's did not learn the same.
    """
    lines = []
    for number, case in enumerate(CASES):
        place = folder / str(number)
        place.mkdir()
        work, num_tokens = prepare(place, case, model_folder())
        runs: dict[Trainer, list[Found]] = {trainer: [] for trainer in TRAINERS}
        for repeat in range(repeats):
            # Who goes first alternates: the pace of a machine drifts.
            for trainer in TRAINERS[:: 1 if repeat % 2 == 0 else -1]:
                found = run(work, trainer, place, threads=threads, dropped=case.num_dropped)
                runs[trainer].append(found)
                took = f"{found.step_s:.3f} s, {found.peak_bytes / 2**30:.2f} GiB"
                said = f"lora, {case.name}, {trainer}, {repeat + 1}: {took}"
                print(said, file=sys.stderr, flush=True)
            ours, theirs = runs["ours"][-1].losses, runs["trl"][-1].losses
            require_same_losses(ours, theirs, within=_SAME_LOSS)
        lines += _lines(case, runs, num_tokens / (case.num_steps - case.num_dropped))
    return lines


def prepare(folder: Path, case: Case, model: Path) -> tuple[Work, int]:
    """Return what is trained, and the tokens of the steps that count, without filling."""
    draws = np.random.default_rng(0)
    num_rows = case.num_steps * case.batch_size
    # Half of a lognormal is within a factor of exp(0.675 sigma) of its median.
    factors = np.exp(np.log(4 / 3) / 0.675 * draws.standard_normal((num_rows, 2)))
    counts = np.maximum(1, factors * (case.prompt_words, case.response_words)).astype(int)

    def text(num_words: int, between: str) -> str:
        return between.join(draws.choice(_TEXT.split(), num_words))

    # A label is one word with underscores, a summary is a sentence.
    between = "_" if case.response_words < 10 else " "
    spec = StoreSpec(root=str(folder / "store"))
    store = Store(spec.root)
    pairs = [(text(prompt, " "), text(response, between)) for prompt, response in counts.tolist()]
    work = Work(
        store=spec,
        rows=write_rows(store, pairs),
        student=PretrainedStudent(model=str(model)),
        training=TrainingSpec(
            method=LoraMethod(r=16, alpha=32),
            learning_rate=2e-4,
            batch_size=case.batch_size,
            micro_batch_size=case.micro_batch_size,
            epochs=1,
            max_length=2048,
            evaluations=1,
            dtype="bfloat16",
            device="cpu",
        ),
    )
    lengths = _lengths(work, store)
    order = RowOrder(
        lengths, batch_size=case.batch_size, steps=case.num_steps, seed=work.training.seed
    )
    counted = list(order)[case.num_dropped * case.batch_size :]
    return work, sum(lengths[row] for row in counted)


def _lengths(work: Work, store: Store) -> list[int]:
    chat_format = ModelFiles.of(work.student).chat_format()
    rows = store.dataset(work.rows).to_table().to_pylist()
    return [
        len(chat_format.row(load_messages(row["messages"]), row["response"]).input_ids)
        for row in rows
    ]


def _lines(case: Case, runs: Mapping[Trainer, list[Found]], tokens_per_step: float) -> list[Line]:
    named = f"LoRA, bfloat16, CPU, vocabulary 262,144, {case.name}"
    pairs = list(zip(runs["ours"], runs["trl"], strict=True))
    lines = [
        Line(
            named,
            Metric("time over TRL's SFTTrainer", goal=0.9, digits=2),
            [ours.step_s / theirs.step_s for ours, theirs in pairs],
        ),
        Line(
            named,
            Metric("time over TRL's SFTTrainer, in CPU seconds", digits=2),
            [ours.cpu_s / theirs.cpu_s for ours, theirs in pairs],
        ),
        Line(
            named,
            Metric("peak memory of the process over TRL's SFTTrainer", goal=0.5, digits=2),
            [ours.peak_bytes / theirs.peak_bytes for ours, theirs in pairs],
        ),
    ]
    for trainer, name in zip(TRAINERS, ("ours", "TRL"), strict=True):
        found = runs[trainer]
        peaks = [one.peak_bytes / 2**30 for one in found]
        lines += [
            Line(
                named, Metric(f"{name}, tokens/s"), [tokens_per_step / one.step_s for one in found]
            ),
            Line(
                named,
                Metric(f"{name}, tokens per CPU second"),
                [tokens_per_step / one.cpu_s for one in found],
            ),
            Line(named, Metric(f"{name}, peak GiB", digits=2), peaks),
        ]
    return lines
