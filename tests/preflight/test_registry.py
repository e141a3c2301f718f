"""A registry that cannot be used, or a champion without files, is found early."""

import pytest

from distillery.preflight.registry import check_registry
from distillery.registry.database import DatabaseRegistry
from distillery.storage.store import Store
from schemas.errors import RegistryError, StoreError
from schemas.execution import StoreSpec
from schemas.gate import GateSpec
from tests.fixtures_comparison import TASK
from tests.fixtures_registry import entry, put_files, student_ref
from tests.ports import free_port


@pytest.fixture
def store(ledger_spec: StoreSpec) -> Store:
    return Store(ledger_spec.root)


def test_a_champion_whose_files_are_gone_is_found_early(
    ledger_spec: StoreSpec, store: Store
) -> None:
    registry = DatabaseRegistry(ledger_spec)
    check_registry(TASK, GateSpec(), ledger_spec)
    first, second = student_ref("1"), student_ref("2")
    registry.promote(entry("1"), expected=None)
    with pytest.raises(RegistryError, match=r"is gone from store .* set gate\.alias to another"):
        check_registry(TASK, GateSpec(), ledger_spec)
    put_files(store, first)
    check_registry(TASK, GateSpec(), ledger_spec)
    registry.promote(entry("2"), expected=entry("1").student.uri)
    with pytest.raises(RegistryError, match=r"`distillery registry rollback tickets --reason"):
        check_registry(TASK, GateSpec(), ledger_spec)
    put_files(store, second)
    check_registry(TASK, GateSpec(), ledger_spec)
    registry.close()


def test_a_registry_that_cannot_be_reached_is_found_early() -> None:
    url = f"postgresql+psycopg://me@127.0.0.1:{free_port()}/x"
    with pytest.raises(StoreError, match="refused"):
        check_registry(TASK, GateSpec(), StoreSpec(ledger_url=url))
