"""Intervals of independent rows."""

from collections.abc import Sequence

import numpy as np

from distillery.evaluation.statistics import Bootstrap, set_sums
from distillery.task_types import ScoredRow, SetMetric
from schemas.comparison import Interval
from schemas.evaluation import EvaluationSpec


def set_interval(
    metric: SetMetric, rows: Sequence[ScoredRow], evaluation: EvaluationSpec
) -> Interval | None:
    """Return a metric of a set of answers, each row a cluster of its own."""
    sums = set_sums(metric, rows, np.ones(len(rows), dtype=bool))
    return Bootstrap(range(len(rows)), evaluation).interval(sums)
