"""Folders for what is only of use now; those of killed processes do not stay."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX, _LOCK = "distillery-", "distillery.lock"
# Between a folder and its lock lie milliseconds.
_YOUNG_S = 60.0


@contextlib.contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Yield an empty folder of this machine that is gone afterwards.

    A process that is killed cannot delete its own, and a training's is as large as its
    checkpoints. So whoever comes next deletes all folders whose owners are gone: those with a lock
    that nobody holds. On a file system without locks they stay.

    Args:
        purpose: Part of its name, for people who look into the system's scratch folder.
    """
    _sweep()
    with (
        tempfile.TemporaryDirectory(
            prefix=f"{_PREFIX}{purpose}-", ignore_cleanup_errors=True
        ) as made,
        contextlib.ExitStack() as held,
    ):
        folder, lock = Path(made, "files"), Path(made, _LOCK)
        folder.mkdir()
        try:
            held.enter_context(FileLock(lock))
        except OSError:
            lock.unlink(missing_ok=True)  # or it would be taken for a dead owner's
        yield folder


def _sweep() -> None:
    """Delete the folders of owners who are gone."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError, Timeout):
            if time.time() - lock.stat().st_mtime < _YOUNG_S:
                continue
            with FileLock(lock, blocking=False):
                shutil.rmtree(lock.parent, ignore_errors=True)
