"""Responses are taken out of the ledger for good, so that customers' data can be removed."""

import json
import sqlite3
import time
from collections.abc import Collection, Iterator
from typing import Any

import sqlalchemy as sa

from distillery.ledger.database import Database, portions
from distillery.ledger.reports import teachers
from distillery.ledger.tables import claims, responses
from schemas.errors import StoreError

_ROWS_PER_BATCH = 1000


def purge(database: Database, *, dry_run: bool, **criteria: Any) -> int:
    """Remove the rows that meet all ``criteria``, and the claims on them; return how many.

    On SQLite their text is gone from the files too. On PostgreSQL that is for its VACUUM to do,
    and for whoever keeps its backups.

    Args:
        database: The ledger's.
        dry_run: Only count them.
        criteria: `teacher`: a model's name, or the start of a teacher id (7 digits at least).
            `older_than_s`: committed longer ago than this, seconds. `prompt_hashes`: hashes of
            messages, see ``LedgerRow.prompt_hash``. `contains`: text found in a message, a
            response or an error; case matters.

    Raises:
        ValueError: There is no criterion, or an empty one.
        StoreError: The ledger cannot be written; or the rows are removed, but another program
            keeps their text in the file by reading it.
    """
    if all(value is None for value in criteria.values()):
        raise ValueError(
            "a purge without a criterion would empty the ledger. Give teacher, older_than_s, "
            "prompt_hashes or contains."
        )
    if criteria.get("contains") == "":
        raise ValueError("every row contains the empty text. Give contains some text.")
    if dry_run:
        return database.read(lambda c: sum(map(len, _matches(c, **criteria))))

    def work(connection: sa.Connection) -> int:
        num_rows = 0
        # Found first, then deleted: a cursor does not like its table to change under it.
        for hashes in list(_matches(connection, **criteria)):
            for some in portions(hashes):
                connection.execute(sa.delete(claims).where(claims.c.request_hash.in_(some)))
                delete = sa.delete(responses).where(responses.c.request_hash.in_(some))
                num_rows += connection.execute(delete).rowcount
        return num_rows

    num_rows = database.write(work)
    if database.is_sqlite:
        _scrub(database, num_rows)
    return num_rows


def _matches(
    connection: sa.Connection,
    *,
    teacher: str | None = None,
    older_than_s: float | None = None,
    prompt_hashes: Collection[str] | None = None,
    contains: str | None = None,
) -> Iterator[list[str]]:
    """Yield the hashes of the rows that meet all criteria given, batch by batch."""
    c = responses.c
    query = sa.select(c.request_hash)
    if teacher is not None:
        query = query.where(c.teacher_id.in_(teachers(connection, teacher)))
    if older_than_s is not None:
        query = query.where(c.created_at < time.time() - older_than_s)
    if contains is not None:
        query = query.add_columns(c.request, c.text, c.reasoning, c.error)
    queries = [query]
    if prompt_hashes is not None:
        queries = [query.where(c.prompt_hash.in_(some)) for some in portions(prompt_hashes)]
    for query in queries:
        with connection.execute(query.execution_options(yield_per=_ROWS_PER_BATCH)) as found:
            for batch in found.partitions():
                yield [r.request_hash for r in batch if not contains or _contains(r, contains)]


def _contains(row: Any, text: str) -> bool:
    """Return whether ``text`` is in a message, the response, its thoughts or the error."""
    if any(text in (written or "") for written in (row.text, row.reasoning, row.error)):
        return True
    # Not by LIKE: JSON text escapes quotes, line ends and letters.
    return any(text in message["content"] for message in json.loads(row.request)["messages"])


def _scrub(database: Database, num_rows: int) -> None:
    """Rewrite the SQLite file without what was deleted, and empty its log."""
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
