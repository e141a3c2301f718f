"""From the gate's verdict to an alias."""

import pytest

from distillery.registry import promotion as library
from distillery.registry.database import DatabaseRegistry
from distillery.registry.promotion import check_student, find_rival, promote_student
from distillery.storage.store import Store
from schemas.errors import StageError
from schemas.execution import StoreSpec
from schemas.gate import GateSpec
from schemas.promotion import Approval, GateCheck
from tests.fixtures_comparison import TASK
from tests.fixtures_lineage import lineage_of
from tests.fixtures_registry import GATE, compared, gate_decides, put_files, student_ref

ALIAS = ("tickets", "champion")


def test_student_that_passes_is_published_with_its_figures(
    ledger_spec: StoreSpec, registry: DatabaseRegistry, store: Store
) -> None:
    promotion = gate_decides(student_ref("1"), None, ledger_spec)
    assert promotion.promoted and promotion.previous is None
    (found,) = registry.history(*ALIAS)
    assert (found.id, found.student) == (promotion.entry, student_ref("1"))
    assert found.metrics["accuracy"] and found.num_rows == 20 and found.compared == "e" * 64
    assert {pair.against for pair in found.differences} >= {"teacher", "baseline"}
    assert (found.kind, found.reason) == ("promotion", "passed the gate")
    file = store.read_json("aliases/tickets/champion.json")
    assert file is not None and file["student"]["uri"] == student_ref("1").uri


def test_student_that_fails_leaves_the_alias_alone(
    ledger_spec: StoreSpec, registry: DatabaseRegistry
) -> None:
    gate_decides(student_ref("1"), None, ledger_spec)
    strict = GateSpec(min_retention=0.99)
    promotion = gate_decides(student_ref("1"), None, ledger_spec, strict)
    assert not promotion.promoted and promotion.entry is None
    assert promotion.previous == student_ref("1")
    assert promotion.sentence.startswith("not promoted: lower end of the interval of student / t")
    assert len(registry.history(*ALIAS)) == 1


def test_comparison_of_another_student_is_refused(ledger_spec: StoreSpec) -> None:
    of_one, of_two = compared(student_ref("1")), lineage_of(student_ref("2"))
    with pytest.raises(StageError, match="the comparison measured 'train_student/1"):
        promote_student(of_one, of_two, TASK, GATE, ledger_spec)
    with pytest.raises(StageError, match="the comparison measured 'train_student/1"):
        check_student(of_one, of_two, TASK, GATE, ledger_spec)


def test_champions_follow_one_another(ledger_spec: StoreSpec, store: Store) -> None:
    before = None
    for student in map(student_ref, "123"):
        put_files(store, student)
        assert find_rival(student, TASK, GATE, ledger_spec) == before
        promotion = gate_decides(student, before, ledger_spec)
        assert promotion.promoted and promotion.previous == before
        before = student


def test_a_student_does_not_replace_a_champion_that_did_not_take_part(
    ledger_spec: StoreSpec, registry: DatabaseRegistry, store: Store
) -> None:
    first, second = student_ref("1"), student_ref("2")
    put_files(store, first)
    gate_decides(first, None, ledger_spec)
    promotion = gate_decides(second, None, ledger_spec)
    assert not promotion.promoted
    assert "was promoted while this run was under way" in promotion.sentence
    careless = GATE.model_copy(update={"max_loss_to_champion": None})
    promotion = gate_decides(second, None, ledger_spec, careless)
    assert not promotion.promoted
    assert "tickets/champion was moved to 'train_student/1" in promotion.sentence
    store.delete(first.uri)
    promotion = gate_decides(second, None, ledger_spec)
    assert not promotion.promoted and "is gone from the store" in promotion.sentence
    assert [e.student for e in registry.history(*ALIAS)] == [first]


