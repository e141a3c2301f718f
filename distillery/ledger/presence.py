"""Which of the processes that share a ledger are alive: each holds a lock as long as it runs.

The operating system or the database server releases it when the process ends, however it ends.
"""

import contextlib
import threading
import time
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from filelock import FileLock, Timeout

from distillery.ledger.database import Database
from schemas.errors import StoreError

# Between a lock file and its lock lie milliseconds.
_YOUNG_S = 60.0
# A PostgreSQL server that restarts releases all locks. Each process takes its own again within a
# second or so; until then nobody is taken for dead.
_CHECK_S = 1.0
_GRACE_S = 10.0


class Presence(Protocol):
    """Tells others that this process is alive, until it is closed or the process ends."""

    name: str
    """Names this process in claims."""

    def dead(self, connection: sa.Connection, names: Collection[str]) -> set[str]:
        """Return those of ``names`` whose processes are gone."""

    def close(self) -> None:
        """Release the lock."""


def enter(database: Database) -> Presence:
    """Return the presence of this process at ``database``."""
    if database.file is not None:
        return _FilePresence(database.file)
    return _ServerPresence(database.engine)


class _FilePresence:
    """A lock on a file beside the SQLite ledger."""

    def __init__(self, ledger: Path) -> None:
        self.name = uuid.uuid4().hex
        self._ledger = ledger
        for file in ledger.parent.glob(f"{ledger.name}-*.lock"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > _YOUNG_S:
                    _is_free(file)
        file = self._file(self.name)
        self._lock = FileLock(file, thread_local=False)
        try:
            self._lock.acquire(blocking=False)
        except OSError as error:
            raise StoreError(
                f"cannot lock {str(file)!r}: {error.strerror}. Responses committed so far are "
                "kept. Give this user write access and some space there, then run again."
            ) from error

    def dead(self, _: sa.Connection, names: Collection[str]) -> set[str]:
        return {name for name in names if _is_free(self._file(name))}

    def close(self) -> None:
        self._file(self.name).unlink(missing_ok=True)
        self._lock.release()

    def _file(self, name: str) -> Path:
        return self._ledger.with_name(f"{self._ledger.name}-{name}.lock")


def _is_free(file: Path) -> bool:
    """Return whether nobody holds the lock ``file``; then it is deleted."""
    if not file.exists():
        return True
    try:
        with FileLock(file, blocking=False):
            file.unlink(missing_ok=True)
    except (Timeout, OSError):  # held, or by another user, which cannot be told
        return False
    return True


class _ServerPresence:
    """A PostgreSQL advisory lock, held by a connection of its own."""

    def __init__(self, engine: sa.Engine) -> None:
        self._key = uuid.uuid4().int >> 65  # a positive bigint
        self.name = str(self._key)
        self._engine = engine
        self._connection: sa.Connection | None = None
        self._cut_off_at = float("-inf")
        self._hold()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="ledger-presence", daemon=True)
        self._thread.start()

    def dead(self, connection: sa.Connection, names: Collection[str]) -> set[str]:
        query = (
            "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks "
            "WHERE locktype = 'advisory' AND objsubid = 1"
        )
        held = {str(key) for key in connection.exec_driver_sql(query).scalars()}
        if self.name not in held or time.monotonic() - self._cut_off_at < _GRACE_S:
            return set()
        return set(names) - held

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        self._drop()

    def _keep(self) -> None:
        while not self._done.wait(_CHECK_S):
            try:
                self._hold()
            except sa.exc.SQLAlchemyError:
                self._cut_off_at = time.monotonic()
                self._drop()

    def _hold(self) -> None:
        """Take the lock, again where that is held already: it tells whether it still is.

        Not waited for: a server that has not noticed yet that we were cut off holds it for us.
        """
        if self._connection is None:
            autocommit = {"isolation_level": "AUTOCOMMIT"}
            self._connection = self._engine.connect().execution_options(**autocommit)
        self._connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({self._key})")

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()  # not back into the pool: its session holds the lock
            self._connection.close()
            self._connection = None
