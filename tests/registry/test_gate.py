import functools
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.registry.gate import check_gate
from schemas.comparison import Comparison, Difference, Interval
from schemas.gate import GateSpec
from schemas.promotion import GateCheck
from schemas.refs import ModelRef
from tests.fixtures_comparison import (
    CHAMPION_FINGERPRINT,
    SCORES,
    comparison,
    measurement,
    measurements,
)

NAN = float("nan")
GATE = GateSpec()
CHAMPION = ModelRef(
    uri="train_student/c/a/model", fingerprint=CHAMPION_FINGERPRINT, num_parameters=1
)
# 100 rows, 40 of them with the most frequent reference
REFERENCES = ["yes"] * 40 + ["no"] * 30 + ["maybe"] * 30


def right(share: int) -> list[float]:
    return [1.0] * share + [0.0] * (100 - share)


def checks(
    scores: Mapping[str, Sequence[float]],
    gate: GateSpec = GATE,
    references: Sequence[str] = REFERENCES,
    champion: ModelRef | None = None,
    *,
    is_lost: bool = False,
) -> list[GateCheck]:
    found = comparison(scores, references=references)
    return list(check_gate(found, gate, champion, is_lost=is_lost))


def asked(found: Comparison, gate: GateSpec) -> list[GateCheck]:
    return list(check_gate(found, gate))


def failed(found: list[GateCheck]) -> list[tuple[str, str]]:
    return [(check.condition, check.sentence) for check in found if not check.passed]


usual = functools.cache(comparison)


def with_figures(retention: float | None, gain_low: float | None) -> Comparison:
    """Return a comparison with these two figures, whatever they are."""
    ratio = None
    if retention is not None:
        ratio = Interval.model_construct(estimate=retention, low=0.0, high=1.0, num_rows=20)
    gain = Interval.model_construct(estimate=0.3, low=gain_low, high=1.0, num_rows=20)

    def changed(pair: Difference) -> Difference:
        match pair.name, pair.against:
            case "student", "teacher":
                return pair.model_copy(update={"ratio": ratio})
            case "student", "baseline":
                return pair.model_copy(update={"difference": gain})
        return pair

    found = usual()
    return found.model_copy(update={"differences": tuple(map(changed, found.differences))})


def test_default_gate_asks_for_retention_gain_and_a_lead_over_the_most_frequent_answer() -> None:
    found = asked(comparison(), GateSpec())
    assert [(check.condition, check.passed) for check in found] == [
        ("min_retention", True),
        ("min_gain", True),
        ("min_lead_over_majority", True),
        ("min_lead_over_majority", True),
    ]


def test_low_retention_alone_closes_the_gate() -> None:
    found = checks({"teacher": right(90), "baseline": right(42), "student": right(72)})
    assert failed(found) == [
        ("min_retention", "retention 0.8 is 0.12 below gate.min_retention=0.92")
    ]


def test_no_gain_over_the_baseline_alone_closes_the_gate() -> None:
    found = checks({"teacher": right(90), "baseline": right(89), "student": right(89)})
    ((condition, sentence),) = failed(found)
    assert condition == "min_gain"
    assert sentence.endswith("0 is exactly gate.min_gain=0, not above it")


def test_a_teacher_no_better_than_the_most_frequent_answer_alone_closes_the_gate() -> None:
    found = checks({"teacher": right(2), "baseline": right(0), "student": right(50)})
    assert failed(found) == [
        (
            "min_lead_over_majority",
            "teacher minus the most frequent answer 'yes' -0.38 is 0.38 below "
            "gate.min_lead_over_majority=0",
        )
    ]


def test_a_student_that_always_gives_the_most_frequent_answer_alone_closes_the_gate() -> None:
    found = checks(
        {"teacher": right(97), "baseline": right(50), "student": right(95)},
        references=["fine"] * 95 + ["broken"] * 5,
    )
    assert failed(found) == [
        (
            "min_lead_over_majority",
            "student minus the most frequent answer 'fine' 0 is exactly "
            "gate.min_lead_over_majority=0, not above it",
        )
    ]


def test_a_student_worse_than_the_champion_alone_closes_the_gate() -> None:
    scores = {"teacher": right(90), "baseline": right(50), "champion": right(89)}
    found = checks({**scores, "student": right(88)}, champion=CHAMPION)
    assert failed(found) == [
        (
            "max_loss_to_champion",
            "champion minus student 0.01 is 0.01 above gate.max_loss_to_champion=0",
        )
    ]


def test_a_student_as_good_as_the_champion_may_replace_it() -> None:
    scores = {"teacher": right(90), "baseline": right(50), "champion": right(88)}
    found = checks({**scores, "student": right(88)}, champion=CHAMPION)
    assert failed(found) == []
    assert "max_loss_to_champion" in [check.condition for check in found]


