"""The ledger's tables come into being, and older ledgers become new ones."""

import json
import logging
import time
from typing import Any

import sqlalchemy as sa

from distillery.ledger.commits import Writer
from distillery.ledger.database import Database
from distillery.ledger.rows import LedgerRow
from distillery.ledger.tables import meta, metadata, receipts
from distillery.storage.fingerprint import sha256
from schemas.errors import StoreError

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2

_ADVISORY_LOCK = 0x64697374  # "dist": one creator of the tables at a time
_ROWS_PER_BATCH = 1000
# A process that finds another one migrating waits for it; a million rows take minutes.
_MIGRATION_S = 3600
_RECEIPTS_S = 86_400  # no outage is waited for that long

_responses_1 = sa.Table(
    "responses_1",
    sa.MetaData(),
    *[
        sa.Column(name)  # read as the driver gives them
        for name in (
            "request_hash", "teacher_id", "teacher", "request", "state", "text", "finish_reason",
            "prompt_tokens", "completion_tokens", "model_reported", "latency_s", "attempts",
            "error", "created_at",
        )
    ],
)  # fmt: skip


def prepare(database: Database, writer: Writer) -> None:
    """Bring the tables of ``database`` to this version.

    Raises:
        StoreError: The database cannot be used, or was written by a newer version.
    """
    # Nearly always everything is there, and nobody's turn at writing needs to be waited for.
    version = database.read(_version, outage_s=0)
    if version is None:
        version = database.write(lambda c: _bring_up(c, database, writer), outage_s=0, once=False)
    elif version < SCHEMA_VERSION:
        version = database.write(
            lambda c: _bring_up(c, database, writer),
            survives=_is_locked,
            outage_s=_MIGRATION_S,
            once=False,
        )
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"ledger {database.name!r} has schema_version {version}; this Distillery reads up to "
            f"{SCHEMA_VERSION}. Upgrade Distillery, or name another store.ledger_url."
        )
    if not database.is_sqlite:
        old = sa.delete(receipts).where(receipts.c.created_at < time.time() - _RECEIPTS_S)
        database.write(lambda connection: connection.execute(old), outage_s=0, once=False)


def _version(connection: sa.Connection) -> int | None:
    """Return the version of the tables; None when there are none."""
    if not sa.inspect(connection).has_table(meta.name):
        return None
    return connection.execute(sa.select(sa.func.max(meta.c.schema_version))).scalar()


def _is_locked(error: sa.exc.DBAPIError) -> bool:
    return "locked" in str(error.orig)


def _bring_up(connection: sa.Connection, database: Database, writer: Writer) -> int:
    """Return the version, after making the tables or migrating them, in one transaction."""
    if not database.is_sqlite:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
    version = _version(connection)  # another process may have been here meanwhile
    if version is None:
        metadata.create_all(connection)
        connection.execute(sa.insert(meta).values(schema_version=SCHEMA_VERSION))
        return SCHEMA_VERSION
    if version == 1:
        logger.warning("migrating ledger %r from schema_version 1 to 2", database.name)
        num_rows = _migrate_from_1(connection, database, writer)
        logger.warning("ledger %r is migrated: %d rows", database.name, num_rows)
        return 2
    return version


def _migrate_from_1(connection: sa.Connection, database: Database, writer: Writer) -> int:
    """Copy all rows into tables of version 2 and return their number.

    Version 1 hashed `max_new_tokens` too, so that a longer limit asked for everything again; of
    two rows that become one the better stays. It knew neither owners nor spending.
    """
    connection.exec_driver_sql("DROP TABLE claims")
    connection.exec_driver_sql(f"ALTER TABLE responses RENAME TO {_responses_1.name}")
    if not database.is_sqlite:  # SQLite renames it with its table
        connection.exec_driver_sql("ALTER INDEX responses_pkey RENAME TO responses_1_pkey")
    metadata.create_all(connection)
    query = sa.select(_responses_1).execution_options(yield_per=_ROWS_PER_BATCH)
    num_rows = 0
    with connection.execute(query) as found:
        for batch in found.mappings().partitions():
            num_rows += len(batch)
            writer.prefer(connection, [_from_1(dict(row), database) for row in batch])
    connection.exec_driver_sql(f"DROP TABLE {_responses_1.name}")
    connection.execute(sa.update(meta).values(schema_version=2))
    return num_rows


def _from_1(row: dict[str, Any], database: Database) -> LedgerRow:
    """Return a row of version 1 as one of version 2."""
    try:
        body = json.loads(row["request"])
        max_new_tokens = body["sampling"].pop("max_new_tokens")
        request_hash = sha256({"teacher": json.loads(row["teacher"]), **body})
        messages = body["messages"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"row {row['request_hash']!r} of ledger {database.name!r} does not hold a request of "
            f"schema_version 1 ({error!r}), so the ledger stays as it was. Delete that row from "
            "the table responses, then run again."
        ) from error
    return LedgerRow(
        **{
            **row,
            "request_hash": request_hash,
            "request": json.dumps(body, sort_keys=True),
            # `failed` meant that the teacher refused the request for good.
            "state": "refused" if row["state"] == "failed" else row["state"],
        },
        prompt_hash=sha256(messages),
        max_new_tokens=max_new_tokens,
        billed_prompt_tokens=row["prompt_tokens"] or 0,
        billed_completion_tokens=row["completion_tokens"] or 0,
        cost=None,
        currency=None,
        failed_runs=0,
        repaired=False,
    )
