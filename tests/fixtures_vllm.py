"""An interpreter that plays one with vLLM, and what it notes of its servers."""

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from schemas.teacher import VLLMTeacher
from tests import stub_vllm_python


@dataclasses.dataclass
class StubPython:
    """A script in place of the interpreter; its servers answer `answer to <prompt>`."""

    folder: Path

    def teacher(
        self,
        *,
        has_vllm: bool = True,
        dies: bool = False,
        is_never_healthy: bool = False,
        deaf: bool = False,
        load_s: float = 0.0,
        answer_s: float = 0.0,
        ends_after: int | None = None,
        **changes: Any,
    ) -> VLLMTeacher:
        """Return the teacher that it serves.

        Args:
            has_vllm: Whether the package is found.
            dies: Whether a server ends while it loads.
            is_never_healthy: Whether it loads for ever.
            deaf: Whether it passes over SIGTERM.
            load_s: How long it loads.
            answer_s: How long it takes to answer.
            ends_after: Requests that are answered before the server breaks down.
            changes: Fields of the teacher.
        """
        settings = {
            "has_vllm": has_vllm,
            "dies": dies,
            "is_never_healthy": is_never_healthy,
            "deaf": deaf,
            "load_s": load_s,
            "answer_s": answer_s,
            "ends_after": ends_after,
            "log": str(self._log),
        }
        (self.folder / "settings.json").write_text(json.dumps(settings))
        command = [sys.executable, str(stub_vllm_python.__file__), f"{self.folder}/settings.json"]
        script = self.folder / "python"
        script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        script.chmod(0o755)
        named = {"model": "org/big", "revision": "c0ffee" + 34 * "0", "start_timeout_s": 60.0}
        return VLLMTeacher(python=str(script), **{**named, **changes})

    @property
    def _log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def servers(self) -> list[list[str]]:
        """Return the arguments of each server that was started."""
        return [note["arguments"] for note in self._notes if "arguments" in note]

    @property
    def asked(self) -> list[str]:
        """Return the prompts of all requests."""
        return [note["asked"] for note in self._notes if "asked" in note]

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Return the bodies of all requests."""
        return [note["body"] for note in self._notes if "body" in note]

    @property
    def running(self) -> list[int]:
        """Return the processes of servers that are still there."""
        pids = [pid for note in self._notes for pid in note.get("pids", [])]
        return [pid for pid in pids if _is_there(pid)]

    @property
    def _notes(self) -> list[dict[str, Any]]:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [json.loads(line) for line in lines]


def _is_there(pid: int) -> bool:
    try:
        status: str = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return False
    return bool(status != psutil.STATUS_ZOMBIE)


@pytest.fixture
def stub_python(tmp_path: Path) -> StubPython:
    """Return an interpreter of this test."""
    folder = tmp_path / "environment"
    folder.mkdir()
    return StubPython(folder)
