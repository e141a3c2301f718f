"""A student in a store, and the rows that it learnt from."""

from pathlib import Path

import pytest

from tests.fixtures_export import TrainedStudent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudent:
    return TrainedStudent(tmp_path_factory.mktemp("exports"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "exported"
    made.mkdir()
    return made
