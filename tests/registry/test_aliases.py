import pytest

from distillery.registry.aliases import find_rival, promote_student, read_champion
from distillery.storage.store import Store
from schemas.comparison import Comparison
from schemas.errors import StageError
from schemas.gate import GateSpec
from schemas.refs import ModelRef
from tests.fixtures_comparison import (
    SCORES,
    STUDENT_FINGERPRINT,
    TASK,
    comparison,
    measurement,
    measurements,
)
from tests.fixtures_lineage import lineage_of

# Of twenty rows, on which two students tie.
GATE = GateSpec(min_retention=0.7, max_loss_to_champion=0.01)


def student_ref(fingerprint: str = STUDENT_FINGERPRINT, attempt: str = "a") -> ModelRef:
    uri = f"train_student/{fingerprint}/{attempt}/student"
    return ModelRef(uri=uri, fingerprint=fingerprint, num_parameters=100_000)


def compared(student: ModelRef, champion: ModelRef | None = None) -> Comparison:
    """Return a comparison in which ``student`` and ``champion`` are equally good."""
    scores = dict(SCORES)
    known = {"student": measurement(100_000, 2**15, 0.01, student.fingerprint)}
    if champion is not None:
        scores["champion"] = SCORES["student"]
        known["champion"] = measurement(100_000, 2**15, 0.01, champion.fingerprint)
    return comparison(scores, measured=measurements(**known))


def seal(store: Store, student: ModelRef) -> ModelRef:
    store.write_bytes(f"{student.uri}/config.json", b"{}")
    return student


def test_student_that_passes_is_published(store: Store) -> None:
    promotion = promote_student(comparison(), lineage_of(student_ref()), TASK, GATE, store)
    assert promotion.promoted and promotion.previous is None
    pointer = read_champion(TASK, "champion", store)
    assert pointer is not None and pointer.current.student == student_ref()
    assert pointer.current.metrics["accuracy"] and pointer.current.num_rows == 20
    assert {pair.against for pair in pointer.current.differences} >= {"teacher", "baseline"}
    assert pointer.current.compared == "e" * 64


def test_student_that_fails_leaves_the_alias_alone(store: Store) -> None:
    promote_student(comparison(), lineage_of(student_ref()), TASK, GATE, store)
    before = store.read_json("aliases/tickets/champion.json")
    strict = GateSpec(min_retention=0.99)
    promotion = promote_student(comparison(), lineage_of(student_ref()), TASK, strict, store)
    assert not promotion.promoted
    assert promotion.sentence.startswith("not promoted: lower end of the interval of student / t")
    assert store.read_json("aliases/tickets/champion.json") == before


def test_comparison_of_another_student_is_refused(store: Store) -> None:
    with pytest.raises(StageError, match="the comparison measured '555555555555'"):
        promote_student(comparison(), lineage_of(student_ref("9" * 64)), TASK, GATE, store)


def test_champions_before_are_kept_newest_first(store: Store) -> None:
    before = None
    for fingerprint in ("1" * 64, "2" * 64, "3" * 64):
        student = seal(store, student_ref(fingerprint))
        assert find_rival(student, TASK, "champion", store) == before
        promotion = promote_student(
            compared(student, before), lineage_of(student), TASK, GATE, store
        )
        assert promotion.promoted and promotion.previous == before
        before = student
    pointer = read_champion(TASK, "champion", store)
    assert pointer is not None
    assert [entry.student.fingerprint[0] for entry in pointer.previous] == ["2", "1"]


def test_a_student_does_not_replace_a_champion_that_did_not_take_part(store: Store) -> None:
    first, second = seal(store, student_ref("1" * 64)), student_ref("2" * 64)
    promote_student(compared(first), lineage_of(first), TASK, GATE, store)
    promotion = promote_student(compared(second), lineage_of(second), TASK, GATE, store)
    assert not promotion.promoted
    assert "was promoted while this run was under way" in promotion.sentence
    store.delete(first.uri)
    promotion = promote_student(compared(second), lineage_of(second), TASK, GATE, store)
    assert not promotion.promoted and "is gone from the store" in promotion.sentence
    pointer = read_champion(TASK, "champion", store)
    assert pointer is not None and pointer.current.student == first


def test_the_champion_itself_is_held_against_the_one_before_it(store: Store) -> None:
    first, second = seal(store, student_ref("1" * 64)), seal(store, student_ref("2" * 64))
    promote_student(compared(first), lineage_of(first), TASK, GATE, store)
    assert find_rival(first, TASK, "champion", store) is None
    promote_student(compared(second, first), lineage_of(second), TASK, GATE, store)
    assert find_rival(second, TASK, "champion", store) == first
    assert find_rival(first, TASK, "champion", store) == second


def test_same_student_again_replaces_its_entry(store: Store) -> None:
    for _ in range(2):
        promote_student(comparison(), lineage_of(student_ref(attempt="a")), TASK, GATE, store)
    pointer = read_champion(TASK, "champion", store)
    assert pointer is not None
    assert pointer.previous == () and pointer.current.student.uri.endswith("/a/student")


def test_a_student_trained_again_is_held_against_what_it_was(store: Store) -> None:
    """Other weights may have the same fingerprint."""
    promote_student(comparison(), lineage_of(student_ref(attempt="a")), TASK, GATE, store)
    rival = find_rival(student_ref(attempt="b"), TASK, "champion", store)
    assert rival == student_ref(attempt="a")
    assert find_rival(student_ref(attempt="a"), TASK, "champion", store) is None
