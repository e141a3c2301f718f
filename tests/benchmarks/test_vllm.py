"""The benchmark of a teacher that the stage serves."""

import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import vllm
from tests.fixtures_vllm import StubPython, stub_python

__all__ = ["stub_python"]


@pytest.mark.slow
def test_both_clients_ask_the_same_server_and_the_ratio_has_a_goal(
    stub_python: StubPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = stub_python.teacher().model_dump(mode="json")
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump({"teacher": section}))
    output = tmp_path / "result.md"
    options = ["--rows", "80", "--repeats", "2", "--teacher", str(tmp_path / "teacher.yaml")]
    monkeypatch.setattr(sys, "argv", ["benchmarks.vllm", *options, "--output", str(output)])
    assert vllm.main() == 0
    assert len(stub_python.servers) == 1 and stub_python.running == []
    asked = stub_python.asked
    assert len(set(asked)) == 80 and len(asked) == 2 * 8 + 2 * 2 * 80
    assert "| ours over bare | >= 0.950 |" in output.read_text()
