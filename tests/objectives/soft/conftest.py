"""A small teacher, and an attempt of the stage."""

from pathlib import Path

import pytest

from distillery.storage.stage import Attempt
from distillery.storage.store import Store
from tests.fixtures_models import make_tiny_model
from tests.fixtures_scores import CONTEXT, STAGE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("teacher") / "tiny", max_length=CONTEXT)


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(Store(str(tmp_path / "store")), STAGE, "attempt")
