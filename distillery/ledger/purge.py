"""Responses are taken out of the ledger for good, so that customers' data can be removed."""

import dataclasses
import json
import sqlite3
import time
from collections.abc import Collection, Iterator
from typing import Any

import sqlalchemy as sa

from distillery.ledger.claims import portions
from distillery.ledger.database import Database
from distillery.ledger.reports import teachers
from distillery.ledger.tables import claims, responses
from schemas.errors import StoreError

_ROWS_PER_BATCH = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Criteria:
    """Which rows; a row has to meet all that are given."""

    teacher: str | None = None
    """Model name, or the start of a teacher id (7 digits at least)."""

    older_than_s: float | None = None
    """Committed longer ago than this, seconds."""

    prompt_hashes: Collection[str] | None = None
    """Hashes of messages."""

    contains: str | None = None
    """Text found in a message, or in what came back; upper and lower case differ."""

    def __post_init__(self) -> None:
        """Refuse to purge everything by accident."""
        if all(value is None for value in vars(self).values()):
            raise ValueError(
                "a purge without a criterion would empty the ledger. Give teacher, older_than_s, "
                "prompt_hashes or contains."
            )
        if self.contains == "":
            raise ValueError("every row contains the empty text. Give contains some text.")


def count_matches(database: Database, criteria: Criteria) -> int:
    """Return how many rows a purge would remove."""
    return database.read(lambda connection: sum(map(len, _matches(connection, criteria))))


def purge(database: Database, criteria: Criteria) -> int:
    """Remove the rows that meet ``criteria``, and the claims on them; return how many.

    On SQLite their text is gone from the files too. On PostgreSQL that is for its VACUUM to do,
    and for whoever keeps its backups.

    Raises:
        StoreError: The ledger cannot be written; or the rows are removed, but another program
            keeps their text in the file by reading it.
    """

    def work(connection: sa.Connection) -> int:
        num_rows = 0
        # Found first, then deleted: a cursor does not like its table to change under it.
        for hashes in list(_matches(connection, criteria)):
            for some in portions(hashes):
                connection.execute(sa.delete(claims).where(claims.c.request_hash.in_(some)))
                delete = sa.delete(responses).where(responses.c.request_hash.in_(some))
                num_rows += connection.execute(delete).rowcount
        return num_rows

    num_rows = database.write(work)
    if database.is_sqlite:
        _scrub(database, num_rows)
    return num_rows


def _matches(connection: sa.Connection, criteria: Criteria) -> Iterator[list[str]]:
    """Yield the hashes of the rows that meet ``criteria``, batch by batch."""
    c = responses.c
    query = sa.select(c.request_hash)
    if criteria.teacher is not None:
        query = query.where(c.teacher_id.in_(teachers(connection, criteria.teacher)))
    if criteria.older_than_s is not None:
        query = query.where(c.created_at < time.time() - criteria.older_than_s)
    if criteria.contains is not None:
        query = query.add_columns(c.request, c.text, c.error)
    queries = [query]
    if criteria.prompt_hashes is not None:
        queries = [
            query.where(c.prompt_hash.in_(some)) for some in portions(criteria.prompt_hashes)
        ]
    for query in queries:
        with connection.execute(query.execution_options(yield_per=_ROWS_PER_BATCH)) as found:
            for batch in found.partitions():
                yield [
                    row.request_hash
                    for row in batch
                    if criteria.contains is None or _contains(row, criteria.contains)
                ]


def _contains(row: Any, text: str) -> bool:
    """Return whether ``text`` is in a message, the response or the error."""
    if text in row.text or text in (row.error or ""):
        return True
    # Not by LIKE: JSON text escapes quotes, line ends and letters.
    return any(text in message["content"] for message in json.loads(row.request)["messages"])


def _scrub(database: Database, num_rows: int) -> None:
    """Write the SQLite file anew without what was deleted, and empty its log."""
    connection = database.engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("VACUUM")
        is_read_by_others = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        cursor.close()
    except sqlite3.OperationalError as error:
        raise StoreError(_left_behind(database, num_rows, str(error))) from error
    finally:
        connection.close()
    if is_read_by_others:
        raise StoreError(_left_behind(database, num_rows, "another program is reading it"))


def _left_behind(database: Database, num_rows: int, reason: str) -> str:
    return (
        f"removed {num_rows} rows from ledger {database.name!r}, but their text is still in its "
        f"file: {reason}. End the runs that use it and make room on its disk, then purge again."
    )
