"""What the progress of a stage says."""

from uuid import uuid4

import pytest

from tasks import artifacts
from tests.waiting import wait_until


def test_a_stage_that_has_not_counted_its_rows_is_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(
        artifacts,
        "update_progress_artifact",
        lambda _, progress, description: shown.append(description),
    )
    monkeypatch.setattr(artifacts, "_UPDATE_S", 0.01)
    report = artifacts.ProgressReport("count", (uuid4(), "Rows"), None, None)
    wait_until(lambda: bool(shown))
    report.update(3, 10)
    wait_until(lambda: len(shown) > 1)
    report.end(finished=True)
    assert shown[0] == "Rows: starting"
    assert shown[1].startswith("Rows: 3 of 10")
    assert shown[-1] == "Rows: 3, finished"