def test_forms_that_passed_are_published_and_others_are_not(
    ledger_spec: StoreSpec, registry: DatabaseRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(passed: bool) -> GateCheck:
        sentence = "good" if passed else "bad"
        return GateCheck(
            condition="c", required=0.0, measured=1.0, passed=passed, sentence=sentence
        )

    checks = {"gguf q8_0": (check(True),), "onnx int4": (check(True), check(False))}
    monkeypatch.setattr(library, "check_forms", lambda *_: checks)
    forms = {"gguf q8_0": student_ref("8"), "onnx int4": student_ref("9")}
    student = student_ref("1")
    lineage = lineage_of(student, exported=forms)
    promotion = promote_student(compared(student), lineage, TASK, GATE, ledger_spec)
    assert promotion.promoted and promotion.forms == checks
    (found,) = registry.history(*ALIAS)
    assert found.forms == {"gguf q8_0": student_ref("8")}


def test_who_approved_and_why_is_kept_and_asked_once(
    ledger_spec: StoreSpec, registry: DatabaseRegistry
) -> None:
    said = Approval(approved=True, by="ada", comment="looks well", sentence="ada: yes")
    asking = GATE.model_copy(update={"approval_timeout_s": 1.0})
    student = student_ref("1")
    asked = (compared(student), lineage_of(student), TASK, asking, ledger_spec)
    assert not promote_student(*asked).promoted
    assert check_student(*asked).approval is None
    assert promote_student(*asked, said).promoted
    (found,) = registry.history(*ALIAS)
    assert (found.approval, found.reason) == (said, "looks well")
    assert check_student(*asked).approval == said


def test_forms_that_came_after_an_approval_are_asked_about(
    ledger_spec: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Approval(approved=True, by="ada", comment="", sentence="ada: yes")
    asking = GATE.model_copy(update={"approval_timeout_s": 1.0})
    student, form = student_ref("1"), {"gguf q8_0": student_ref("8")}
    monkeypatch.setattr(library, "check_forms", lambda *_: {"gguf q8_0": ()})
    bare = (compared(student), lineage_of(student, exported=form), TASK, asking, ledger_spec)
    assert promote_student(*bare, said).promoted
    assert check_student(*bare).approval == said
    remade = lineage_of(student, exported={"gguf q8_0": student_ref("9")})
    assert check_student(compared(student), remade, TASK, asking, ledger_spec).approval is None


def test_a_student_that_is_the_champion_already_changes_nothing(
    ledger_spec: StoreSpec, registry: DatabaseRegistry
) -> None:
    one, again = (gate_decides(student_ref("1"), None, ledger_spec) for _ in range(2))
    assert again.promoted and again.entry == one.entry and again.previous == student_ref("1")
    assert len(registry.history(*ALIAS)) == 1


def test_nobody_is_asked_about_a_student_that_was_rolled_back(
    ledger_spec: StoreSpec, registry: DatabaseRegistry, store: Store
) -> None:
    first, second = student_ref("1"), student_ref("2")
    put_files(store, first)
    gate_decides(first, None, ledger_spec)
    gate_decides(second, first, ledger_spec)
    registry.rollback(*ALIAS, "it is rude")
    verdict = check_student(compared(second, first), lineage_of(second), TASK, GATE, ledger_spec)
    assert [check.condition for check in verdict.checks if not check.passed] == ["alias"]
    promotion = gate_decides(second, first, ledger_spec)
    assert not promotion.promoted
    assert "(it is rude), and the gate does not bring it back" in promotion.sentence
    assert registry.history(*ALIAS)[-1].student == first


def test_a_student_that_nobody_was_asked_about_is_not_called_promoted(
    ledger_spec: StoreSpec, registry: DatabaseRegistry
) -> None:
    asking = GATE.model_copy(update={"approval_timeout_s": 60.0})
    promotion = gate_decides(student_ref("1"), None, ledger_spec, asking)
    assert not promotion.promoted and registry.history(*ALIAS) == []
    assert promotion.sentence.startswith("not promoted: every condition holds now, but nobody")
