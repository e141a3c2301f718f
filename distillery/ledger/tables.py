"""The ledger's tables, the same on SQLite and PostgreSQL."""

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import sqlalchemy as sa

from distillery.ledger.database import Database
from distillery.ledger.rows import LedgerRow
from schemas.errors import StoreError

SCHEMA_VERSION = 4

_CREATE_LOCK = 0x64697374  # "dist": one creator of the tables at a time

metadata = sa.MetaData()

meta = sa.Table("meta", metadata, sa.Column("schema_version", sa.Integer, primary_key=True))

_TYPES = {str: sa.Text, int: sa.BigInteger, float: sa.Double, bool: sa.Boolean}


def _columns() -> Iterator[sa.Column[Any]]:
    """Yield a column for each field of LedgerRow."""
    for name, hint in get_type_hints(LedgerRow).items():
        kind, *none = get_args(hint) or (hint,)
        is_key = name == "request_hash"
        yield sa.Column(name, _TYPES[kind], primary_key=is_key, nullable=bool(none))


responses = sa.Table(
    "responses",
    metadata,
    *_columns(),
    # The newest rows of a teacher tell what its next ones will cost.
    sa.Index("ix_responses_teacher_created", "teacher_id", "created_at"),
)

# Who is asking for what. Void when its process is no longer alive.
claims = sa.Table(
    "claims",
    metadata,
    sa.Column("request_hash", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False, index=True),
    sa.Column("process", sa.String(64), nullable=False),
)

# What each committed row cost. Its key is made before the commit, so that a commit whose answer
# was lost can be repeated: the charge is there by then, or it is not.
charges = sa.Table(
    "charges",
    metadata,
    sa.Column("charge", sa.String(32), primary_key=True),
    sa.Column("purpose", sa.Text, index=True),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.Double, nullable=False),
)

# Batches at a provider, and which requests are in them, until their responses are committed.
batches = sa.Table(
    "batches",
    metadata,
    sa.Column("key", sa.String(32), primary_key=True),
    sa.Column("batch_id", sa.Text),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("num_requests", sa.BigInteger, nullable=False),
    sa.Column("sent_at", sa.Double, nullable=False),
)

batch_requests = sa.Table(
    "batch_requests",
    metadata,
    sa.Column("request_hash", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(32), nullable=False, index=True),
    sa.Column("attempts", sa.Text, nullable=False),
    sa.Column("max_new_tokens", sa.BigInteger, nullable=False),
)

# What runs have read of logs; a reading counts when its run has finished.
readings = sa.Table(
    "readings",
    metadata,
    sa.Column("identity", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("newest", sa.Double, nullable=False),
    sa.Column("is_finished", sa.Boolean, nullable=False),
)


def create_tables(database: Database) -> None:
    """Create the tables of ``database`` where there are none yet.

    Raises:
        StoreError: The database cannot be used, or holds the tables of another version.
    """
    # Nearly always everything is there, and nobody's turn at writing needs to be waited for.
    version = database.read(_version, outage_s=0)
    if version is None:
        version = database.write(_create, outage_s=0)
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"ledger {database.name!r} has schema_version {version}, and this Distillery reads "
            f"{SCHEMA_VERSION} only. Name another store.root or store.ledger_url."
        )


def _version(connection: sa.Connection) -> int | None:
    """Return the version of the tables; None when there are none."""
    if not sa.inspect(connection).has_table(meta.name):
        return None
    return connection.execute(sa.select(sa.func.max(meta.c.schema_version))).scalar()


def _create(connection: sa.Connection) -> int:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATE_LOCK)))
    version = _version(connection)  # another process may have been here meanwhile
    if version is None:
        metadata.create_all(connection)
        connection.execute(sa.insert(meta).values(schema_version=SCHEMA_VERSION))
    return version or SCHEMA_VERSION
