"""A bench on which rows become prompts."""

from pathlib import Path

import pytest

from tests.data.prompt_bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)
