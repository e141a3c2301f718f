"""Real data that the repository does not hold."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = Path(os.environ.get("DISTILLERY_DATA", ROOT / "../shared/data"))


def shared_file(path: str) -> Path:
    """Return a file below the shared data; skip the test where it is absent."""
    file = SHARED_DATA / path
    if not file.is_file():
        pytest.skip(f"{file} is not there; DISTILLERY_DATA names the folder with {path}")
    return file


def shared_rows(path: str) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file below the shared data; skip the test where it is absent."""
    return [json.loads(line) for line in shared_file(path).read_text("utf-8").split("\n") if line]
