"""Real data that the repository does not hold."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = Path(os.environ.get("DISTILLERY_DATA", ROOT / "../shared/data"))


def shared_rows(path: str) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file below the shared data; skip the test where it is absent."""
    file = SHARED_DATA / path
    if not file.is_file():
        pytest.skip(f"{file} is not there; DISTILLERY_DATA names the folder with {path}")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines() if line]
