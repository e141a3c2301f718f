"""What a response token's soft targets take in the store, at a vocabulary of 151,936 and k = 64."""

from pathlib import Path

import numpy as np

from benchmarks.report import Metric
from benchmarks.results import Line
from benchmarks.synthetic import Spread, random_targets
from distillery.objectives.soft.stored import ScoredRow, SoftTargetMeta, to_batch, write_targets
from distillery.storage.stage import Attempt, Stage
from distillery.storage.store import Store
from schemas.execution import StageName

VOCAB_SIZE, K = 151_936, 64
_NUM_ROWS, _ROW_TOKENS = 128, 128
_SPREADS: tuple[tuple[Spread, str], ...] = (
    ("even", "ids spread evenly over the vocabulary"),
    ("zipf", "ids by Zipf's law"),
)


def measure_storage(folder: Path, *, repeats: int) -> list[Line]:
    """Return the lines of the table; the repeats differ in their random numbers."""
    case = f"soft targets, vocabulary {VOCAB_SIZE:,}, k = {K}"
    return [
        Line(
            case,
            Metric(f"bytes per response token, {title}", goal=300),
            [bytes_per_token(folder / f"{spread}-{seed}", spread, seed) for seed in range(repeats)],
        )
        for spread, title in _SPREADS
    ]


def bytes_per_token(
    root: Path, spread: Spread, seed: int, *, num_rows: int = _NUM_ROWS, k: int = K
) -> float:
    """Return the bytes of the files that the stage writes, over the response tokens in them."""
    store = Store(str(root))
    meta = SoftTargetMeta(
        tokenizer_hash=None,
        distillation_temperature=1.0,
        k=k,
    )
    numbers = random_targets(
        num_rows * _ROW_TOKENS, vocab_size=VOCAB_SIZE, k=k, spread=spread, seed=seed
    )
    parts = zip(*(np.split(column, num_rows) for column in numbers), strict=True)
    rows = [
        # What was written is likely to be the likeliest token.
        ScoredRow(f"prompt-{n}", "train", ids_NK[:, 0].tolist(), ids_NK, log_p_NK, log_rest_N)
        for n, (ids_NK, log_p_NK, log_rest_N) in enumerate(parts)
    ]
    stage = Stage(StageName.SCORE_SOFT_TARGETS, 0, inputs={}, spec={"k": k})
    batches = [to_batch(rows, meta)]
    ref = write_targets(Attempt(store, stage, "made"), "soft_targets", batches, meta)
    return float(store.fs.du(store.path(ref.uri))) / (num_rows * _ROW_TOKENS)
