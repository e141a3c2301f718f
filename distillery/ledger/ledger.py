"""The ledger: every teacher response, kept for good, keyed by the hash of its request.

SQLite beside a local store, or PostgreSQL by URL. Shared by runs, recipes and students, so that
a response is paid for once. A response is committed as it arrives; a claim says which run is
asking for what, and ends with that run.
"""

from collections.abc import Collection
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, Self

import sqlalchemy as sa

from distillery.ledger import reports
from distillery.ledger.batches import Batches
from distillery.ledger.claims import Claims
from distillery.ledger.commits import GroupCommit, Writer
from distillery.ledger.database import Database, portions
from distillery.ledger.engine import ledger_url
from distillery.ledger.purge import purge
from distillery.ledger.readings import Readings
from distillery.ledger.rows import Averages, LedgerRow, Spending
from distillery.ledger.tables import create_tables, responses
from schemas.execution import StoreSpec


class Ledger:
    """Responses, claims and spending in one database. Safe to use from several threads.

    A database that goes away for a while (locked, restarted) is waited for; then a StoreError
    says so. A forked process opens one of its own.
    """

    def __init__(self, url: sa.URL) -> None:
        self._database = Database(url)
        try:
            create_tables(self._database)
            writer = Writer(self._database.engine)
        except BaseException:
            self._database.dispose()
            raise
        self._group = GroupCommit(self._database, writer)
        self._claims = Claims(self._database, writer)
        self.batches = Batches(self._database)
        """What is in batches at a provider."""
        self.readings = Readings(self._database)
        """How far logs have been read."""

    @classmethod
    def open(cls, spec: StoreSpec) -> Self:
        """Return the ledger of a store; close it after use (it is a context manager).

        Raises:
            RecipeError: A remote root names no ``ledger_url``, or that URL cannot be used.
            StoreError: The database cannot be reached, or was written by another version.
        """
        return cls(ledger_url(spec))

    def close(self) -> None:
        """Commit what is left, let go of all claims and close the connections."""
        self._group.close()
        self._claims.close()
        self._database.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- responses ---------------------------------------------------------------------------

    def get(self, hashes: Collection[str]) -> dict[str, LedgerRow]:
        """Return the rows of these requests, by hash, in all states; what has none is not in it."""

        def work(connection: sa.Connection) -> dict[str, LedgerRow]:
            found = {}
            for some in portions(hashes):
                query = sa.select(responses).where(responses.c.request_hash.in_(some))
                for row in connection.execute(query).mappings():
                    found[row["request_hash"]] = LedgerRow(**row)
            return found

        return self._database.read(work)

    def commit_soon(self, row: LedgerRow, *, purpose: str | None = None) -> "Future[None]":
        """Return a future that is done when ``row`` is committed and the claim on it is dropped.

        Figures add up with those that are there. The text takes the place of the one that is
        there unless that is ok, or the request failed this time and had not before.

        A thread commits as soon as something is there, and all that has come meanwhile with it.
        The future fails with a StoreError when the database stays away, or refuses this row.

        Args:
            row: A row with this run's figures.
            purpose: What its cost is put down to. None: nothing.
        """
        return self._group.submit(row, purpose)

    # -- claims ------------------------------------------------------------------------------

    def working(self) -> AbstractContextManager[str]:
        """Yield the id of an owner of claims, which end with the block.

        They end with this process, too: others see at once that it is gone.
        """
        return self._claims.working()

    def claim(self, hashes: Collection[str], owner: str, *, max_new_tokens: int) -> set[str]:
        """Return those of ``hashes`` that ``owner`` may ask the teacher for.

        They are those without a final row (:meth:`LedgerRow.is_final`) that nobody alive claims.
        """
        return self._claims.claim(hashes, owner, max_new_tokens=max_new_tokens)

    # -- reports -----------------------------------------------------------------------------

    def spent(self, purpose: str) -> Spending:
        """Return what was spent for ``purpose``, over all runs."""
        return self._database.read(lambda connection: reports.spent(connection, purpose))

    def averages(self, teacher_id: str) -> Averages:
        """Return means over the newest ok rows of a teacher, to plan with."""
        return self._database.read(lambda connection: reports.averages(connection, teacher_id))

    def stats(self) -> list[dict[str, Any]]:
        """Return one dictionary per teacher; see :func:`distillery.ledger.reports.stats`."""
        return self._database.read(reports.stats)

    def purge(self, *, dry_run: bool = False, **criteria: Any) -> int:
        """Remove the rows that meet all criteria; see :func:`distillery.ledger.purge.purge`."""
        return purge(self._database, dry_run=dry_run, **criteria)
