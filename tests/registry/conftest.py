from collections.abc import Iterator
from pathlib import Path

import pytest

from distillery.registry.database import DatabaseRegistry
from distillery.storage.store import Store
from schemas.execution import StoreSpec


@pytest.fixture
def store(ledger_spec: StoreSpec) -> Store:
    """Where the models are, beside each of the two databases."""
    return Store(ledger_spec.root)


@pytest.fixture
def registry(ledger_spec: StoreSpec) -> Iterator[DatabaseRegistry]:
    """An empty registry, on each of the two databases."""
    with DatabaseRegistry(ledger_spec) as opened:
        yield opened


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "store")
