"""Fixtures of all tests of teachers: a store, and an endpoint's pauses cut short."""

from pathlib import Path

import pytest

from schemas.execution import StoreSpec
from tests.fixtures_generation import patient, quick_retries

__all__ = ["patient", "quick_retries"]


@pytest.fixture
def store(tmp_path: Path) -> StoreSpec:
    return StoreSpec(root=str(tmp_path / "store"))
