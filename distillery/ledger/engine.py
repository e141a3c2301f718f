"""How SQLite and PostgreSQL are opened for the ledger."""

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from distillery.data.sources import expand_variables
from distillery.storage.store import Store
from schemas.errors import RecipeError, StoreError
from schemas.execution import StoreSpec

# How long a writer waits for another connection's transaction, seconds.
BUSY_TIMEOUT_S = 30.0

# A PostgreSQL host that has gone silent is noticed within half a minute (libpq's names).
_LIBPQ = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


def ledger_url(spec: StoreSpec) -> sa.URL:
    """Return the URL of a store's ledger; a local one's path is absolute.

    ``ledger_url`` is never shown in an error: it may hold a password.

    Raises:
        RecipeError: The root is remote and names no ``ledger_url``, or that URL cannot be used.
    """
    if spec.ledger_url is None:
        store = Store(spec.root)
        if not store.is_local:
            raise RecipeError(
                f"store.root {spec.root!r} is remote and store.ledger_url is not set. SQLite needs "
                "a local disk. Set store.ledger_url to a PostgreSQL database."
            )
        return sa.URL.create("sqlite", database=os.path.abspath(store.path("ledger.sqlite")))
    try:
        url = sa.make_url(expand_variables(spec.ledger_url))
    except sa.exc.ArgumentError:
        raise RecipeError(
            "store.ledger_url is not a SQLAlchemy URL. Write it as "
            "postgresql+psycopg://user@host/database or sqlite:////folder/ledger.sqlite."
        ) from None
    kind = url.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise RecipeError(
            f"store.ledger_url names {kind!r}, which the ledger does not speak. Use sqlite or "
            "postgresql+psycopg."
        )
    if kind == "postgresql":
        return url
    if url.database in (None, "", ":memory:"):
        raise RecipeError(
            "store.ledger_url names an SQLite database in memory, which is gone when the run "
            "ends. Name a file: sqlite:////folder/ledger.sqlite."
        )
    return url.set(database=os.path.abspath(str(url.database)))


def engine_options(url: sa.URL) -> dict[str, Any]:
    """Return how an engine for ``url`` is made, by whoever makes it: how patient it is."""
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
    is_libpq = url.drivername in ("postgresql+psycopg", "postgresql+psycopg2")
    defaults = {k: v for k, v in _LIBPQ.items() if is_libpq and k not in url.query}
    return {"pool_pre_ping": True, "connect_args": defaults}


def open_engine(url: sa.URL) -> sa.Engine:
    """Return an engine for the ledger at ``url``; creates the folder of a local one.

    Raises:
        RecipeError: The URL's driver is unknown or not installed.
        StoreError: The folder cannot be created.
    """
    try:
        if url.get_backend_name() == "sqlite":
            Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
            # One style of parameters for both: rows go to the driver as dictionaries.
            engine = sa.create_engine(url, paramstyle="named")
            sa.event.listen(engine, "connect", _configure_sqlite)
            sa.event.listen(engine, "begin", _begin_sqlite)
            return engine
        return sa.create_engine(url, **engine_options(url))
    except sa.exc.NoSuchModuleError:
        raise RecipeError(
            f"store.ledger_url names the driver {url.drivername!r}, which SQLAlchemy does not "
            "know. Use sqlite or postgresql+psycopg."
        ) from None
    except ImportError as error:
        raise RecipeError(
            f"store.ledger_url needs the driver {error.name!r}, which is not installed. Install "
            f"it: pip install {error.name}."
        ) from error
    except OSError as error:
        folder = os.path.dirname(str(url.database))
        raise StoreError(
            f"cannot create {folder!r}: {error.strerror}. Give this user write access, "
            "or name another store.root."
        ) from error


def _configure_sqlite(connection: Any, _record: object) -> None:
    """Set up one SQLite connection: WAL, patient writers, transactions begun by us."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {round(BUSY_TIMEOUT_S * 1000)}")
    give_up_at = time.monotonic() + BUSY_TIMEOUT_S
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
