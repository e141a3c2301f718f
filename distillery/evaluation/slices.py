"""Slices: the comparison on parts of the test rows, to see where the student is worse.

A mean over all rows can hide that one label, language or length got worse. Looking at many parts
finds something by chance, so what counts as worse is corrected for their number.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distillery.data.chat import load_messages
from distillery.evaluation.labels import row_labels
from distillery.evaluation.statistics import MIN_CLUSTERS, Scores, holm, mcnemar, ratio
from distillery.task_types import TaskType
from distillery.teacher.examples import asked_text
from schemas.comparison import Difference, Interval, SliceFigures
from schemas.contestants import CHAMPION, STUDENT, TEACHER
from schemas.evaluation import EvaluationSpec

LABEL, LENGTH = "label", "length"
"""What rows can be divided by without a column of their own."""

_MOST_DRAWS = 80_000_000  # over all slices: about two seconds
_DRAWS_AT_ONCE = 1_000_000
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


class _Sums(NamedTuple):
    """What the figures of a slice rest on, by cluster of rows."""

    scores: Scores
    """Sums of scores, shape (clusters, figures)."""

    rows: Scores
    """How many rows are scored, shape (clusters, figures)."""

    is_binary: bool
    """Whether clusters are single rows, and scores 0 or 1."""


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
    sums = [_sums(part, scores, pairs, clusters) for part in parts]
    first = len(scores)  # of the columns that hold pairs
    p_values = np.array(
        [[_p_value(one, first + n) for n in range(len(pairs))] for one in sums]
    ).reshape(len(parts), len(pairs))
    intervals = [*_intervals(sums, p_values, evaluation)]
    adjusted = np.empty_like(p_values)
    for name in {name for name, _ in pairs}:
        own = [n for n, pair in enumerate(pairs) if pair[0] == name]
        corrected = holm([_known(value) for value in p_values[:, own].ravel()])
        adjusted[:, own] = np.array(corrected, np.float64).reshape(-1, len(own))

    def figures(number: int) -> SliceFigures:
        part, found = parts[number], intervals[number]
        differences = tuple(
            Difference(
                name=name,
                against=against,
                metric=metric,
                difference=found[first + n],
                p_value=_known(p_values[number, n]),
                adjusted_p_value=_known(adjusted[number, n]),
            )
            for n, (name, against) in enumerate(pairs)
        )
        return SliceFigures(
            column=part.column,
            value=part.value,
            num_rows=len(part.rows),
            quality=dict(zip(scores, found, strict=False)),
            differences=differences,
            regressions=tuple(
                one.against
                for one in differences
                if one.name == STUDENT and one.is_worse(evaluation.confidence)
            ),
        )

    return tuple(figures(number) for number in range(len(parts))), num_small


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


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


def _sums(
    part: _Part,
    scores: Mapping[str, Scores],
    pairs: Sequence[tuple[str, str]],
    clusters: NDArray[np.int_],
) -> _Sums:
    """Return what a slice's figures rest on: of every contestant, then of every pair."""
    own = {name: values[part.rows] for name, values in scores.items()}
    columns = [*own.values(), *(own[name] - own[against] for name, against in pairs)]
    values_NF = np.stack(columns, axis=1)
    is_scored = ~np.isnan(values_NF)
    values_NF = np.where(is_scored, values_NF, 0.0)
    is_right_or_wrong = bool(np.isin(values_NF, (-1.0, 0.0, 1.0)).all())
    _, cluster = np.unique(clusters[part.rows], return_inverse=True)
    num_clusters = int(cluster.max()) + 1
    if num_clusters == len(part.rows):
        return _Sums(values_NF, is_scored.astype(np.float64), is_right_or_wrong)
    order = np.argsort(cluster, kind="stable")
    starts = np.searchsorted(cluster[order], np.arange(num_clusters))
    return _Sums(
        np.add.reduceat(values_NF[order], starts),
        np.add.reduceat(is_scored[order].astype(np.float64), starts),
        False,
    )


