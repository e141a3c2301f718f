"""Win rates of a judge, and what they would be if people had judged."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from distillery.evaluation.judgement import corrected_win_rate, read_judgement
from distillery.evaluation.statistics import Bootstrap, Scores, mean_sums
from schemas.comparison import Judgement
from schemas.evaluation import EvaluationSpec
from schemas.judge import JudgeSpec

EVALUATION = EvaluationSpec(bootstrap_samples=300)
MODEL = {"kind": "openai", "model": "arbiter", "base_url": "http://host/v1"}
SIDES = np.array([1.0, 0.0, -1.0])
W, T, L = "win", "tie", "loss"


def judge(**preferences: Any) -> JudgeSpec:
    source = {"kind": "file", "path": "people.jsonl"}
    return JudgeSpec.model_validate(
        {"model": MODEL, "preferences": {"source": source, **preferences}}
    )


def verdict_frame(
    pairs: dict[str, Sequence[str | None]], people: Sequence[tuple[str | None, str]] = ()
) -> pd.DataFrame:
    """Return verdicts by opponent, and (the judge's, people's) on human preferences."""
    rows: list[tuple[str | None, ...]] = [
        (f"preference-{n}", None, said, said, said, preferred)
        for n, (said, preferred) in enumerate(people)
    ]
    rows += [
        (f"test-{n:03d}", against, said, said, said, None)
        for against, verdicts in pairs.items()
        for n, said in enumerate(verdicts)
    ]
    names = ["prompt_id", "against", "shown_first", "shown_second", "verdict", "preferred"]
    return pd.DataFrame(rows, columns=names).astype("str")


def judgement(
    verdicts: pd.DataFrame, spec: JudgeSpec, clusters: Mapping[str, str] | None = None
) -> Judgement:
    """Return what follows from verdicts; every test row is a cluster of its own."""
    own = {prompt_id: prompt_id for prompt_id in verdicts["prompt_id"]}
    return read_judgement(verdicts, spec, clusters or own, EVALUATION)


def test_wins_ties_and_losses_are_counted_by_opponent_and_unscored_rows_are_no_losses() -> None:
    frame = verdict_frame({"teacher": [W, W, T, L, None] * 8, "baseline": [W] * 40})
    found = judgement(frame, judge())
    teacher, baseline = found.pairs
    assert (teacher.against, baseline.against) == ("teacher", "baseline")
    counted = (teacher.wins, teacher.ties, teacher.losses, teacher.unscored)
    assert counted == (16, 8, 8, 8)
    assert teacher.win_rate is not None and baseline.win_rate is not None
    assert (teacher.win_rate.estimate, teacher.win_rate.num_rows) == (20 / 32, 32)
    assert teacher.win_rate.low is not None and teacher.win_rate.high is not None
    assert 0.4 < teacher.win_rate.low < 20 / 32 < teacher.win_rate.high < 0.8
    assert baseline.win_rate.estimate == 1.0
    assert (found.agreement, teacher.corrected) == (None, None)


def test_a_judge_without_a_verdict_that_can_be_read_has_no_win_rate() -> None:
    (pair,) = judgement(verdict_frame({"teacher": [None] * 3}), judge()).pairs
    assert (pair.win_rate, pair.corrected, pair.unscored) == (None, None, 3)


def test_rows_of_one_cluster_are_no_independent_evidence() -> None:
    frame = verdict_frame({"teacher": ([W] * 4 + [L] * 4) * 10}, [(W, W), (L, L), (T, L)] * 20)
    clusters = {f"test-{n:03d}": f"customer {n // 4}" for n in range(80)}

    def widths(found: Judgement) -> tuple[float, float]:
        (pair,) = found.pairs
        assert pair.win_rate is not None and pair.corrected is not None
        ends = pair.win_rate.low, pair.win_rate.high, pair.corrected.low, pair.corrected.high
        low, high, corrected_low, corrected_high = (end or 0.0 for end in ends)
        return high - low, corrected_high - corrected_low

    raw, corrected = widths(judgement(frame, judge()))
    raw_of_clusters, corrected_of_clusters = widths(judgement(frame, judge(), clusters))
    assert raw_of_clusters > 1.7 * raw and corrected_of_clusters > 1.4 * corrected


def test_position_bias_is_the_share_of_pairs_that_the_order_decided() -> None:
    frame = verdict_frame({"teacher": [W, W, T, None, T]})
    frame.loc[0, "shown_second"] = L
    frame.loc[4, ["shown_first", "shown_second"]] = None  # the same text: nobody was asked
    assert judgement(frame, judge()).order_decided == 1 / 3


def test_agreement_is_the_share_of_human_preferences_on_which_the_verdicts_are_the_same() -> None:
    people = [(W, W), (T, L), (L, L), (None, W), (T, T)] * 6
    found = judgement(verdict_frame({"teacher": [W]}, people), judge()).agreement
    assert found is not None
    assert (found.estimate, found.num_rows) == (0.75, 24)
    assert found.low is not None and found.low < 0.75


def test_a_judge_who_always_agrees_corrects_nothing() -> None:
    frame = verdict_frame({"teacher": [W, W, T, L] * 10}, [(W, W), (L, L)] * 20)
    (pair,) = judgement(frame, judge()).pairs
    assert pair.win_rate is not None and pair.corrected is not None
    assert pair.corrected.estimate == pair.win_rate.estimate == 0.625


def test_a_judge_who_is_right_in_three_of_four_is_believed_to_be_so_on_the_test_rows() -> None:
    # Of people's n wins he sees 3/4 and calls 1/4 a loss: (0.7 - 0.25) / (0.75 - 0.25) = 0.9.
    frame = verdict_frame({"teacher": [W] * 14 + [L] * 6}, [(W, W), (W, W), (W, W), (L, W)] * 20)
    (pair,) = judgement(frame, judge()).pairs
    assert pair.corrected is not None and pair.corrected.estimate == pytest.approx(0.9)


def test_a_liking_for_the_student_comes_off_where_the_preferences_show_it() -> None:
    # He calls every win a win, and half of the losses too: (0.8 - 0.5) / (1 - 0.5) = 0.6.
    frame = verdict_frame({"teacher": [W] * 16 + [L] * 4}, [(W, W), (W, W), (W, L), (L, L)] * 20)
    (pair,) = judgement(frame, judge(student_first=True)).pairs
    assert pair.corrected is not None and pair.corrected.estimate == pytest.approx(0.6)
    (pair,) = judgement(frame, judge()).pairs
    assert pair.corrected is not None and pair.corrected.estimate > 0.9


@pytest.mark.parametrize("said", [(W, L), (L, W)])
def test_a_judge_no_better_than_chance_corrects_nothing(said: tuple[str, str]) -> None:
    people = [(verdict, preferred) for preferred in (W, L) for verdict in (W, L)] * 10
    people.append(said)
    frame = verdict_frame({"teacher": [W] * 20}, people)
    (pair,) = judgement(frame, judge()).pairs
    assert pair.corrected is None


@pytest.mark.parametrize(("num_rows", "num_people"), [(9, 60), (60, 9)])
def test_few_rows_or_few_preferences_give_no_interval(num_rows: int, num_people: int) -> None:
    people = [(W, W), (L, L), (W, T)] * (num_people // 3)
    frame = verdict_frame({"teacher": [W, L, T] * (num_rows // 3)}, people)
    (pair,) = judgement(frame, judge()).pairs
    assert pair.corrected is not None
    assert (pair.corrected.estimate, pair.corrected.low, pair.corrected.high) == (0.5, None, None)


def test_a_judge_who_may_be_no_better_than_chance_has_no_interval() -> None:
    frame = verdict_frame({"teacher": [W, L] * 10}, [(W, W), (L, L), (L, W)] * 4)
    (pair,) = judgement(frame, judge()).pairs
    assert pair.corrected is not None
    assert (pair.corrected.estimate, pair.corrected.low) == (0.5, None)


def simulated(
    draw: np.random.Generator, preferred: Scores, *, attention: float, liking: float
) -> Scores:
    """Return the verdicts of a judge who attends to some rows, tosses on others, and flatters."""
    tossed = draw.choice(SIDES, len(preferred))
    said = np.where(draw.random(len(preferred)) < attention, preferred, tossed)
    return np.where(draw.random(len(preferred)) < liking, 1.0, said)


@pytest.mark.parametrize(
    ("shares", "attention", "liking"),
    [((0.6, 0.2, 0.2), 0.6, 0.0), ((0.3, 0.2, 0.5), 0.7, 0.3)],
    ids=["noisy", "flattering"],
)
def test_a_biased_judges_interval_misses_the_truth_and_the_corrected_one_covers_it(
    shares: tuple[float, float, float], attention: float, liking: float
) -> None:
    draw = np.random.default_rng(0)
    truth = shares[0] + shares[1] / 2
    num_runs, covered, missed = 120, 0, 0
    for _ in range(num_runs):

        def say(preferred: Scores) -> Scores:
            return simulated(draw, preferred, attention=attention, liking=liking)

        said = say(draw.choice(SIDES, 400, p=shares))
        # People prefer the first response as often as the second, unlike on the test rows.
        preferred = draw.choice(SIDES, 300, p=(0.4, 0.2, 0.4))
        rows = range(len(said))
        raw = Bootstrap(rows, EVALUATION).interval(mean_sums((said + 1) / 2))
        corrected = corrected_win_rate(
            said,
            rows,
            say(preferred),
            preferred,
            student_first=liking > 0,
            evaluation=EVALUATION,
        )
        assert raw is not None and raw.low is not None and raw.high is not None
        assert corrected is not None
        assert corrected.low is not None and corrected.high is not None
        missed += not raw.low <= truth <= raw.high
        covered += corrected.low <= truth <= corrected.high
    assert missed / num_runs > 0.9
    assert 0.9 <= covered / num_runs <= 0.99
