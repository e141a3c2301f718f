"""The ledger: every teacher response, kept for good, keyed by the hash of its request.

SQLite beside a local store, or PostgreSQL by URL. Shared by runs, recipes and students, so that
a response is paid for once. A response is committed as it arrives; a claim says which run is
asking for what, and expires when that run dies.
"""

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from distillery.ledger_engine import claims, meta, metadata, open_engine, responses
from schemas.errors import StoreError
from schemas.execution import StoreSpec

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1

# Well below the 32,766 variables that one SQLite statement may hold; larger gains nothing.
_HASHES_PER_QUERY = 500
_ADVISORY_LOCK = 0x64697374  # "dist": one creator of the tables at a time

# A response takes the place of another only when it is better.
_RANK = {"failed": 0, "empty": 1, "truncated": 1, "ok": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One response in its final state."""

    request_hash: str
    """Hash of the canonical request, 64 hex digits."""

    teacher_id: str
    """Hash of the teacher's identity, 64 hex digits."""

    teacher: str
    """The teacher's identity, JSON."""

    request: str
    """What was asked besides: messages, sampling, sample index; JSON."""

    state: str
    """ok, empty, truncated or failed."""

    text: str
    """The response; empty when the state is failed."""

    finish_reason: str | None
    """Why the teacher stopped, in its own word."""

    prompt_tokens: int | None
    """Tokens read. None: the endpoint did not say."""

    completion_tokens: int | None
    """Tokens written. None: the endpoint did not say."""

    model_reported: str | None
    """The model's name according to the endpoint."""

    latency_s: float
    """Seconds from the last sending to the response."""

    attempts: int
    """Attempts that it took, within the run that got it."""

    error: str | None
    """What the teacher said when it refused the request."""

    created_at: float = dataclasses.field(default_factory=time.time)
    """When it was committed, seconds since 1970, UTC."""


class Ledger:
    """Responses and claims in one database. Safe to use from several threads."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._name = engine.url.render_as_string(hide_password=True)
        # The two upserts are written alike; SQLAlchemy keeps one per dialect.
        self._insert = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
        insert = self._insert(responses)
        # Built once: building it takes longer than running it.
        self._upsert = insert.on_conflict_do_update(
            index_elements=["request_hash"],
            set_={c.name: insert.excluded[c.name] for c in responses.c if not c.primary_key},
            where=_rank(insert.excluded.state) > _rank(responses.c.state),
        )
        self._create_tables()

    @classmethod
    def open(cls, spec: StoreSpec) -> Self:
        """Return the ledger of a store; close it after use (it is a context manager).

        Raises:
            RecipeError: A remote root names no ``ledger_url``, or that URL cannot be used.
            StoreError: The database cannot be reached, or was written by a newer version.
        """
        engine = open_engine(spec)
        try:
            return cls(engine)
        except BaseException:
            engine.dispose()
            raise

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, hashes: Collection[str]) -> dict[str, LedgerRow]:
        """Return the responses to these requests, by hash; what has none is not in it."""
        found = {}
        with self._transaction("read") as connection:
            for some in _portions(hashes):
                query = sa.select(responses).where(responses.c.request_hash.in_(some))
                for row in connection.execute(query).mappings():
                    found[row["request_hash"]] = LedgerRow(**row)
        return found

    def commit(self, *rows: LedgerRow) -> None:
        """Commit responses and drop the claims on them, in one transaction.

        Committing a row again changes nothing: a response gives way only to a better one (ok over
        truncated and empty, these over failed), so the first ok response stays.
        """
        if not rows:
            return
        by_hash = {row.request_hash: row for row in rows}
        with self._transaction("write") as connection:
            connection.execute(self._upsert, [_storable(by_hash[h]) for h in sorted(by_hash)])
            for some in _portions(by_hash):
                connection.execute(sa.delete(claims).where(claims.c.request_hash.in_(some)))

    def claim(self, hashes: Collection[str], owner: str, ttl_s: float) -> set[str]:
        """Return those of ``hashes`` that ``owner`` may ask the teacher for, for ``ttl_s``.

        They are the ones without a response that nobody else claims, or whose claim has expired.
        Hosts that share a ledger need clocks that agree to within a fraction of ``ttl_s``.
        """
        now = time.time()
        insert = self._insert(claims)
        upsert = insert.on_conflict_do_update(
            index_elements=["request_hash"],
            set_={"owner": owner, "expires_at": now + ttl_s},
            where=sa.or_(claims.c.expires_at < now, claims.c.owner == owner),
        )
        claimed: set[str] = set()
        with self._transaction("write") as connection:
            for some in _portions(hashes):
                wanted = upsert.values([(h, owner, now + ttl_s) for h in some])
                won = connection.execute(wanted.returning(claims.c.request_hash))
                claimed |= set(won.scalars())
            # Looked up after claiming: whoever held the claim before may have committed since.
            for some in _portions(claimed):
                query = sa.select(responses.c.request_hash)
                there = connection.execute(query.where(responses.c.request_hash.in_(some)))
                answered = set(there.scalars())
                connection.execute(sa.delete(claims).where(claims.c.request_hash.in_(answered)))
                claimed -= answered
        return claimed

    def extend(self, owner: str, ttl_s: float) -> None:
        """Let all claims of ``owner`` expire ``ttl_s`` from now."""
        update = sa.update(claims).where(claims.c.owner == owner)
        with self._transaction("write") as connection:
            connection.execute(update.values(expires_at=time.time() + ttl_s))

    def release(self, owner: str) -> None:
        """Drop all claims of ``owner``."""
        with self._transaction("write") as connection:
            connection.execute(sa.delete(claims).where(claims.c.owner == owner))

    @contextlib.contextmanager
    def holding(self, owner: str, ttl_s: float) -> Iterator[None]:
        """Keep the claims of ``owner`` alive inside the block, and release them at its end."""
        done = threading.Event()

        def extend_until_done() -> None:
            while not done.wait(ttl_s / 4):
                try:
                    self.extend(owner, ttl_s)
                except StoreError as error:  # the next beat may come through
                    logger.warning("claims not extended: %s", error)

        beat = threading.Thread(target=extend_until_done, name="ledger-claims", daemon=True)
        beat.start()
        try:
            yield
        finally:
            done.set()
            beat.join()
            self.release(owner)

    @contextlib.contextmanager
    def _transaction(self, action: str) -> Iterator[sa.Connection]:
        """Yield a connection in a short transaction; what the database raises is a StoreError."""
        try:
            with self._engine.connect() as connection:
                connection = connection.execution_options(distillery_writes=action == "write")
                with connection.begin():
                    yield connection
        except sa.exc.DBAPIError as error:
            raise StoreError(
                f"cannot {action} ledger {self._name!r}: {error.orig}. Responses committed so far "
                "are kept. Check that the database can be reached and has space, then run again."
            ) from error

    def _create_tables(self) -> None:
        with self._transaction("write") as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
            metadata.create_all(connection)
            version = connection.execute(sa.select(sa.func.max(meta.c.schema_version))).scalar()
            if version is None:
                connection.execute(sa.insert(meta).values(schema_version=SCHEMA_VERSION))
        if version is not None and version > SCHEMA_VERSION:
            raise StoreError(
                f"ledger {self._name!r} has schema_version {version}; this Distillery reads up to "
                f"{SCHEMA_VERSION}. Upgrade Distillery, or name another store.ledger_url."
            )


def _rank(state: Any) -> Any:
    return sa.case(_RANK, value=state, else_=-1)


def _storable(row: LedgerRow) -> dict[str, Any]:
    """Return the columns of ``row``.

    Halves of surrogate pairs (a response may be cut between them) and NULs, which databases
    and Parquet refuse, become U+FFFD.
    """
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    for name in ("text", "error", "model_reported", "finish_reason"):
        if values[name] is not None:
            whole = values[name].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            values[name] = whole.replace("\0", "\ufffd")
    return values


def _portions(hashes: Collection[str]) -> Iterator[list[str]]:
    ordered = sorted(set(hashes))  # one order for all writers, so PostgreSQL cannot deadlock
    for start in range(0, len(ordered), _HASHES_PER_QUERY):
        yield ordered[start : start + _HASHES_PER_QUERY]
