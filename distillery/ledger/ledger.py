"""The ledger: every teacher response, kept for good, keyed by the hash of its request.

SQLite beside a local store, or PostgreSQL by URL. Shared by runs, recipes and students, so that
a response is paid for once. A response is committed as it arrives; a claim says which run is
asking for what, and ends with that run.
"""

import contextlib
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from distillery.ledger import reports
from distillery.ledger.claims import Owner, portions
from distillery.ledger.commits import Entry
from distillery.ledger.database import is_away
from distillery.ledger.engine import ledger_url
from distillery.ledger.purge import Criteria, count_matches, purge
from distillery.ledger.registry import Shared, acquire, give_back
from distillery.ledger.rows import Averages, LedgerRow, Spending
from distillery.ledger.tables import responses
from distillery.ledger.transfer import export_rows, import_rows
from schemas.execution import StoreSpec


class Ledger:
    """Responses, claims and spending in one database. Safe to use from several threads.

    A database that goes away for a while (locked, restarted) is waited for; then a StoreError
    says so.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._database = shared.database
        self._is_closed = False

    @classmethod
    def open(cls, spec: StoreSpec) -> Self:
        """Return the ledger of a store; close it after use (it is a context manager).

        Ledgers of one process at one place share its connections and its committing thread.

        Raises:
            RecipeError: A remote root names no ``ledger_url``, or that URL cannot be used.
            StoreError: The database cannot be reached, or was written by a newer version.
        """
        return cls(acquire(ledger_url(spec)))

    def close(self) -> None:
        """Give up the connections; the last to do so commits what is left and closes them."""
        if not self._is_closed:
            self._is_closed = True
            give_back(self._shared)

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

    def commit(self, *rows: LedgerRow, purpose: str | None = None) -> None:
        """Commit rows with this run's figures, and drop the claims on them, in one transaction.

        Figures add up with those that are there. The text takes the place of the one that is
        there unless that is ok, or the request failed this time and had not before.

        Args:
            rows: In any number, also of one request.
            purpose: What their spending is put down to. None: nothing.
        """
        if rows:
            entries = [Entry(row, purpose) for row in rows]
            self._database.write(
                lambda connection: self._shared.writer.commit(connection, entries),
                survives=is_away,
            )

    def commit_soon(self, row: LedgerRow, *, purpose: str | None = None) -> "Future[None]":
        """Return a future that is done when ``row`` is committed, as :meth:`commit` does.

        A thread commits as soon as something is there, and all that has come meanwhile with it.
        It fails with a StoreError when the database stays away, or refuses this row.
        """
        return self._shared.group.submit(Entry(row, purpose))

    # -- claims ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def working(self, endpoint: str | None) -> Iterator[Owner]:
        """Yield an owner of claims at work on ``endpoint``; it and its claims end with the block.

        Others see it as long as this process lives: it beats in a thread.
        """
        owner = self._shared.desk.open(endpoint)
        try:
            yield owner
        finally:
            self._shared.desk.close(owner)

    def claim(self, hashes: Collection[str], owner: str, *, max_new_tokens: int) -> set[str]:
        """Return those of ``hashes`` that ``owner`` may ask the teacher for.

        They are the ones without a final row (see :meth:`LedgerRow.is_final`) that nobody alive
        claims. Hosts that share a SQLite file need clocks that agree to within some seconds.

        Raises:
            ValueError: ``owner`` is not at work; see :meth:`working`.
        """
        return self._shared.desk.claim(hashes, owner, max_new_tokens=max_new_tokens)

    def release(self, owner: str) -> None:
        """Drop all claims of ``owner``."""
        self._shared.desk.release(owner)

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

    # -- housekeeping ------------------------------------------------------------------------

    def export(self, path: str | Path, *, teacher: str | None = None) -> int:
        """Write rows to a file, one JSON object per line, and return how many.

        Args:
            path: File to write; compressed when its name ends in `.gz`.
            teacher: Model name or start of a teacher id. None: all.
        """
        return export_rows(self._database, Path(path), teacher)

    def import_rows(self, path: str | Path) -> tuple[int, int]:
        """Return how many rows of an exported file were taken in, and how many had no need.

        What is there stays unless the file has something better; then figures add up. Importing a
        file again changes nothing.

        Raises:
            InputDataError: A line is no row of a ledger; the rows before it stay.
        """
        return import_rows(self._database, self._shared.writer, Path(path))

    def purge(
        self,
        *,
        teacher: str | None = None,
        older_than_s: float | None = None,
        prompt_hashes: Collection[str] | None = None,
        contains: str | None = None,
        dry_run: bool = False,
    ) -> int:
        """Remove the rows that meet all criteria given, and return how many.

        On SQLite their text is gone from the files too.

        Args:
            teacher: Model name, or the start of a teacher id (7 digits at least).
            older_than_s: Committed longer ago than this, seconds.
            prompt_hashes: Hashes of messages; see ``LedgerRow.prompt_hash``.
            contains: Text found in a message, a response or an error; case matters.
            dry_run: Only count them.

        Raises:
            ValueError: There is no criterion.
        """
        criteria = Criteria(
            teacher=teacher,
            older_than_s=older_than_s,
            prompt_hashes=prompt_hashes,
            contains=contains,
        )
        return (count_matches if dry_run else purge)(self._database, criteria)
