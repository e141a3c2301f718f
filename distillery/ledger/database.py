"""One ledger database: transactions that survive a short loss of it, and errors that say why not.

All ledgers of a process at one URL share one database: chunks work in several threads, and
SQLite's writers would otherwise wait for each other in the busy handler, which sleeps.
"""

import logging
import sqlite3
import time
import uuid
from collections.abc import Callable
from typing import Generic, TypeVar

import sqlalchemy as sa

from distillery.ledger import engine as _engine
from distillery.ledger.tables import receipts
from schemas.errors import StoreError

logger = logging.getLogger(__name__)
T = TypeVar("T")

# How long a database that has gone away is waited for, seconds: longer than a restart takes.
_OUTAGE_S = 120.0
_PAUSE_S = 1.0

# PostgreSQL's codes for: connection lost, rolled back for another's sake, shutting down or
# starting, too many connections.
_LOST_CLASSES = ("08", "40")
_LOST_CODES = ("57P01", "57P02", "57P03", "53300")


class OutageError(StoreError):
    """The database was away for longer than it is waited for."""


class Database:
    """Runs transactions. Safe to use from several threads."""

    def __init__(self, url: sa.URL) -> None:
        self.engine = _engine.open_engine(url)
        # A query may hold a password too.
        self.name = url.set(query={}).render_as_string(hide_password=True)
        self.is_sqlite = url.get_backend_name() == "sqlite"

    def read(self, work: Callable[[sa.Connection], T], *, outage_s: float | None = None) -> T:
        """Return what ``work`` returns, run in a reading transaction; again if that is lost."""
        return self._run(work, writes=False, survives=is_lost, outage_s=outage_s)

    def write(
        self,
        work: Callable[[sa.Connection], T],
        *,
        survives: Callable[[sa.exc.DBAPIError], bool] | None = None,
        outage_s: float | None = None,
        once: bool = True,
    ) -> T:
        """Return what ``work`` returns, run in a writing transaction that is done exactly once.

        Args:
            work: What to do; it is run again when its transaction was rolled back.
            survives: The errors to try again after. None: a lost connection.
            outage_s: For how long. None: ``_OUTAGE_S``; 0: not at all.
            once: Whether doing it twice would do harm.

        Raises:
            StoreError: The database refuses; an OutageError when it stayed away.
        """
        return self._run(
            work, writes=True, survives=survives or is_lost, outage_s=outage_s, once=once
        )

    def dispose(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    def _run(
        self,
        work: Callable[[sa.Connection], T],
        *,
        writes: bool,
        survives: Callable[[sa.exc.DBAPIError], bool],
        outage_s: float | None = None,
        once: bool = False,
    ) -> T:
        patience_s = _OUTAGE_S if outage_s is None else outage_s
        attempt = _Attempt(self, work, writes, once=once and not self.is_sqlite)
        failed_at: float | None = None
        while True:
            try:
                result = attempt.run()
            except sa.exc.DBAPIError as error:
                if patience_s == 0 or not survives(error):
                    raise self._refusal(error, writes) from error
                now = time.monotonic()
                if failed_at is None:
                    # Once at once: the connection may just be an old one.
                    failed_at = now
                    continue
                if now - failed_at >= patience_s:
                    raise OutageError(str(self._refusal(error, writes))) from error
                if attempt.num_failed == 2:
                    logger.warning(
                        "ledger %r is away: %s; waiting for it", self.name, _sentence(error)
                    )
                time.sleep(min(_PAUSE_S, patience_s))
            else:
                if attempt.num_failed >= 2:
                    logger.warning("ledger %r is back", self.name)
                return result

    def _refusal(self, error: sa.exc.DBAPIError, writes: bool) -> StoreError:
        """Return the StoreError that says what the database said, and what to do."""
        said = _sentence(error)
        if "not a database" in said:
            return StoreError(
                f"ledger {self.name!r} is no SQLite database ({said}). Move that file away, or "
                "name another place in store.root or store.ledger_url."
            )
        if "malformed" in said or "corrupt" in said:
            return StoreError(
                f"ledger {self.name!r} is damaged: {said}. Put a copy of it in its place, or save "
                "what can be read with `sqlite3 FILE .recover | sqlite3 NEW`."
            )
        if "locked" in said:
            return StoreError(
                f"ledger {self.name!r} has been locked by another program for "
                f"{_engine.BUSY_TIMEOUT_S:g} s ({said}). Responses committed so far are kept. End "
                "that program, then run again."
            )
        if "is full" in said or "No space left" in said:
            return StoreError(
                f"there is no space left for ledger {self.name!r} ({said}). Responses committed "
                "so far are kept. Make room on its disk, then run again."
            )
        action = "write" if writes else "read"
        return StoreError(
            f"cannot {action} ledger {self.name!r}: {said}. Responses committed so far are kept. "
            "Check that the database can be reached and has space, then run again."
        )


class _Attempt(Generic[T]):
    """One piece of work on its way to being done exactly once."""

    def __init__(
        self,
        database: Database,
        work: Callable[[sa.Connection], T],
        writes: bool,
        *,
        once: bool,
    ) -> None:
        self._database = database
        self._work = work
        self._writes = writes
        self._receipt = uuid.uuid4().hex if once else None
        self._unclear: tuple[int, T] | None = None
        self.num_failed = 0

    def run(self) -> T:
        """Run the work in a transaction, unless the last one turns out to be committed."""
        try:
            with self._database.engine.connect() as connection:
                connection = connection.execution_options(distillery_writes=self._writes)
                if self._unclear is not None:
                    number, result = self._unclear
                    if _is_committed(connection, number, str(self._receipt)):
                        return result
                    self._unclear = None
                return self._once(connection)
        except sa.exc.DBAPIError:
            self.num_failed += 1
            raise

    def _once(self, connection: sa.Connection) -> T:
        transaction = connection.begin()
        try:
            number = None
            if self._receipt is not None:
                receipt = {"receipt": self._receipt, "created_at": time.time()}
                connection.execute(sa.insert(receipts), receipt)
                number = connection.exec_driver_sql("SELECT txid_current()").scalar_one()
            result = self._work(connection)
        except BaseException:
            transaction.rollback()
            raise
        try:
            transaction.commit()
        except sa.exc.DBAPIError as error:
            # The connection broke between COMMIT and its answer: what was paid would be counted
            # twice if it were committed again. The receipt tells.
            if number is not None and is_lost(error):
                self._unclear = (number, result)
            raise
        return result


def _is_committed(connection: sa.Connection, number: int, receipt: str) -> bool:
    """Return whether a PostgreSQL transaction was committed; waits while it is under way."""
    while True:
        with connection.begin():
            query = sa.text("SELECT txid_status(:number)")
            status = connection.execute(query, {"number": number}).scalar()
            if status != "in progress":
                known = sa.select(receipts.c.receipt).where(receipts.c.receipt == receipt)
                return connection.execute(known).scalar() is not None
        time.sleep(0.05)


def is_lost(error: sa.exc.DBAPIError) -> bool:
    """Return whether the connection broke or could not be made, or the server is restarting."""
    if isinstance(error.orig, sqlite3.Error):
        return False
    if error.connection_invalidated:
        return True
    code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    if code is not None:
        return code[:2] in _LOST_CLASSES or code in _LOST_CODES
    return isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)


def is_away(error: sa.exc.DBAPIError) -> bool:
    """Return whether the trouble is the database's, not the row's: lost, locked, full."""
    return is_lost(error) or isinstance(error, sa.exc.OperationalError)


def _sentence(error: sa.exc.DBAPIError) -> str:
    """Return the first line of what the driver said."""
    lines = str(error.orig).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error.orig).__name__
