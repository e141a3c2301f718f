"""Slices: the comparison on parts of the test rows, to see where the student is worse.

A mean over all rows can hide that one label, language or length got worse. Looking at many parts
finds something by chance, so what counts as worse is corrected for their number.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distillery.data.chat import load_messages
from distillery.evaluation.differences import difference
from distillery.evaluation.labels import row_labels
from distillery.evaluation.significance import holm
from distillery.evaluation.statistics import (
    Bootstrap,
    PairedFigures,
    Scores,
    mean_sums,
)
from distillery.task_types import TaskType
from distillery.teacher.examples import asked_text
from schemas.comparison import Interval, SliceFigures
from schemas.contestants import CHAMPION, STUDENT, TEACHER
from schemas.evaluation import EvaluationSpec

LABEL, LENGTH = "label", "length"
"""What rows can be divided by without a column of their own."""

_MOST_DRAWS = 80_000_000  # over all slices: about two seconds
_LEAST_SAMPLES = 200

Division = pd.Series
"""The value of every row in one column, by prompt id; None for rows that are in no slice of it."""


def known_divisions(
    evaluation: EvaluationSpec, kind: TaskType, columns: Sequence[str]
) -> tuple[str, ...]:
    """Return those of `evaluation.slices` that these test rows can be divided by.

    Args:
        evaluation: Names them.
        kind: Says whether answers are labels.
        columns: `data.test.columns.slices`.
    """
    known = {LENGTH, *columns} | ({LABEL} if kind.has_labels else set())
    return tuple(name for name in dict.fromkeys(evaluation.slices) if name in known)


def divide_rows(
    test_rows: pd.DataFrame, kind: TaskType, evaluation: EvaluationSpec
) -> dict[str, Division]:
    """Return what every row is divided by, by column.

    ``test_rows`` has the columns `messages`, `references` and `slices` of a PromptFrame, by prompt
    id.
    """
    found = [json.loads(text) if isinstance(text, str) else {} for text in test_rows["slices"]]
    columns = list(found[0]) if found else []
    divided: dict[str, Division] = {}
    for name in known_divisions(evaluation, kind, columns):
        if name == LABEL:
            values: Sequence[str | None] = row_labels(test_rows["references"], kind)
        elif name == LENGTH:
            asked = (asked_text(load_messages(text)) for text in test_rows["messages"])
            values = length_quarters([len(text) for text in asked])
        else:
            values = [row.get(name) for row in found]
        divided[name] = pd.Series(values, test_rows.index, dtype=object)
    return divided


def length_quarters(lengths: Sequence[int]) -> list[str]:
    """Return for each length in characters the quarter of them that it belongs to.

    Equal lengths stay together, so there may be fewer parts than four.

    >>> length_quarters([10, 20, 30, 40])[::3]
    ['up to 10 characters', 'over 30 characters']
    >>> set(length_quarters([7, 7, 7]))
    {'up to 7 characters'}
    """
    ends = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75], method="inverted_cdf")).astype(int)
    ends = ends[ends < max(lengths)]
    if not ends.size:
        return [f"up to {max(lengths):,} characters"] * len(lengths)
    names = [f"up to {ends[0]:,} characters"]
    names += [f"{a + 1:,} to {b:,} characters" for a, b in itertools.pairwise(ends)]
    names += [f"over {ends[-1]:,} characters"]
    return [names[place] for place in np.searchsorted(ends, lengths)]


class _Part(NamedTuple):
    column: str
    value: str
    rows: NDArray[np.intp]


def slice_figures(
    scores: Mapping[str, Scores],
    clusters: NDArray[np.int_],
    divided: Mapping[str, Division],
    metric: str,
    evaluation: EvaluationSpec,
    *,
    exported: Sequence[str] = (),
) -> tuple[tuple[SliceFigures, ...], int]:
    """Return the figures of every slice, and how many slices have too few rows for any.

    The p-values of a contestant are corrected over all slices and opponents together (Holm), so
    that a student as good as both is called worse anywhere in at most 1 - `confidence` of all
    runs.

    Args:
        scores: In the primary metric by contestant; NaN where unscored.
        clusters: A number for every row; rows of one cluster are resampled together.
        divided: What :func:`divide_rows` returns for the same rows.
        metric: Name of the primary metric.
        evaluation: Least rows, resamples, level and seed. Of very many rows
            fewer resamples are drawn.
        exported: Names of the exported forms of the student.
    """
    parts, num_small = _parts(divided, evaluation)
    pairs = [
        (name, against)
        for name in (STUDENT, *exported)
        for against in (TEACHER, CHAMPION)
        if name in scores and against in scores
    ]
    thinned = _thinned(parts, evaluation)
    quality: list[dict[str, Interval | None]] = []
    compared: list[dict[tuple[str, str], PairedFigures]] = []
    for part in parts:
        own = {name: mean_sums(values[part.rows]) for name, values in scores.items()}
        bootstrap = Bootstrap(clusters[part.rows].tolist(), thinned)
        quality.append({name: bootstrap.interval(sums) for name, sums in own.items()})
        compared.append({pair: bootstrap.compare(own[pair[0]], own[pair[1]]) for pair in pairs})
    adjusted = _adjusted(compared)
    found = []
    for number, part in enumerate(parts):
        differences = tuple(
            difference(*pair, metric, paired, adjusted[number, pair])
            for pair, paired in compared[number].items()
        )
        found.append(
            SliceFigures(
                column=part.column,
                value=part.value,
                num_rows=len(part.rows),
                quality=quality[number],
                differences=differences,
                regressions=tuple(
                    one.against
                    for one in differences
                    if one.name == STUDENT and one.is_worse(evaluation.confidence)
                ),
            )
        )
    return tuple(found), num_small


def _thinned(parts: Sequence[_Part], evaluation: EvaluationSpec) -> EvaluationSpec:
    """Return ``evaluation`` with as many resamples as all slices together have the time for."""
    num_drawn = max(1, sum(len(part.rows) for part in parts))
    samples = min(evaluation.bootstrap_samples, max(_LEAST_SAMPLES, _MOST_DRAWS // num_drawn))
    return evaluation.model_copy(update={"bootstrap_samples": samples})


def _adjusted(
    compared: Sequence[Mapping[tuple[str, str], PairedFigures]],
) -> dict[tuple[int, tuple[str, str]], float | None]:
    """Return the corrected p-values by slice and pair, each candidate's corrected together."""
    adjusted: dict[tuple[int, tuple[str, str]], float | None] = {}
    for candidate in {name for found in compared for name, _ in found}:
        own = {
            (number, pair): paired.p_value
            for number, found in enumerate(compared)
            for pair, paired in found.items()
            if pair[0] == candidate
        }
        adjusted |= zip(own, holm([*own.values()]), strict=True)
    return adjusted


def _parts(divided: Mapping[str, Division], evaluation: EvaluationSpec) -> tuple[list[_Part], int]:
    """Return the slices, the largest of each column first, and how many are too small."""
    parts, num_small = [], 0
    for column, values in divided.items():
        codes, names = pd.factorize(values.to_numpy())  # -1 where there is no value
        order = np.argsort(codes, kind="stable")
        counts = np.bincount(codes[codes >= 0], minlength=len(names))
        ends = np.cumsum(counts) + int((codes < 0).sum())
        for code in np.argsort(-counts, kind="stable"):
            if counts[code] < evaluation.min_slice_rows:
                num_small += 1
                continue
            rows = order[ends[code] - counts[code] : ends[code]]
            parts.append(_Part(column, names[code], rows))
    return parts, num_small
