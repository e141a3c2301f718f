"""How often a gate errs: its own conditions, asked of simulated students of known quality.

A row is a question that teacher, champion and student each get right or not. What makes one hard
makes it hard for all, so their mistakes coincide: one latent difficulty per row (Vasicek's
one-factor model), as strong as the wanted correlation asks. As answers are right or wrong, a test
set is no more than the number of rows of each pattern of right and wrong; resampling its rows is a
draw of those numbers, which makes the bootstrap of many test sets one call, and leaves it exact.
The ends are then corrected as those of a comparison are (`distillery.evaluation.statistics`).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillery.evaluation.significance import mcnemar
from distillery.evaluation.statistics import minus, ratio, room, stretched
from distillery.registry.conditions import Trial
from distillery.registry.gate import check_gate
from schemas.comparison import (
    Comparison,
    ContestantFigures,
    Difference,
    Interval,
    Performance,
)
from schemas.contestants import CHAMPION, STUDENT, TEACHER
from schemas.errors import RecipeError
from schemas.evaluation import EvaluationSpec
from schemas.gate import GateSpec, QualityCondition
from schemas.refs import ModelRef

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

TEST_SIZES = (100, 200, 300, 500, 1000, 2000, 3000, 5000, 10_000)
"""Numbers of test rows that are tried."""

_METRIC = "accuracy"
_OFTEN = 0.8
_AT_ONCE = 4_000_000  # counts of a batch of resamples: 32 MB
_FINGERPRINT = "simulated"


@dataclasses.dataclass(frozen=True)
class World:
    """What is true of the models, and what nobody who runs a comparison knows."""

    teacher: float
    """Share of all questions that the teacher gets right."""

    student: float
    """The same of the student."""

    champion: float | None = None
    """The same of the champion. None: there is none."""

    correlation: float = 0.5
    """Correlation between the mistakes of two models that are as good as teacher and student."""


def promotion_rate(
    gate: GateSpec,
    world: World,
    evaluation: EvaluationSpec,
    *,
    num_rows: int,
    num_simulations: int = 1000,
) -> float:
    """Return in which share of so many comparisons on ``num_rows`` rows the gate opens.

    The gate has to be one that scores decide; see :func:`decidable`.
    """
    draw = np.random.default_rng(evaluation.seed)
    patterns_KM = patterns(3 if world.champion is not None else 2)
    shares_K = pattern_shares(world)
    counts_SK = draw.multinomial(num_rows, shares_K, size=num_simulations)
    champion = None
    if world.champion is not None:
        champion = ModelRef(uri=_FINGERPRINT, fingerprint=_FINGERPRINT, num_parameters=1)
    opened = 0
    size = evaluation.bootstrap_samples * len(shares_K)
    for batch_SK in np.array_split(counts_SK, max(1, num_simulations * size // _AT_ONCE)):
        for comparison in comparisons(batch_SK, patterns_KM, evaluation, draw):
            opened += all(check.passed for check in check_gate(Trial(comparison, champion), gate))
    return opened / num_simulations


def rows_needed(
    gate: GateSpec, world: World, evaluation: EvaluationSpec, *, num_simulations: int = 1000
) -> int | None:
    """Return the fewest of `TEST_SIZES` with which the gate opens in four of five comparisons.

    None: not even the most are enough.
    """
    for num_rows in TEST_SIZES:
        rate = promotion_rate(
            gate, world, evaluation, num_rows=num_rows, num_simulations=num_simulations
        )
        if rate >= _OFTEN:
            return num_rows
    return None


def decidable(gate: GateSpec, primary: str) -> GateSpec:
    """Return the part of a gate that scores of teacher, champion and student decide.

    That is retention, the loss to the champion, and conditions on the primary metric over all
    rows that are not against the baseline. The rest is taken to hold.
    """
    conditions = [
        condition.model_copy(update={"metric": None})
        for condition in gate.conditions
        if isinstance(condition, QualityCondition)
        and (condition.metric or primary).lower() == primary.lower()
        and condition.slice is None
        and condition.against != "baseline"
    ]
    return gate.model_copy(
        update={
            "min_gain": None,
            "min_lead_over_majority": None,
            "max_latency_ratio": None,
            "max_memory_ratio": None,
            "max_cost_ratio": None,
            "regressions_against": (),
            "conditions": tuple(conditions),
        }
    )


def pattern_shares(world: World) -> Floats:
    """Return the probability of each pattern of right and wrong, as :func:`patterns` lists them.

    >>> world = World(teacher=0.9, student=0.8, correlation=0.5)
    >>> both_wrong, student_right, teacher_right, both_right = pattern_shares(world)
    >>> print(f"{both_right + teacher_right:.4f} {both_right + student_right:.4f}")
    0.9000 0.8000
    >>> covariance = both_wrong - 0.1 * 0.2
    >>> print(f"{covariance / (0.1 * 0.9 * 0.2 * 0.8) ** 0.5:.4f}")
    0.5000
    """
    right = [world.teacher, world.student]
    if world.champion is not None:
        right.append(world.champion)
    weight = _weight(world.teacher, world.student, world.correlation)
    return _shares(np.array(right), weight)


@functools.cache
def patterns(num_models: int) -> Floats:
    """Return every pattern of right (1) and wrong (0), shape (K, M): K patterns, M models."""
    numbers = np.arange(2**num_models)[:, None]
    shifts = np.arange(num_models)[::-1]
    return ((numbers >> shifts) & 1).astype(np.float64)


def _shares(right_M: Floats, weight: float) -> Floats:
    """Return the probabilities of the patterns where difficulty has so much weight, of 1."""
    from scipy.stats import norm

    # Gauss-Hermite: exact for smooth functions of the difficulty.
    nodes_Z, weights_Z = np.polynomial.hermite_e.hermegauss(199)
    weights_Z = weights_Z / weights_Z.sum()
    limits_ZM = norm.ppf(right_M)[None, :] - np.sqrt(weight) * nodes_Z[:, None]
    right_ZM = norm.cdf(limits_ZM / np.sqrt(1 - weight))
    patterns_KM = patterns(len(right_M))[:, None, :]
    given_KZ = np.where(patterns_KM == 1, right_ZM, 1 - right_ZM).prod(axis=2)
    shares_K: Floats = given_KZ @ weights_Z
    shares_K /= shares_K.sum()
    return shares_K


@functools.cache
def _weight(teacher: float, student: float, correlation: float) -> float:
    """Return the weight of difficulty that gives the mistakes of the two such a correlation.

    Raises:
        RecipeError: Models that differ so much cannot err together so often.
    """
    from scipy.optimize import brentq

    def surplus(weight: float) -> float:
        both_wrong = _shares(np.array([teacher, student]), weight)[0]
        wrong = (1 - teacher) * (1 - student)
        spread = np.sqrt(wrong * teacher * student)
        return float((both_wrong - wrong) / spread - correlation)

    if correlation <= 0:
        return 0.0
    most = 0.999
    if surplus(most) < 0:
        raise RecipeError(
            f"mistakes of models that are right in {teacher:.1%} and {student:.1%} of all cases "
            f"cannot have a correlation of {correlation:g}: the worse one errs more often than "
            f"that. Set the correlation below {surplus(most) + correlation:.2f}."
        )
    return float(brentq(surplus, 0.0, most, xtol=1e-6))


def comparisons(
    counts_SK: Counts, patterns_KM: Floats, evaluation: EvaluationSpec, draw: np.random.Generator
) -> list[Comparison]:
    """Return the comparison of each simulated test set, with what a gate looks at."""
    num_rows = int(counts_SK[0].sum())
    shape = (len(counts_SK), evaluation.bootstrap_samples)
    shares_S1K = (counts_SK / num_rows)[:, None, :]
    resampled_SRM = draw.multinomial(num_rows, shares_S1K, size=shape) @ patterns_KM / num_rows
    means_SM = counts_SK @ patterns_KM / num_rows
    tail = (1 - evaluation.confidence) / 2

    def intervals(of_values: Callable[..., Floats], *models: int) -> list[Interval]:
        estimates_S = of_values(*(means_SM[:, m] for m in models))
        resampled_SR = of_values(*(resampled_SRM[:, :, m] for m in models))
        found = []
        quantiles_2S = np.quantile(resampled_SR, [tail, 1 - tail], axis=1)
        agree_S = np.ptp(resampled_SR, axis=1) < 1e-9
        for at, estimate in enumerate(estimates_S):
            low, high = (None if np.isnan(end) else float(end) for end in quantiles_2S[:, at])
            if agree_S[at]:
                values = [means_SM[at, [m]] for m in models]
                low, high = room(values, of_values, num_rows, tail)
            found.append(
                Interval.model_construct(
                    estimate=float(estimate), low=low, high=high, num_rows=num_rows
                )
            )
        return found

    def is_shown(counts_K: Counts, one: int, other: int) -> bool:
        """Return whether McNemar's test tells two models apart."""
        gaps_K = patterns_KM[:, one] - patterns_KM[:, other]
        wins, losses = int(counts_K[gaps_K > 0].sum()), int(counts_K[gaps_K < 0].sum())
        return mcnemar(wins, losses) < 2 * tail

    names = (TEACHER, STUDENT, CHAMPION)[: patterns_KM.shape[1]]
    student = names.index(STUDENT)
    own = intervals(np.asarray, student)
    template = _template(num_rows, names, evaluation.confidence)
    differences: list[list[Difference]] = [[] for _ in counts_SK]
    for other, name in enumerate(names):
        if name == STUDENT:
            continue
        both = zip(intervals(minus, student, other), intervals(ratio, student, other), strict=True)
        for at, (gap, share) in enumerate(both):
            shown = is_shown(counts_SK[at], student, other)
            differences[at].append(
                Difference.model_construct(
                    name=STUDENT,
                    against=name,
                    metric=_METRIC,
                    difference=gap if shown else stretched(gap, 0.0),
                    ratio=share if shown else stretched(share, 1.0),
                )
            )
    return [_filled(template, one, tuple(of)) for one, of in zip(own, differences, strict=True)]


def _filled(template: Comparison, own: Interval, differences: tuple[Difference, ...]) -> Comparison:
    """Return the template with the figures of one test set."""
    rows = tuple(
        row.model_copy(update={"metrics": {_METRIC: own}}) if row.name == STUDENT else row
        for row in template.contestants
    )
    return template.model_copy(update={"differences": differences, "contestants": rows})


def _template(num_rows: int, names: Sequence[str], confidence: float) -> Comparison:
    common: dict[str, Any] = {"model": _FINGERPRINT, "num_parameters": None, "memory_bytes": None}
    return Comparison(
        task="simulated",
        metric=_METRIC,
        num_rows=num_rows,
        context_tokens=1,
        max_new_tokens=1,
        confidence=confidence,
        contestants=tuple(
            ContestantFigures(
                name=name,
                identity=_FINGERPRINT,
                performance=Performance(),
                metrics={},
                num_unscored=0,
                **common,
            )
            for name in names
        ),
        differences=(),
        majority_answer=None,
        majority_score=None,
        gap_recovered=None,
        hardware={},
        fingerprints={},
    )
