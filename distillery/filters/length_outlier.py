"""Responses much shorter or longer than answers of the task are."""

import json
import math
from typing import Any

import numpy as np

from distillery.filters.base import Context, Drop, Row, RowFilter
from distillery.task_types import TaskType
from distillery.task_types.base import Floats
from distillery.task_types.thoughts import split_thoughts
from schemas.filters import DropReason, LengthOutlierFilter
from schemas.refs import DatasetRef

SPLITS = ("gold", "selection")
"""Rows whose references are looked at: those of the first split that has enough."""

_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_LEAST_SIGMA = math.log(1.1)
"""References of nearly one length must not make a tenth more of it an outlier."""


class LengthOutlier(RowFilter[LengthOutlierFilter]):
    """Drops by the distance from the median log length of the references.

    In units of the spread: the median absolute deviation, which outliers among the references do
    not move.
    """

    def inputs(self, prompts: DatasetRef) -> dict[str, Any]:
        """Return the rows whose references are looked at."""
        return prompts.identities(*SPLITS)

    def open(self, context: Context) -> None:
        """Read the lengths of the references."""
        self._split, lengths = None, np.empty(0)
        for split in SPLITS:
            found = _log_lengths(split, context)
            self.facts[f"{split}_references"] = len(found)
            if len(found) >= self.spec.min_references:
                self._split, lengths = split, found
                break
        if self._split is None:
            return
        self._median = float(np.median(lengths))
        deviation = float(np.median(np.abs(lengths - self._median)))
        self._sigma = max(_MAD_TO_SIGMA * deviation, _LEAST_SIGMA)
        reach = self.spec.max_deviations * self._sigma
        self._shortest, self._longest = (math.exp(self._median + d) for d in (-reach, reach))
        self.facts |= {
            "median_chars": round(math.exp(self._median), 1),
            "shortest_chars": round(self._shortest, 1),
            "longest_chars": round(self._longest, 1),
        }

    def row(self, row: Row, task: TaskType) -> Drop | None:
        """Drop a response far from the median; with too few references all pass."""
        length = len(split_thoughts(row["response"])[1].strip())
        if self._split is None or not length:
            return None
        deviations = (math.log(length) - self._median) / self._sigma
        if abs(deviations) <= self.spec.max_deviations:
            return None
        side = "below" if deviations < 0 else "above"
        bound = self._shortest if deviations < 0 else self._longest
        return Drop(
            DropReason.LENGTH_OUTLIER,
            f"{length} characters, {side} {bound:.0f}: {abs(deviations):.1f} deviations from the "
            f"median of the {self._split} references, {math.exp(self._median):.0f}",
            deviations,
        )


def _log_lengths(split: str, context: Context) -> Floats:
    """Return the log lengths of what a model should write to the rows of ``split``."""
    lengths: list[int] = []
    for batch in context.store.batches(context.prompts, splits=(split,)):
        for text in batch.column("references").to_pylist():
            if text is not None:
                lengths.append(len(context.task.target(json.loads(text)).strip()))
    return np.log([length for length in lengths if length])
