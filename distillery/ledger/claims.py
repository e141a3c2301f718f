"""Who asks for what, so that two runs asking for the same pay once."""

import contextlib
import threading
import uuid
from collections.abc import Collection, Iterator
from typing import Any

import sqlalchemy as sa

from distillery.ledger import presence
from distillery.ledger.commits import Writer
from distillery.ledger.database import Database, portions
from distillery.ledger.rows import LedgerRow
from distillery.ledger.tables import claims, responses
from schemas.errors import StoreError

_CLAIM_LOCK = 0x64697375  # one claimer at a time; SQLite has one writer anyway


class Claims:
    """Gives requests to owners, each to one."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database, self._writer = database, writer
        self._lock = threading.Lock()
        self._entered: presence.Presence | None = None

    def close(self) -> None:
        """Let go of all claims of this process."""
        if self._entered is not None:
            self._entered.close()

    @contextlib.contextmanager
    def working(self) -> Iterator[str]:
        """Yield the id of a new owner; its claims end with the block."""
        owner = uuid.uuid4().hex
        try:
            yield owner
        finally:
            delete = sa.delete(claims).where(claims.c.owner == owner)
            with contextlib.suppress(StoreError):  # they end with this process, too
                self._database.write(lambda c: c.execute(delete), outage_s=5)

    def claim(self, hashes: Collection[str], owner: str, *, max_new_tokens: int) -> set[str]:
        """Return those of ``hashes`` that ``owner`` may ask, and put that down."""
        me = self._presence

        def work(connection: sa.Connection) -> set[str]:
            if not self._database.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CLAIM_LOCK)))
            _drop_dead(connection, me)
            free: set[str] = set()
            for some in portions(hashes):
                # Claims first: whoever held one may commit and drop it between the two.
                free |= set(some) - _taken(connection, some, owner)
                free -= _final(connection, some, max_new_tokens)
            claim = {"owner": owner, "process": me.name}
            self._writer.claim(connection, [{"request_hash": h, **claim} for h in sorted(free)])
            return free

        return self._database.write(work)

    @property
    def _presence(self) -> presence.Presence:
        """Who we are to others; nobody has to know before something is claimed."""
        with self._lock:
            if self._entered is None:
                self._entered = self._database.read(lambda _: presence.enter(self._database))
            return self._entered


def _drop_dead(connection: sa.Connection, me: presence.Presence) -> None:
    query = sa.select(claims.c.process).where(claims.c.process != me.name).distinct()
    if others := set(connection.execute(query).scalars()):
        dead = me.dead(connection, others)
        connection.execute(sa.delete(claims).where(claims.c.process.in_(dead)))


def _taken(connection: sa.Connection, hashes: list[str], owner: str) -> set[str]:
    query = sa.select(claims.c.request_hash).where(claims.c.request_hash.in_(hashes))
    return set(connection.execute(query.where(claims.c.owner != owner)).scalars())


def _final(connection: sa.Connection, hashes: list[str], max_new_tokens: int) -> set[str]:
    c = responses.c
    query = sa.select(c.request_hash, c.state, c.max_new_tokens, c.failed_runs)
    rows: Any = connection.execute(query.where(c.request_hash.in_(hashes)))
    return {row.request_hash for row in rows if LedgerRow.is_final(row, max_new_tokens)}