@pytest.mark.parametrize("gate", [{"max_loss_to_champion": 0.01}, {"max_loss_to_champion": None}])
def test_loss_to_the_champion_may_be_allowed(gate: dict[str, float | None]) -> None:
    scores = {"teacher": right(90), "baseline": right(50), "champion": right(89)}
    allowed = GateSpec.model_validate(gate)
    assert failed(checks({**scores, "student": right(88)}, allowed, champion=CHAMPION)) == []


def test_a_champion_whose_files_are_gone_alone_closes_the_gate() -> None:
    scores = {"teacher": right(90), "baseline": right(50), "student": right(88)}
    assert failed(checks(scores, champion=CHAMPION, is_lost=True)) == [
        (
            "max_loss_to_champion",
            "the student was not compared with the champion, so gate.max_loss_to_champion=0 "
            "fails: 'train_student/c/a/model' is gone from the store. Restore its files, or "
            "delete the alias to start over",
        )
    ]


def test_a_champion_promoted_meanwhile_alone_closes_the_gate() -> None:
    scores = {"teacher": right(90), "baseline": right(50), "champion": right(88)}
    other = CHAMPION.model_copy(update={"fingerprint": "d" * 64})
    ((condition, sentence),) = failed(checks({**scores, "student": right(88)}, champion=other))
    assert condition == "max_loss_to_champion"
    assert sentence.endswith("was promoted while this run was under way. Run again")


def test_an_unscored_champion_closes_the_gate() -> None:
    scores = {"teacher": right(90), "baseline": right(50), "champion": [NAN] * 100}
    found = checks({**scores, "student": right(88)}, champion=CHAMPION)
    assert [condition for condition, _ in failed(found)] == [
        "max_loss_to_champion",
        "max_unscored_fraction",
    ]


def test_a_verdict_on_few_scored_rows_alone_closes_the_gate() -> None:
    teacher = [NAN if number % 10 == 9 else score for number, score in enumerate(right(90))]
    found = checks({"teacher": teacher, "baseline": right(50), "student": right(88)})
    assert failed(found) == [
        (
            "max_unscored_fraction",
            "share of unscored rows 0.1 is 0.05 above gate.max_unscored_fraction=0.05",
        )
    ]


@pytest.mark.parametrize("missing", [None, NAN, float("inf"), float("-inf")])
def test_missing_figure_fails(missing: float | None) -> None:
    for check in asked(with_figures(missing, missing), GateSpec())[:2]:
        assert not check.passed
        assert check.measured is None
        assert "could not be computed" in check.sentence


def test_gain_of_exactly_zero_is_no_gain() -> None:
    check = asked(with_figures(0.95, 0.1 + 0.2 - 0.3), GateSpec())[1]
    assert not check.passed
    assert check.sentence.endswith("0 is exactly gate.min_gain=0, not above it")


def test_retention_of_exactly_the_bound_is_enough() -> None:
    assert asked(with_figures(0.92 - 1e-16, 0.1), GateSpec())[0].passed


@given(st.floats(0, 2), st.floats(-1, 1))
def test_gate_passes_only_what_is_above_both_bounds(retention: float, gain: float) -> None:
    found = asked(with_figures(retention, gain), GateSpec())
    passed = all(check.passed for check in found)
    assert passed == (round(retention, 9) >= 0.92 and round(gain, 9) > 0)


def test_a_student_that_is_too_slow_or_too_large_alone_closes_the_gate() -> None:
    latency = GateSpec(max_latency_ratio=0.05)
    assert failed(asked(comparison(), latency)) == [
        (
            "max_latency_ratio",
            "p50 latency relative to the teacher's 0.1 is 0.05 above gate.max_latency_ratio=0.05",
        )
    ]
    memory = GateSpec(max_memory_ratio=0.05)
    assert failed(asked(comparison(), memory)) == [
        (
            "max_memory_ratio",
            "memory relative to the teacher's 0.0625 is 0.0125 above gate.max_memory_ratio=0.05",
        )
    ]
    wide = GateSpec(max_latency_ratio=0.15, max_memory_ratio=0.07)
    assert failed(asked(comparison(), wide)) == []


def test_conditions_that_are_not_asked_for_are_not_checked() -> None:
    gate = GateSpec(min_gain=None, min_lead_over_majority=None)
    found = asked(comparison(), gate)
    assert [check.condition for check in found] == ["min_retention"]


def test_ratio_of_an_unknown_size_fails() -> None:
    hosted = measurements(teacher=measurement(0, None, 0.1))
    check = asked(comparison(measured=hosted), GateSpec(max_memory_ratio=1.0))[-1]
    assert (check.condition, check.passed) == ("max_memory_ratio", False)


def test_no_baseline_fails_closed() -> None:
    scores = {name: values for name, values in SCORES.items() if name != "baseline"}
    ((condition, sentence),) = failed(asked(comparison(scores), GateSpec()))
    assert condition == "min_gain" and "could not be computed" in sentence
