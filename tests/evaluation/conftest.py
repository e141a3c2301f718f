from pathlib import Path

import pytest

from schemas.execution import StoreSpec
from tests.fixtures_models import make_tiny_model


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "teacher", num_layers=3, seed=1)


@pytest.fixture
def store(tmp_path: Path) -> StoreSpec:
    return StoreSpec(root=str(tmp_path / "store"))
