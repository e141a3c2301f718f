"""The database under the ledger: its tables, and how SQLite and PostgreSQL are opened for it."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from distillery.sources import expand_variables
from distillery.store import Store
from schemas.errors import RecipeError, StoreError
from schemas.execution import StoreSpec

_BUSY_TIMEOUT_S = 30.0

metadata = sa.MetaData()
meta = sa.Table("meta", metadata, sa.Column("schema_version", sa.Integer, primary_key=True))
responses = sa.Table(
    "responses",
    metadata,
    sa.Column("request_hash", sa.String(64), primary_key=True),
    sa.Column("teacher_id", sa.String(64), nullable=False, index=True),
    sa.Column("teacher", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("finish_reason", sa.Text),
    sa.Column("prompt_tokens", sa.Integer),
    sa.Column("completion_tokens", sa.Integer),
    sa.Column("model_reported", sa.Text),
    sa.Column("latency_s", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),
)
claims = sa.Table(
    "claims",
    metadata,
    sa.Column("request_hash", sa.String(64), primary_key=True),
    sa.Column("owner", sa.Text, nullable=False, index=True),
    sa.Column("expires_at", sa.Double, nullable=False),
)


def open_engine(spec: StoreSpec) -> sa.Engine:
    """Return an engine for the ledger of a store; creates the folder of a local one.

    ``ledger_url`` is never shown in an error: it may hold a password.

    Raises:
        RecipeError: The root is remote and names no ``ledger_url``, or that URL cannot be used.
        StoreError: The folder cannot be created.
    """
    url = expand_variables(spec.ledger_url) if spec.ledger_url else _sqlite_url(spec)
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise RecipeError(
            "store.ledger_url is not a SQLAlchemy URL. Write it as "
            "postgresql+psycopg://user@host/database or sqlite:////folder/ledger.sqlite."
        ) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise RecipeError(
            f"store.ledger_url names {parsed.get_backend_name()!r}, which the ledger does not "
            "speak. Use sqlite or postgresql+psycopg."
        )
    try:
        engine = sa.create_engine(parsed, pool_pre_ping=True)
    except sa.exc.NoSuchModuleError:
        raise RecipeError(
            f"store.ledger_url names the driver {parsed.drivername!r}, which SQLAlchemy does not "
            "know. Use sqlite or postgresql+psycopg."
        ) from None
    except ImportError as error:
        raise RecipeError(
            f"store.ledger_url needs the driver {error.name!r}, which is not installed. Install "
            f"it: pip install {error.name}."
        ) from error
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _sqlite_url(spec: StoreSpec) -> str:
    """Return the URL of the ledger inside a local root; creates the folder."""
    store = Store(spec.root)
    if not store.is_local:
        raise RecipeError(
            f"store.root {spec.root!r} is remote and store.ledger_url is not set. SQLite needs a "
            "local disk. Set store.ledger_url to a PostgreSQL database."
        )
    file = Path(store.path("ledger.sqlite"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot create {str(file.parent)!r}: {error.strerror}. Give this user write access, "
            "or name another store.root."
        ) from error
    return f"sqlite:///{file}"


def _configure_sqlite(connection: Any, _record: object) -> None:
    """Set up one SQLite connection: WAL, patient writers, transactions begun by us."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {round(_BUSY_TIMEOUT_S * 1000)}")
    give_up_at = time.monotonic() + _BUSY_TIMEOUT_S
    while True:  # the switch to WAL, made once per file, does not wait for others by itself
        try:
            if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                cursor.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > give_up_at:
                raise
            time.sleep(0.02)
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    """Take the write lock at once when writing: a reader that turns writer does not wait for it."""
    writes = connection.get_execution_options().get("distillery_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
