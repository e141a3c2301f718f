"""Scratch folders go with their owners, however those end."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distillery.storage.scratch import scratch_folder

ROOT = Path(__file__).resolve().parents[2]
_OWNER = """
import sys
from distillery.storage.scratch import scratch_folder
with scratch_folder("train") as folder:
    (folder / "checkpoint").write_text("large")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def _make_old(folder: Path) -> None:
    lock = folder.parent / "distillery.lock"
    os.utime(lock, (lock.stat().st_mtime - 3600,) * 2)


def test_a_scratch_folder_is_empty_and_gone_afterwards(scratch: Path) -> None:
    with scratch_folder("train") as folder:
        assert scratch in folder.parents
        assert list(folder.iterdir()) == []
        (folder / "model").mkdir()
    assert list(scratch.iterdir()) == []


def test_the_folder_of_a_killed_process_goes_and_that_of_a_living_one_stays(scratch: Path) -> None:
    command = [sys.executable, "-c", _OWNER]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        of_other = Path(owner.stdout.readline().strip())
        _make_old(of_other)
        with scratch_folder("train"):
            assert (of_other / "checkpoint").read_text() == "large"
        owner.kill()
        owner.wait()
        with scratch_folder("train"):
            assert not of_other.parent.exists()


def test_a_folder_whose_lock_is_about_to_be_taken_stays(scratch: Path) -> None:
    beginning = scratch / "distillery-train-x"
    beginning.mkdir()
    (beginning / "distillery.lock").touch()
    with scratch_folder("train"):
        assert beginning.exists()
    _make_old(beginning / "files")
    with scratch_folder("train"):
        assert not beginning.exists()


def test_without_locks_there_are_scratch_folders_that_nobody_takes_for_dead(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, *args: Any, **named: Any) -> None:
        Path(self.lock_file).touch()
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr("filelock.FileLock.acquire", refuse)
        beginning = scratch_folder("train")
        folder = beginning.__enter__()
    assert [path.name for path in folder.parent.iterdir()] == ["files"]
    with scratch_folder("train"):
        assert folder.is_dir()
    beginning.__exit__(None, None, None)
    assert list(scratch.iterdir()) == []
