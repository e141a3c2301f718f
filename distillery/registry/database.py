"""The registry in the ledger's database: one table, to which only rows are added."""

from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from distillery.ledger.database import Database
from distillery.ledger.engine import ledger_url
from distillery.ledger.tables import create_tables
from distillery.registry.base import Decide, Registry
from schemas.execution import StoreSpec
from schemas.promotion import HistoryEntry

# "regi": one writer at a time. Promotions are rare, and the second has to see the first.
_LOCK = 0x72656769

metadata = sa.MetaData()

history = sa.Table(
    "registry_history",
    metadata,
    sa.Column("task", sa.String(200), primary_key=True),
    sa.Column("alias", sa.String(200), primary_key=True),
    # 1, 2, 3, ... of an alias: two transactions cannot both add the next one
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("entry", sa.Text, nullable=False),
)


class DatabaseRegistry(Registry):
    """Keeps entries where the teacher's responses are, on SQLite or PostgreSQL.

    Looking at it makes neither the database nor its table.
    """

    def __init__(self, store: StoreSpec, *, outage_s: float | None = None) -> None:
        """Open the registry of a store.

        Args:
            store: Where its ledger is.
            outage_s: How long a database that is away is waited for, seconds. None: as the
                ledger does.
        """
        url = ledger_url(store)
        self._outage_s = outage_s
        is_file = url.get_backend_name() == "sqlite"
        self._file = Path(str(url.database)) if is_file else None
        self._database = Database(url)
        self.name = self._database.name
        self._is_there = False

    def check(self) -> None:
        """Return when rows can be added."""
        if self._file is not None and not self._file.exists():
            return  # it is made with the first response
        self._create_table()
        nothing = sa.select(history).where(sa.false())
        adding = sa.insert(history).from_select(list(history.c.keys()), nothing)
        self._database.write(lambda c: c.execute(adding), outage_s=self._outage_s)

    def aliases(self) -> list[tuple[str, str]]:
        """Return task and alias of all that have a history, sorted."""
        if not self._has_table():
            return []
        query = sa.select(history.c.task, history.c.alias).distinct()
        rows = self._database.read(lambda c: c.execute(query).all(), outage_s=self._outage_s)
        return sorted((task, alias) for task, alias in rows)

    def history(self, task: str, alias: str) -> list[HistoryEntry]:
        """Return the entries of an alias, oldest first."""
        if not self._has_table():
            return []
        return self._database.read(lambda c: _entries(c, task, alias), outage_s=self._outage_s)

    def append(self, task: str, alias: str, decide: Decide) -> HistoryEntry:
        """Return the newest entry after adding what ``decide`` returns, in one transaction."""
        self._create_table()

        def work(connection: sa.Connection) -> HistoryEntry:
            _wait_for_turn(connection)
            entries = _entries(connection, task, alias)
            entry = decide(entries)
            if entry is None:
                return entries[-1]
            values = {"task": task, "alias": alias, "number": len(entries) + 1}
            connection.execute(sa.insert(history).values(**values, entry=entry.model_dump_json()))
            return entry

        return self._database.write(work, outage_s=self._outage_s)

    def close(self) -> None:
        """Close the connections."""
        self._database.dispose()

    def _has_table(self) -> bool:
        """Return whether the table is there; looking for it makes no database."""
        if self._is_there:
            return True
        if self._file is not None and not self._file.exists():
            return False
        self._is_there = self._database.read(
            lambda c: sa.inspect(c).has_table(history.name), outage_s=self._outage_s
        )
        return self._is_there

    def _create_table(self) -> None:
        if not self._is_there:
            create_tables(self._database)
            self._database.write(_create, outage_s=self._outage_s)
            self._is_there = True


def _create(connection: sa.Connection) -> None:
    _wait_for_turn(connection)
    metadata.create_all(connection)


def _wait_for_turn(connection: sa.Connection) -> None:
    """Take the lock that SQLite has taken with the beginning of a writing transaction."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def _entries(connection: sa.Connection, task: str, alias: str) -> list[HistoryEntry]:
    query = (
        sa.select(history.c.entry)
        .where(history.c.task == task, history.c.alias == alias)
        .order_by(history.c.number)
    )
    rows: Sequence[str] = connection.execute(query).scalars().all()
    return [HistoryEntry.model_validate_json(row) for row in rows]
