from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.registry.promotion import check_gate, promote_student, read_champion
from distillery.storage.store import Store
from schemas.comparison import Comparison, Interval
from schemas.errors import StageError
from schemas.evaluation import GateSpec
from schemas.refs import ModelRef
from tests.fixtures_comparison import SCORES, STUDENT_FINGERPRINT, TASK, comparison

NAN = float("nan")


def with_figures(retention: float | None, gain_low: float | None) -> Comparison:
    """Return a comparison with these two figures, whatever they are."""
    found = comparison()
    interval = None
    if retention is not None:
        interval = Interval.model_construct(estimate=retention, low=0.0, high=1.0, num_rows=20)
    gain = Interval.model_construct(estimate=0.3, low=gain_low, high=1.0, num_rows=20)
    models = tuple(
        row.model_copy(update={"retention": interval}) if row.role == "student" else row
        for row in found.models
    )
    return found.model_copy(update={"models": models, "gain": gain})


def student_ref(fingerprint: str = STUDENT_FINGERPRINT, attempt: str = "a") -> ModelRef:
    uri = f"train_student/{fingerprint}/{attempt}/student"
    return ModelRef(uri=uri, fingerprint=fingerprint, num_parameters=100_000)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_default_gate_asks_for_retention_and_gain() -> None:
    checks = check_gate(comparison(), GateSpec())
    assert [(check.condition, check.passed) for check in checks] == [
        ("min_retention", True),
        ("min_gain", True),
    ]


def test_failed_condition_says_by_how_much() -> None:
    check, _ = check_gate(with_figures(0.871, 0.1), GateSpec())
    assert not check.passed
    assert check.sentence == "retention 0.871 is 0.049 below gate.min_retention=0.92"


@pytest.mark.parametrize("missing", [None, NAN, float("inf"), float("-inf")])
def test_missing_figure_fails(missing: float | None) -> None:
    for check in check_gate(with_figures(missing, missing), GateSpec()):
        assert not check.passed
        assert check.measured is None
        assert "could not be computed" in check.sentence


def test_gain_of_exactly_zero_is_no_gain() -> None:
    _, check = check_gate(with_figures(0.95, 0.1 + 0.2 - 0.3), GateSpec())
    assert not check.passed
    assert check.sentence.endswith("0 is exactly gate.min_gain=0, not above it")


def test_retention_of_exactly_the_bound_is_enough() -> None:
    check, _ = check_gate(with_figures(0.92 - 1e-16, 0.1), GateSpec())
    assert check.passed


@given(st.floats(0, 2), st.floats(-1, 1))
def test_gate_passes_only_what_is_above_both_bounds(retention: float, gain: float) -> None:
    gate = GateSpec()
    passed = all(check.passed for check in check_gate(with_figures(retention, gain), gate))
    assert passed == (round(retention, 9) >= 0.92 and round(gain, 9) > 0)


def test_ratios_are_asked_only_when_set() -> None:
    gate = GateSpec(min_gain=None, max_latency_ratio=0.15, max_memory_ratio=0.05)
    checks = {check.condition: check for check in check_gate(comparison(), gate)}
    assert set(checks) == {"min_retention", "max_latency_ratio", "max_memory_ratio"}
    assert checks["max_latency_ratio"].passed
    assert not checks["max_memory_ratio"].passed
    assert checks["max_memory_ratio"].sentence == (
        "memory relative to the teacher's 0.0625 is 0.0125 above gate.max_memory_ratio=0.05"
    )


def test_ratio_of_an_unknown_size_fails() -> None:
    found = comparison()
    models = tuple(row.model_copy(update={"memory_bytes": None}) for row in found.models)
    gate = GateSpec(max_memory_ratio=1.0)
    check = check_gate(found.model_copy(update={"models": models}), gate)[-1]
    assert (check.condition, check.passed) == ("max_memory_ratio", False)


def test_student_that_passes_is_published(store: Store) -> None:
    promotion = promote_student(comparison(), student_ref(), TASK, GateSpec(), store)
    assert promotion.promoted and promotion.previous is None
    assert promotion.alias_uri == "aliases/tickets/champion.json"
    pointer = read_champion(TASK, "champion", store)
    assert pointer is not None and pointer.current.student == student_ref()
    assert pointer.current.retention is not None and pointer.current.num_rows == 20


def test_student_that_fails_leaves_the_alias_alone(store: Store) -> None:
    promote_student(comparison(), student_ref(), TASK, GateSpec(), store)
    before = store.read_json("aliases/tickets/champion.json")
    strict = GateSpec(min_retention=0.99)
    promotion = promote_student(comparison(), student_ref(), TASK, strict, store)
    assert not promotion.promoted
    assert promotion.sentence.startswith("not promoted: retention 0.9474 is 0.0426")
    assert store.read_json("aliases/tickets/champion.json") == before


def test_no_baseline_fails_closed(store: Store) -> None:
    scores = {role: values for role, values in SCORES.items() if role != "baseline"}
    promotion = promote_student(comparison(scores), student_ref(), TASK, GateSpec(), store)
    assert not promotion.promoted
    assert store.read_json(promotion.alias_uri) is None


def test_comparison_of_another_student_is_refused(store: Store) -> None:
    with pytest.raises(StageError, match="the comparison measured '555555555555'"):
        promote_student(comparison(), student_ref("9" * 64), TASK, GateSpec(), store)


def test_champions_before_are_kept_newest_first(store: Store) -> None:
    for fingerprint in ("1" * 64, "2" * 64, "3" * 64):
        found = comparison()
        models = tuple(
            row.model_copy(update={"identity": fingerprint}) if row.role == "student" else row
            for row in found.models
        )
        found = found.model_copy(update={"models": models})
        promotion = promote_student(found, student_ref(fingerprint), TASK, GateSpec(), store)
    assert promotion.previous == student_ref("2" * 64)
    pointer = read_champion(TASK, "champion", store)
    assert pointer is not None
    assert [entry.student.fingerprint[0] for entry in pointer.previous] == ["2", "1"]


def test_same_student_again_replaces_its_entry(store: Store) -> None:
    promote_student(comparison(), student_ref(attempt="a"), TASK, GateSpec(), store)
    promote_student(comparison(), student_ref(attempt="b"), TASK, GateSpec(), store)
    pointer = read_champion(TASK, "champion", store)
    assert pointer is not None
    assert pointer.previous == () and pointer.current.student.uri.endswith("/b/student")


def test_a_verdict_on_few_scored_rows_is_none() -> None:
    found = comparison()
    rows = [row.model_copy(update={"num_unscored": found.num_rows // 2}) for row in found.models]
    check = check_gate(found.model_copy(update={"models": tuple(rows)}), GateSpec())[-1]
    assert check.condition == "max_unscored_fraction" and not check.passed
