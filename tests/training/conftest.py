"""What tests of this folder train on."""

from pathlib import Path

import pytest

from tests.fixtures_training import Bench, rows_to_learn


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "store", rows_to_learn())


@pytest.fixture
def misled(tmp_path: Path) -> Bench:
    """Rows on which the validation loss gets worse once the training rows are known by heart."""
    return Bench(tmp_path / "store", rows_to_learn(misleading=True))
