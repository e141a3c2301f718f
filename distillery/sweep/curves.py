"""When a trial is given up: its validation loss is worse than that of most others by then."""

import statistics
from collections.abc import Mapping, Sequence

from distillery.storage.fingerprint import sha256
from schemas.base import versioned
from schemas.refs import DatasetRef
from schemas.student import FromScratchStudent, StudentSpec
from schemas.training import TrainingSpec

Curve = Mapping[int, float]
"""Validation losses by the share of the training, in thousandths, after which they were measured:
so trainings of different lengths compare."""

OVER = 1000
"""The share at which a training is over."""


def share(step: int, num_steps: int) -> int:
    """Return which share of the training is behind, in thousandths.

    >>> share(2, 8), share(8, 8)
    (250, 1000)
    """
    return round(OVER * step / num_steps)


def meaning(rows: DatasetRef, student: StudentSpec, training: TrainingSpec) -> str:
    """Return what tells losses that mean the same from others.

    A loss depends on the objective with its weights and temperatures, on what a token is, and on
    the rows that it is measured on.
    """
    if isinstance(student, FromScratchStudent):
        tokens = [student.tokenizer, student.vocab_size, student.whole_tokens]
    else:
        tokens = [student.model, student.chat_template]
    return sha256(
        versioned(
            {
                "objective": training.objective.as_read(),
                "learn_reasoning": training.learn_reasoning,
                "max_length": training.max_length,
                "rows": rows.identity("validation"),
                "tokens": tokens,
            }
        )
    )


def is_behind(own: Curve, others: Sequence[Curve], *, after: int) -> bool:
    """Return whether a training is to be given up: the median rule of Golovin et al. 2017, Vizier.

    Its best loss so far is held against the median of what the others had reached at the same
    share. One that is over is not given up: its student is there.

    Args:
        own: Its losses so far.
        others: Those of finished trainings whose losses mean the same.
        after: So many others have to be there first.

    >>> is_behind({500: 2.0}, [{500: 1.0, 1000: 0.5}, {400: 1.5, 800: 3.0}], after=2)
    True
    >>> is_behind({500: 2.0}, [{500: 1.0}, {400: 3.0}, {600: 0.1}], after=2)
    False
    """
    now = max(own)
    if now >= OVER:
        return False
    reached = [
        min(losses)
        for other in others
        if (losses := [loss for at, loss in other.items() if at <= now])
    ]
    return len(reached) >= after and min(own.values()) > statistics.median(reached)
