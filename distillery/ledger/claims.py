"""Who is at work, and who asks for what, so that two runs asking for the same pay once."""

import logging
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from typing import Any

import sqlalchemy as sa

from distillery.ledger.commits import Writer
from distillery.ledger.database import Database
from distillery.ledger.processes import has_ended, this_process
from distillery.ledger.rows import is_final
from distillery.ledger.tables import claims, owners, responses
from schemas.errors import StoreError

logger = logging.getLogger(__name__)

# An owner that was not heard of for so long is dead. Five beats: a database may be busy.
TTL_S = 15.0
BEAT_S = 3.0

# Well below the 32,766 variables that one SQLite statement may hold; larger gains nothing.
_HASHES_PER_QUERY = 500
_CLAIM_LOCK = 0x64697375  # one claimer at a time; SQLite has one writer anyway


class Owner:
    """Someone at work on an endpoint; its claims hold as long as its beats."""

    def __init__(self, database: Database, endpoint: str | None) -> None:
        self.id = uuid.uuid4().hex
        """Names the owner in claims."""
        self.processes = 1
        """Live processes, this one included, at work on the same endpoint; 1 without one."""
        self._database = database
        self._endpoint = endpoint
        self._process = this_process()
        self._done = threading.Event()
        self._beats = threading.Thread(target=self._beat_on, name="ledger-owner", daemon=True)

    def start(self) -> None:
        """Register the owner and begin to beat."""
        self.processes = self._database.write(self.beat, once=False)
        self._beats.start()

    def stop(self) -> None:
        """End the beats and take the owner and its claims away."""
        self._done.set()
        self._beats.join()
        try:
            self._database.write(
                lambda connection: _remove(connection, [self.id]), outage_s=5, once=False
            )
        except StoreError as error:  # they end by themselves a little later
            logger.warning("claims not released: %s", error)

    def beat(self, connection: sa.Connection) -> int:
        """Say that the owner lives, and return how many processes do, on the same endpoint."""
        at = now(connection)
        update = sa.update(owners).where(owners.c.owner == self.id)
        if connection.execute(update.values(expires_at=at + TTL_S)).rowcount == 0:
            connection.execute(sa.insert(owners).values(self._row(at + TTL_S)))
        if self._endpoint is None:
            return 1
        query = sa.select(owners.c.process, owners.c.machine, owners.c.pid).where(
            owners.c.endpoint == self._endpoint, owners.c.expires_at >= at
        )
        return len({row.process for row in connection.execute(query) if not has_ended(row)})

    def _row(self, expires_at: float) -> dict[str, Any]:
        return {
            "owner": self.id,
            "process": self._process.name,
            "machine": self._process.machine,
            "pid": self._process.pid,
            "endpoint": self._endpoint,
            "expires_at": expires_at,
        }

    def _beat_on(self) -> None:
        while not self._done.wait(BEAT_S):
            try:
                # Once only: what is late by a beat is taken up by the next.
                self.processes = self._database.write(self.beat, outage_s=0, once=False)
            except StoreError as error:
                logger.warning("claims not extended: %s", error)


class ClaimDesk:
    """Gives requests to owners, each to one."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer
        self._owners: dict[str, Owner] = {}

    def open(self, endpoint: str | None) -> Owner:
        """Return a new owner, registered."""
        owner = Owner(self._database, endpoint)
        owner.start()
        self._owners[owner.id] = owner
        return owner

    def close(self, owner: Owner) -> None:
        """Let an owner go."""
        del self._owners[owner.id]
        owner.stop()

    def claim(self, hashes: Collection[str], owner: str, *, max_new_tokens: int) -> set[str]:
        """Return those of ``hashes`` that ``owner`` may ask, and put that down."""
        return self._database.write(
            lambda c: self._claim(c, hashes, owner, max_new_tokens), once=False
        )

    def release(self, owner: str) -> None:
        """Drop the claims of ``owner``."""
        delete = sa.delete(claims).where(claims.c.owner == owner)
        self._database.write(lambda connection: connection.execute(delete))

    def _claim(
        self, connection: sa.Connection, hashes: Collection[str], owner: str, max_new_tokens: int
    ) -> set[str]:
        if not self._database.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CLAIM_LOCK)))
        _remove_dead(connection, owner)
        self._ensure_registered(connection, owner)
        free: set[str] = set()
        for some in portions(hashes):
            # Claims first: whoever held one may commit and drop it between the two.
            taken: set[str] = set(connection.execute(_held_by_others(some, owner)).scalars())
            final = {
                row.request_hash
                for row in connection.execute(_states(some))
                if is_final(row.state, row.max_new_tokens, row.failed_runs, max_new_tokens)
            }
            free.update(h for h in some if h not in taken and h not in final)
        self._writer.claim(connection, sorted(free), owner)
        return free

    def _ensure_registered(self, connection: sa.Connection, owner: str) -> None:
        """Register again an owner that others took for dead while its machine slept."""
        known = connection.execute(sa.select(owners.c.owner).where(owners.c.owner == owner)).first()
        if known is not None:
            return
        if owner not in self._owners:
            raise ValueError(
                f"owner {owner!r} is not registered, so its claims would be void. Claim inside "
                "`with ledger.working(endpoint) as owner`."
            )
        self._owners[owner].beat(connection)


def portions(hashes: Collection[str]) -> Iterator[list[str]]:
    """Yield the distinct ``hashes`` in lists short enough for one query, in order."""
    ordered = sorted(set(hashes))
    for start in range(0, len(ordered), _HASHES_PER_QUERY):
        yield ordered[start : start + _HASHES_PER_QUERY]


def now(connection: sa.Connection) -> float:
    """Return seconds since 1970 by the clock that all users of the database share."""
    if connection.dialect.name == "sqlite":
        return time.time()
    query = "SELECT extract(epoch FROM clock_timestamp())::float8"
    return float(connection.exec_driver_sql(query).scalar_one())


def _held_by_others(hashes: list[str], owner: str) -> sa.Select[Any]:
    return sa.select(claims.c.request_hash).where(
        claims.c.request_hash.in_(hashes),
        claims.c.owner != owner,
        claims.c.owner.in_(sa.select(owners.c.owner)),
    )


def _states(hashes: list[str]) -> sa.Select[Any]:
    c = responses.c
    columns = (c.request_hash, c.state, c.max_new_tokens, c.failed_runs)
    return sa.select(*columns).where(c.request_hash.in_(hashes))


def _remove_dead(connection: sa.Connection, me: str) -> None:
    """Take away owners that have expired or whose process on this machine has ended."""
    others = sa.select(owners).where(owners.c.owner != me)
    ended = [row.owner for row in connection.execute(others) if has_ended(row)]
    is_dead = sa.or_(owners.c.owner.in_(ended), owners.c.expires_at < now(connection))
    # Asked and answered in one statement: an owner may beat in this moment.
    delete = sa.delete(owners).where(owners.c.owner != me, is_dead).returning(owners.c.owner)
    _remove(connection, list(connection.execute(delete).scalars()))


def _remove(connection: sa.Connection, gone: list[str]) -> None:
    if gone:
        connection.execute(sa.delete(claims).where(claims.c.owner.in_(gone)))
        connection.execute(sa.delete(owners).where(owners.c.owner.in_(gone)))
