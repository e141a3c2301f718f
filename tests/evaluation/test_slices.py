"""Where the student is worse is found, and chance is not taken for it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from distillery.evaluation.findings import findings, notes
from distillery.evaluation.slices import length_quarters, slice_figures
from schemas.comparison import Comparison, SliceFigures
from schemas.evaluation import EvaluationSpec
from tests.fixtures_comparison import comparison

LANGUAGES = ["fr"] * 60 + ["de"] * 240 + ["en"] * 490 + ["nl"] * 10
EVALUATION = EvaluationSpec(bootstrap_samples=200)


def right(rows: range, num_rows: int = 800) -> list[float]:
    """Return scores of which those of ``rows`` are wrong."""
    return [0.0 if row in rows else 1.0 for row in range(num_rows)]


def by_language(
    student: list[float], languages: Sequence[str | None] = LANGUAGES, **others: list[float]
) -> Comparison:
    scores = {"teacher": right(range(780, 800)), **others, "student": student}
    references = ["yes", "no"] * 400
    return comparison(scores, references=references, divided={"language": languages})


def slice_of(found: Comparison, name: str) -> SliceFigures:
    return next(part for part in found.slices if part.name == name)


def test_a_planted_regression_in_one_slice_is_caught() -> None:
    found = by_language(right(range(60)), champion=right(range(5)))
    assert [part.name for part in found.slices] == ["language=en", "language=de", "language=fr"]
    regressions = {part.value: part.regressions for part in found.slices}
    assert regressions == {"en": (), "de": (), "fr": ("teacher", "champion")}
    french = slice_of(found, "language=fr")
    assert french.num_rows == 60
    assert french.quality["student"] and french.quality["student"].estimate == 0
    assert french.quality["champion"] and french.quality["champion"].estimate == 55 / 60
    [teacher, champion] = french.differences
    assert champion.difference and champion.difference.estimate == pytest.approx(-55 / 60)
    assert champion.difference.high is not None and champion.difference.high < -0.8
    # McNemar's test of 60 rows lost and none won, times six comparisons.
    assert teacher.p_value == pytest.approx(2 * 0.5**60)
    assert teacher.adjusted_p_value == pytest.approx(6 * 2 * 0.5**60)
    texts = [finding.text for finding in findings(found)]
    assert (
        "The student is worse than the champion on 'language=fr' and than the teacher on "
        "'language=fr' (of 3 slices, corrected for their number)."
    ) in texts
    assert any(note.startswith("Slices: 1 with fewer than") for note in notes(found))


def test_without_a_regression_it_is_said_that_none_was_found() -> None:
    found = by_language(right(range(780, 800)))
    assert [part.regressions for part in found.slices] == [(), (), ()]
    said = "The student is worse than the teacher on none of 3 slices, corrected for their number."
    assert said in [finding.text for finding in findings(found)]


def test_rows_without_a_value_are_in_no_slice() -> None:
    found = by_language(right(range(0)), [None] * 700 + ["en"] * 100)
    assert [(part.name, part.num_rows) for part in found.slices] == [("language=en", 100)]


def test_a_slice_of_answers_that_are_all_right_is_not_certain() -> None:
    quality = slice_of(by_language(right(range(0))), "language=fr").quality["student"]
    assert quality is not None
    assert quality.estimate == quality.high == 1
    assert quality.low == pytest.approx(0.025 ** (1 / 60))  # Clopper and Pearson


@pytest.mark.slow
@pytest.mark.parametrize("num_clusters", [400, 120])
@pytest.mark.parametrize("is_right_or_wrong", [True, False])
def test_a_student_that_is_as_good_is_hardly_ever_called_worse(
    num_clusters: int, is_right_or_wrong: bool
) -> None:
    """At most 5 % of 100 comparisons, on 14 slices against two opponents."""
    false_alarms = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        clusters = np.arange(400) if num_clusters == 400 else draw.integers(num_clusters, size=400)
        easy = draw.random(num_clusters)[clusters]
        scores = {
            name: np.clip(easy + 0.4 * draw.normal(size=400), 0, 1)
            for name in ("teacher", "champion", "student")
        }
        if is_right_or_wrong:
            scores = {name: (values > 0.4).astype(float) for name, values in scores.items()}
        divided = {
            column: column_of(draw.integers(num, size=400).astype(str))
            for column, num in (("label", 10), ("length", 4))
        }
        parts, _ = slice_figures(scores, clusters, divided, "accuracy", EVALUATION)
        false_alarms += any(part.regressions for part in parts)
    assert false_alarms <= 5


def test_rows_of_one_cluster_are_one_piece_of_evidence() -> None:
    scores = {"teacher": np.ones(40), "student": np.array([0.0] * 20 + [1.0] * 20)}
    divided = {"language": column_of(["en"] * 40)}

    def p_value(clusters: Sequence[int]) -> float:
        [part], _ = slice_figures(scores, np.array(clusters), divided, "accuracy", EVALUATION)
        [found] = part.differences
        assert found.p_value is not None
        return found.p_value

    assert p_value(range(40)) == pytest.approx(2 * 0.5**20)
    assert p_value([0] * 20 + [1] * 20) > 0.2


def test_quarters_by_length_keep_equal_lengths_together() -> None:
    lengths = [5] * 50 + [120] * 20 + [300] * 20 + [4000] * 10
    found = length_quarters(lengths)
    assert list(dict.fromkeys(found)) == [
        "up to 5 characters",
        "6 to 300 characters",
        "over 300 characters",
    ]
    assert found.count("up to 5 characters") == 50


def column_of(values: Any) -> pd.Series:
    return pd.Series(values, dtype=object)
