import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distillery.evaluation.statistics import difference_interval, mean_interval, ratio_interval
from schemas.evaluation import EvaluationSpec

EVALUATION = EvaluationSpec(bootstrap_samples=400)


def test_estimates_are_the_hand_computed_ones() -> None:
    teacher = np.array([1.0, 1.0, 1.0, 1.0, 0.0])
    student = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
    mean = mean_interval(teacher, EVALUATION)
    difference = difference_interval(student, teacher, EVALUATION)
    ratio = ratio_interval(student, teacher, EVALUATION)
    assert mean and difference and ratio
    assert mean.estimate == pytest.approx(0.8)
    assert difference.estimate == pytest.approx(-0.2)
    assert ratio.estimate == pytest.approx(0.75)


def test_interval_of_a_proportion_is_about_the_normal_one() -> None:
    scores = np.repeat([1.0, 0.0], [900, 100])
    interval = mean_interval(scores, EvaluationSpec())
    half = 1.96 * math.sqrt(0.9 * 0.1 / 1000)
    assert interval and interval.low and interval.high
    assert interval.low == pytest.approx(0.9 - half, abs=0.004)
    assert interval.high == pytest.approx(0.9 + half, abs=0.004)


def test_pairing_beats_unpaired_width_on_correlated_rows() -> None:
    rng = np.random.default_rng(0)
    teacher = (rng.random(500) < 0.7).astype(float)
    student = np.where(rng.random(500) < 0.05, 1 - teacher, teacher)
    paired = difference_interval(student, teacher, EVALUATION)
    unpaired = difference_interval(rng.permutation(student), teacher, EVALUATION)
    assert paired and unpaired
    assert _width(paired.low, paired.high) < 0.5 * _width(unpaired.low, unpaired.high)


def test_unscored_rows_are_left_out_in_pairs() -> None:
    a = np.array([1.0, np.nan, 0.0, 1.0])
    b = np.array([1.0, 1.0, np.nan, 0.0])
    interval = difference_interval(a, b, EVALUATION)
    assert interval is not None
    assert (interval.num_rows, interval.estimate) == (2, 0.5)


def test_nothing_scored_gives_none_not_zero() -> None:
    assert mean_interval(np.array([np.nan, np.nan]), EVALUATION) is None
    assert difference_interval(np.array([1.0, np.nan]), np.array([np.nan, 1.0]), EVALUATION) is None


def test_equal_scores_give_an_interval_without_width() -> None:
    interval = ratio_interval(np.ones(50), np.ones(50), EVALUATION)
    assert interval is not None
    assert (interval.low, interval.estimate, interval.high) == (1.0, 1.0, 1.0)


def test_ratio_over_a_teacher_that_knows_nothing_is_undefined() -> None:
    assert ratio_interval(np.ones(50), np.zeros(50), EVALUATION) is None


def test_ratio_that_is_undefined_in_some_resample_has_no_ends() -> None:
    scores = np.array([1.0, 0.0, 0.0])
    interval = ratio_interval(scores, scores, EVALUATION)
    assert interval is not None
    assert (interval.estimate, interval.low, interval.high) == (1.0, None, None)


def test_one_row_says_nothing_about_its_spread() -> None:
    interval = difference_interval(np.array([1.0]), np.array([0.0]), EVALUATION)
    assert interval is not None
    assert (interval.estimate, interval.low, interval.high) == (1.0, None, None)


def test_same_seed_gives_the_same_interval() -> None:
    scores = np.random.default_rng(1).random(100)
    assert mean_interval(scores, EVALUATION) == mean_interval(scores, EVALUATION)
    other = EVALUATION.model_copy(update={"seed": 1})
    assert mean_interval(scores, EVALUATION) != mean_interval(scores, other)


_binary = hnp.arrays(np.float64, st.integers(2, 60), elements=st.sampled_from([0.0, 1.0]))


@settings(deadline=None, max_examples=30)
@given(_binary)
def test_interval_contains_the_estimate(scores: np.ndarray) -> None:
    interval = mean_interval(scores, EVALUATION)
    assert interval and interval.low is not None and interval.high is not None
    assert 0 <= interval.low <= interval.estimate + 1e-12
    assert interval.estimate - 1e-12 <= interval.high <= 1


@settings(deadline=None, max_examples=30)
@given(_binary, st.integers(0, 1000))
def test_difference_changes_its_sign_when_the_models_swap(a: np.ndarray, seed: int) -> None:
    b = np.random.default_rng(seed).permutation(a)
    forth, back = difference_interval(a, b, EVALUATION), difference_interval(b, a, EVALUATION)
    assert forth and back and forth.low is not None and back.high is not None
    assert forth.estimate == pytest.approx(-back.estimate)
    assert forth.low == pytest.approx(-back.high)


def _width(low: float | None, high: float | None) -> float:
    assert low is not None and high is not None
    return high - low