def _intervals(
    sums: Sequence[_Sums], p_values: Scores, evaluation: EvaluationSpec
) -> Iterator[list[Interval | None]]:
    """Yield the intervals of every slice's figures, as :class:`Bootstrap` would make them.

    That one draws anew for every set of rows; this one draws for all figures of a slice at once.
    """
    num_drawn = max(1, sum(len(one.rows) for one in sums))
    samples = min(evaluation.bootstrap_samples, max(_LEAST_SAMPLES, _MOST_DRAWS // num_drawn))
    tail = (1 - evaluation.confidence) / 2
    draw = np.random.default_rng(evaluation.seed)
    for one, of_pairs in zip(sums, p_values, strict=True):
        num_figures = one.scores.shape[1]
        num_rows, num_clusters = one.rows.sum(axis=0), (one.rows > 0).sum(axis=0)
        means = ratio(one.scores.sum(axis=0), num_rows)
        resampled = _resampled(np.hstack([one.scores, one.rows]), samples, draw)
        values = ratio(resampled[:, :num_figures], resampled[:, num_figures:])
        lows, highs = np.quantile(values, [tail, 1 - tail], axis=0)
        # Where all resamples agree, some clusters may still be otherwise.
        share = 1 - tail ** (1 / np.maximum(num_clusters, 1))
        is_pair = np.arange(num_figures) >= num_figures - len(of_pairs)
        is_agreed = np.ptp(values, axis=0) < 1e-12
        lows = np.where(is_agreed, (1 - share) * means - np.where(is_pair, share, 0), lows)
        highs = np.where(is_agreed, (1 - share) * means + share, highs)
        # What is not told apart by the test may be equal.
        is_open = np.concatenate([np.zeros(num_figures - len(of_pairs)), of_pairs]) > 2 * tail
        lows, highs = (
            np.where(is_open, np.minimum(lows, 0), lows),
            np.where(is_open, np.maximum(highs, 0), highs),
        )
        lows[num_clusters < MIN_CLUSTERS] = highs[num_clusters < MIN_CLUSTERS] = np.nan
        yield [
            Interval(estimate=float(mean), low=_known(low), high=_known(high), num_rows=int(scored))
            if scored
            else None
            for mean, low, high, scored in zip(means, lows, highs, num_rows, strict=True)
        ]


def _resampled(rows: Scores, samples: int, draw: np.random.Generator) -> Scores:
    """Return the sums over each resample of the rows, shape (samples, columns)."""
    num, parts = len(rows), []
    at_once = max(1, _DRAWS_AT_ONCE // num)
    for start in range(0, samples, at_once):
        size = min(at_once, samples - start)
        drawn = draw.integers(num, size=(size, num)) + num * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * num).reshape(size, num)
        parts.append(times.astype(np.float64) @ rows)
    return np.concatenate(parts)


def _p_value(sums: _Sums, figure: int) -> float:
    """Return the probability of so large a difference between two that are equally good.

    McNemar's exact test where it applies, otherwise a t-test over the clusters: the bootstrap's
    own p-values end at one in as many as there are resamples, which no correction for a hundred
    slices would leave small. NaN: fewer than two clusters are scored.

    Source: Cameron and Miller 2015, A Practitioner's Guide to Cluster-Robust Inference, section 2.
    """
    from scipy.stats import t

    differences, rows = sums.scores[:, figure], sums.rows[:, figure]
    if sums.is_binary:
        return mcnemar(int((differences > 0).sum()), int((differences < 0).sum()))
    differences, rows = differences[rows > 0], rows[rows > 0]
    num = len(rows)
    if num < 2:
        return float("nan")
    mean = differences.sum() / rows.sum()
    residuals = differences - mean * rows
    error = np.sqrt(num / (num - 1) * (residuals**2).sum()) / rows.sum()
    if error < 1e-12:  # all alike: as for as many coins that fell on one side
        return 1.0 if abs(mean) < 1e-12 else 2.0 ** (1 - num)
    return float(2 * t.sf(abs(mean) / error, num - 1))
