"""One ledger database: transactions that survive its short absence, and errors that say why."""

import shutil
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from distillery.ledger import engine as _engine
from distillery.storage.logs import counting_logger
from schemas.errors import StoreError

logger = counting_logger(__name__)
T = TypeVar("T")

# How long a database that has gone away is waited for, seconds: longer than a restart takes.
_OUTAGE_S = 120.0
_PAUSE_S = 1.0

# PostgreSQL's codes for: connection lost, rolled back for another's sake, shutting down or
# starting, too many connections.
_LOST_CLASSES = ("08", "40")
_LOST_CODES = ("57P01", "57P02", "57P03", "53300")

# Well below the 32,766 variables that one SQLite statement may hold; larger gains nothing.
_HASHES_PER_QUERY = 500
# SQLite calls it an I/O error when the index of its log cannot grow.
_FULL_BELOW_BYTES = 65_536


class Database:
    """Runs transactions. Safe to use from several threads."""

    def __init__(self, url: sa.URL) -> None:
        self.engine = _engine.open_engine(url)
        self.is_sqlite = url.get_backend_name() == "sqlite"
        # A query may hold a password too.
        shown = url.set(query={}).render_as_string(hide_password=True)
        self.file = Path(str(url.database)) if self.is_sqlite else None
        """The SQLite file."""
        self.name = str(self.file or shown)
        """What messages call it."""

    def read(self, work: Callable[[sa.Connection], T], *, outage_s: float | None = None) -> T:
        """Return what ``work`` returns, run in a reading transaction; again if that is lost."""
        return self._run(work, writes=False, outage_s=outage_s)

    def write(self, work: Callable[[sa.Connection], T], *, outage_s: float | None = None) -> T:
        """Return what ``work`` returns, run in a writing transaction.

        Args:
            work: What to do. It is run again when the transaction was rolled back, and also when
                the answer to its commit was lost: doing it twice must be the same as once.
            outage_s: How long to wait for a database that is away or locked. None: ``_OUTAGE_S``.

        Raises:
            StoreError: The database refuses; see :func:`is_about_all`.
        """
        return self._run(work, writes=True, outage_s=outage_s)

    def dispose(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    def _run(
        self, work: Callable[[sa.Connection], T], *, writes: bool, outage_s: float | None
    ) -> T:
        patience_s = _OUTAGE_S if outage_s is None else outage_s
        failed_at: list[float] = []
        while True:
            try:
                with self.engine.connect() as connection:
                    connection = connection.execution_options(distillery_writes=writes)
                    with connection.begin():
                        result = work(connection)
            except sa.exc.DBAPIError as error:
                failed_at.append(time.monotonic())
                if not _passes(error) or failed_at[-1] - failed_at[0] >= patience_s:
                    raise self._refusal(error, writes) from error
                if len(failed_at) == 1:
                    continue  # once at once: the connection may just be an old one
                if len(failed_at) == 2:
                    logger.warning(
                        "ledger %r is away: %s; waiting for it", self.name, _sentence(error)
                    )
                time.sleep(min(_PAUSE_S, patience_s))
            else:
                if len(failed_at) > 1:
                    logger.warning("ledger %r is back", self.name)
                return result

    def _refusal(self, error: sa.exc.DBAPIError, writes: bool) -> StoreError:
        """Return the StoreError that says what the database said, and what to do."""
        said, name = _sentence(error), self.name
        if "not a database" in said:
            return StoreError(
                f"ledger {name!r} is not an SQLite database ({said}). Move that file away, or "
                "name another place in store.root or store.ledger_url."
            )
        if "malformed" in said or "corrupt" in said:
            return StoreError(
                f"ledger {name!r} is damaged: {said}. Put a copy of it in its place, or save "
                "what can be read with `sqlite3 FILE .recover | sqlite3 NEW`."
            )
        if "locked" in said:
            return StoreError(
                f"ledger {name!r} has been locked by another program for "
                f"{_engine.BUSY_TIMEOUT_S:g} s ({said}). Responses committed so far are kept. End "
                "that program, then run again."
            )
        if self._is_full(said):
            return StoreError(
                f"the disk of ledger {name!r} is full ({said}). Responses committed so far are "
                "kept. Free some space there, then run again: only the missing ones are asked."
            )
        action = "write" if writes else "read"
        return StoreError(
            f"cannot {action} ledger {name!r}: {said}. Responses committed so far are kept. "
            "Check that the database can be reached, then run again."
        )

    def _is_full(self, said: str) -> bool:
        if "is full" in said or "No space left" in said:
            return True
        if self.file is None or "I/O error" not in said:
            return False
        return shutil.disk_usage(self.file.parent).free < _FULL_BELOW_BYTES


def portions(hashes: Collection[str]) -> Iterator[list[str]]:
    """Yield the distinct ``hashes`` in lists short enough for one query, in order."""
    ordered = sorted(set(hashes))
    for start in range(0, len(ordered), _HASHES_PER_QUERY):
        yield ordered[start : start + _HASHES_PER_QUERY]


def is_about_all(error: BaseException) -> bool:
    """Return whether the database would refuse anything now, not just what it was given."""
    cause = error.__cause__
    if not (isinstance(error, StoreError) and isinstance(cause, sa.exc.DBAPIError)):
        return False
    is_general = isinstance(cause, sa.exc.OperationalError) or type(cause) is sa.exc.DatabaseError
    return is_general or _passes(cause)


def _passes(error: sa.exc.DBAPIError) -> bool:
    """Return whether the trouble may pass: the connection is lost, or the file is locked."""
    if isinstance(error.orig, sqlite3.Error):
        return "locked" in str(error.orig)
    if error.connection_invalidated:
        return True
    code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    if code is not None:
        return code[:2] in _LOST_CLASSES or code in _LOST_CODES
    return isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)


def _sentence(error: sa.exc.DBAPIError) -> str:
    """Return the first line of what the driver said."""
    lines = str(error.orig).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error.orig).__name__
