"""The simulated gate is the real one, and errs as seldom as its intervals promise."""

import numpy as np
import pytest
from numpy.typing import NDArray

from distillery.evaluation.statistics import Bootstrap, mean_sums
from distillery.registry.simulation import (
    World,
    comparisons,
    decidable,
    pattern_shares,
    patterns,
    promotion_rate,
    rows_needed,
)
from schemas.errors import RecipeError
from schemas.evaluation import EvaluationSpec
from schemas.gate import GateSpec

EVALUATION = EvaluationSpec()
GATE = decidable(GateSpec(), "accuracy")
CHAMPION = 0.85


def rate(world: World, num_rows: int, gate: GateSpec = GATE) -> float:
    return promotion_rate(gate, world, EVALUATION, num_rows=num_rows)


def rows_of(counts_K: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the scores of teacher, student and champion on every row."""
    return np.repeat(patterns(3), counts_K, axis=0).T


@pytest.mark.parametrize(
    ("num_rows", "world"),
    [
        (40, World(0.9, 0.85, 0.8)),
        (300, World(0.9, 0.85, 0.8)),
        # All right, or all alike: ends that resamples do not have.
        (40, World(0.99, 0.99, 0.98, correlation=0.6)),
    ],
)
def test_intervals_of_the_simulation_are_those_of_a_comparison(num_rows: int, world: World) -> None:
    """Both are bootstraps of the same rows: only the draws differ."""
    fine = EvaluationSpec(bootstrap_samples=10_000)
    draw = np.random.default_rng(0)
    counts_SK = draw.multinomial(num_rows, pattern_shares(world), size=5)
    simulated = comparisons(counts_SK, patterns(3), fine, draw)
    for counts_K, comparison in zip(counts_SK, simulated, strict=True):
        teacher, student, champion = map(mean_sums, rows_of(counts_K))
        rows = Bootstrap(range(num_rows), fine)
        kept = comparison.between("student", "teacher")
        gained = comparison.between("student", "champion")
        alone = comparison.contestant("student")
        assert kept and gained and alone
        for found, exact in (
            (kept.ratio, rows.compare(student, teacher).ratio),
            (kept.difference, rows.compare(student, teacher).difference),
            (gained.difference, rows.compare(student, champion).difference),
            (alone.metrics["accuracy"], rows.interval(student)),
        ):
            assert found and exact
            assert found.estimate == pytest.approx(exact.estimate)
            # Two rows: quantiles of means of 0s and 1s lie on a grid.
            grid = pytest.approx((exact.low, exact.high), abs=2 / num_rows)
            assert (found.low, found.high) == grid
            assert found.num_rows == exact.num_rows


def test_mistakes_coincide_as_often_as_asked_also_of_a_champion() -> None:
    shares = pattern_shares(World(0.9, 0.9, 0.9, correlation=0.6))
    wrong = 1 - patterns(3)
    share = shares @ wrong
    assert share == pytest.approx([0.1, 0.1, 0.1])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        both = float(shares @ (wrong[:, a] * wrong[:, b]))
        assert (both - 0.01) / 0.09 == pytest.approx(0.6, abs=1e-3)


def test_mistakes_that_cannot_coincide_so_often_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"cannot have a correlation of 0\.95"):
        pattern_shares(World(0.9, 0.6, correlation=0.95))


def test_a_student_two_points_worse_never_replaces_the_champion_in_1000_comparisons() -> None:
    """On 1,000 rows, where the standard error of the difference is one point."""
    assert rate(World(0.9, CHAMPION - 0.02, CHAMPION), 1000) == 0


def test_a_tie_replaces_the_champion_no_more_often_than_the_interval_errs() -> None:
    """Half of the 5 % that lie outside: a tie that looks like a gain is one in forty."""
    assert rate(World(0.9, CHAMPION, CHAMPION), 1000) < 0.04


def test_a_student_that_is_clearly_better_replaces_the_champion() -> None:
    assert rate(World(0.9, CHAMPION + 0.05, CHAMPION), 1000) > 0.95


@pytest.mark.parametrize("num_rows", [100, 300, 1000])
def test_a_student_at_the_bound_is_promoted_as_seldom_as_the_interval_errs(num_rows: int) -> None:
    # 2.5 %, and more where the bootstrap of few rows is too narrow.
    assert 0.005 < rate(World(0.9, 0.9 * 0.92), num_rows) < 0.06


def test_the_more_rows_the_fewer_good_students_are_held_back() -> None:
    good = World(0.9, 0.9 * 0.96)
    rates = [rate(good, num_rows) for num_rows in (100, 1000)]
    assert rates[0] < 0.5 and rates[1] > 0.85
    assert rows_needed(GATE, good, EVALUATION, num_simulations=200) in (500, 1000)


def test_a_gate_that_nothing_can_pass_needs_more_rows_than_there_are() -> None:
    gate = decidable(GateSpec(min_retention=1.2), "accuracy")
    few = EvaluationSpec(bootstrap_samples=100)
    assert rows_needed(gate, World(0.9, 0.9), few, num_simulations=100) is None


def test_what_scores_do_not_decide_is_taken_to_hold() -> None:
    gate = GateSpec.model_validate(
        {
            "max_latency_ratio": 0.1,
            "conditions": [
                {"kind": "limit", "figure": "disk_bytes", "at_most": 1},
                {"kind": "quality", "metric": "Accuracy", "at_least": 0.8},
                {"kind": "quality", "metric": "macro F1", "at_least": 0.8},
                {"kind": "quality", "slice": "label=x", "at_least": 0.8},
                {"kind": "quality", "against": "baseline"},
            ],
        }
    )
    asked = decidable(gate, "accuracy")
    assert [condition.kind for condition in asked.conditions] == ["quality"]
    assert asked.max_latency_ratio is None and asked.min_retention == gate.min_retention
    assert rate(World(0.9, 0.78), 300, asked.model_copy(update={"min_retention": 0})) < 0.03
