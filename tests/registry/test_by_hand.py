"""What a person does past the gate."""

import pytest

from distillery.registry.by_hand import promote_by_hand, roll_back
from distillery.registry.database import DatabaseRegistry
from distillery.storage.store import Store
from schemas.errors import RegistryError
from schemas.execution import StoreSpec
from tests.fixtures_registry import entry, gate_decides, put_files, sealed_student, student_ref

ALIAS = ("tickets", "champion")


def test_a_person_promotes_past_the_gate_and_it_is_recorded_as_such(
    ledger_spec: StoreSpec, registry: DatabaseRegistry, store: Store
) -> None:
    student = sealed_student(ledger_spec, "by hand")
    registry.promote(entry("1"), expected=None)
    done = promote_by_hand(registry, store, *ALIAS, student.fingerprint[:10], "urgent")
    assert (done.kind, done.reason, done.student) == ("manual", "urgent", student)
    assert done.compared is None and done.metrics == {}
    assert registry.champion(*ALIAS) == done
    file = store.read_json("aliases/tickets/champion.json")
    assert file is not None and file["kind"] == "manual"
    with pytest.raises(RegistryError, match=r"points to .* already"):
        promote_by_hand(registry, store, *ALIAS, student.fingerprint, "again")


def test_a_student_that_passed_before_comes_back_with_its_figures(
    ledger_spec: StoreSpec, registry: DatabaseRegistry, store: Store
) -> None:
    first, second = sealed_student(ledger_spec, "first"), sealed_student(ledger_spec, "second")
    gate_decides(first, None, ledger_spec)
    gate_decides(second, first, ledger_spec)
    roll_back(registry, store, *ALIAS, "rude")
    done = promote_by_hand(registry, store, *ALIAS, second.fingerprint, "it was not")
    assert done.metrics["accuracy"] and done.compared == "e" * 64
    assert [e.kind for e in registry.history(*ALIAS)] == [
        *["promotion"] * 2,
        "rollback",
        "manual",
    ]


def test_only_a_student_with_files_is_promoted_by_hand(
    ledger_spec: StoreSpec, registry: DatabaseRegistry, store: Store
) -> None:
    student = sealed_student(ledger_spec, "by hand")
    with pytest.raises(RegistryError, match="holds no trained student whose fingerprint begins"):
        promote_by_hand(registry, store, *ALIAS, "zz", "urgent")
    other = sealed_student(ledger_spec, "other")
    with pytest.raises(RegistryError, match=r"2 students of store .* begin with ''"):
        promote_by_hand(registry, store, *ALIAS, "", "urgent")
    store.delete(student.uri)
    with pytest.raises(RegistryError, match="holds no trained student"):
        promote_by_hand(registry, store, *ALIAS, student.fingerprint, "urgent")
    assert promote_by_hand(registry, store, *ALIAS, "", "urgent").student == other


def test_a_rollback_needs_the_files_of_the_one_before(
    ledger_spec: StoreSpec, registry: DatabaseRegistry, store: Store
) -> None:
    first, second = student_ref("1"), student_ref("2")
    put_files(store, first, second)
    registry.promote(entry("1"), expected=None)
    registry.promote(entry("2"), expected=student_ref("1").uri)
    store.delete(first.uri)
    with pytest.raises(RegistryError, match="is gone from the store, so tickets/champion cannot"):
        roll_back(registry, store, *ALIAS, "rude")
    put_files(store, first)
    assert roll_back(registry, store, *ALIAS, "rude").student == first
    file = store.read_json("aliases/tickets/champion.json")
    assert file is not None and file["student"]["uri"] == first.uri


@pytest.mark.parametrize(
    ("task", "alias", "named"),
    [
        ("tickets", "../../../champion", "'../../../champion' cannot be a gate.alias"),
        ("tickets", "", "'' cannot be a gate.alias"),
        ("../tickets", "champion", "'../tickets' cannot be a task.name"),
        ("My Tickets", "champion", "'My Tickets' cannot be a task.name"),
    ],
)
def test_nobody_is_promoted_to_a_name_that_no_recipe_can_have(
    ledger_spec: StoreSpec,
    registry: DatabaseRegistry,
    store: Store,
    task: str,
    alias: str,
    named: str,
) -> None:
    student = sealed_student(ledger_spec, "by hand")
    with pytest.raises(RegistryError, match=named):
        promote_by_hand(registry, store, task, alias, student.fingerprint, "urgent")
    assert registry.aliases() == []


def test_what_a_person_does_needs_a_reason(
    ledger_spec: StoreSpec, registry: DatabaseRegistry, store: Store
) -> None:
    first, second = sealed_student(ledger_spec, "first"), sealed_student(ledger_spec, "second")
    with pytest.raises(RegistryError, match="the reason is ' '"):
        promote_by_hand(registry, store, *ALIAS, first.fingerprint, " ")
    gate_decides(first, None, ledger_spec)
    gate_decides(second, first, ledger_spec)
    with pytest.raises(RegistryError, match="the reason is ''"):
        roll_back(registry, store, *ALIAS, "")
    assert [e.student for e in registry.history(*ALIAS)] == [first, second]
