"""What is in which batch at a provider, so that whoever comes after a killed run finds it again."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import sqlalchemy as sa

from distillery.ledger.database import Database, portions
from distillery.ledger.tables import batch_requests, batches

_ROWS_PER_INSERT = 1000
_KEPT_S = 30 * 86_400.0  # by OpenAI, and a day less by Anthropic


class SentBatch(NamedTuple):
    """One batch, from before it is submitted until its last response is committed."""

    key: str
    """Ours, unlike any other; the provider keeps it where it has room for one."""

    batch_id: str | None
    """The provider's. None: whoever submitted it did not live to put it down, if it was."""

    endpoint: str
    """Address of the endpoint, for people."""

    num_requests: int
    """Requests in it."""

    sent_at: float
    """When it was about to be submitted, seconds since 1970, UTC."""


class SentRequest(NamedTuple):
    """One request in a batch."""

    attempts: str
    """What earlier attempts took, as whoever sent it wrote that down."""

    max_new_tokens: int
    """Limit under which it was asked; no part of its hash."""


class Batches:
    """Requests that are in batches. Safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def holding(self, hashes: Collection[str]) -> dict[SentBatch, dict[str, SentRequest]]:
        """Return the batches that hold any of ``hashes``, each with those by their hash."""

        def work(connection: sa.Connection) -> dict[SentBatch, dict[str, SentRequest]]:
            found: dict[SentBatch, dict[str, SentRequest]] = {}
            of_request = [batch_requests.c[name] for name in SentRequest._fields]
            of_batch = [batches.c[name] for name in SentBatch._fields]
            query = sa.select(batch_requests.c.request_hash, *of_request, *of_batch)
            query = query.join(batches, batches.c.key == batch_requests.c.key)
            for some in portions(hashes):
                here = query.where(batch_requests.c.request_hash.in_(some))
                for request_hash, attempts, limit, *batch in connection.execute(here):
                    held = found.setdefault(SentBatch(*batch), {})
                    held[request_hash] = SentRequest(attempts, limit)
            return found

        return self._database.read(work)

    def begin(self, batch: SentBatch, requests: Mapping[str, SentRequest]) -> None:
        """Note that ``batch`` is about to be submitted.

        Those of its requests, given by hash, that were in another batch are in this one from now
        on. Batches whose results no provider keeps any more are forgotten.
        """
        rows = [
            {"request_hash": request_hash, "key": batch.key, **sent._asdict()}
            for request_hash, sent in sorted(requests.items())
        ]

        def work(connection: sa.Connection) -> None:
            _drop(connection, requests)
            old = sa.select(batches.c.key).where(batches.c.sent_at < batch.sent_at - _KEPT_S)
            connection.execute(sa.delete(batch_requests).where(batch_requests.c.key.in_(old)))
            same = batches.c.key == batch.key  # when the answer to the commit was lost
            if connection.execute(sa.select(batches.c.key).where(same)).first() is None:
                connection.execute(sa.insert(batches), batch._asdict())
            for start in range(0, len(rows), _ROWS_PER_INSERT):
                connection.execute(
                    sa.insert(batch_requests), rows[start : start + _ROWS_PER_INSERT]
                )
            _drop_empty(connection)

        self._database.write(work)

    def submitted(self, key: str, batch_id: str) -> None:
        """Note the provider's id of the batch ``key``."""
        update = sa.update(batches).where(batches.c.key == key).values(batch_id=batch_id)
        self._database.write(lambda connection: connection.execute(update))

    def settle(self, hashes: Collection[str]) -> None:
        """Forget requests whose responses are committed, and batches that hold no other."""

        def work(connection: sa.Connection) -> None:
            _drop(connection, hashes)
            _drop_empty(connection)

        self._database.write(work)

    def known_ids(self) -> set[str]:
        """Return the providers' ids of all batches that are noted."""
        query = sa.select(batches.c.batch_id).where(batches.c.batch_id.is_not(None))
        return self._database.read(lambda connection: set(connection.execute(query).scalars()))

    def all(self) -> list[tuple[SentBatch, int]]:
        """Return every batch with the number of its requests that are not settled, oldest first."""
        columns = [batches.c[name] for name in SentBatch._fields]
        query = (
            sa.select(*columns, sa.func.count())
            .join(batch_requests, batches.c.key == batch_requests.c.key)
            .group_by(*columns)
            .order_by(batches.c.sent_at)
        )
        return self._database.read(
            lambda connection: [
                (SentBatch(*batch), num_left) for *batch, num_left in connection.execute(query)
            ]
        )

    def forget(self, batch_id: str) -> int:
        """Forget a batch by the provider's id or by its key; return how many requests it held.

        They are asked again by whoever wants them: what the provider has of them is lost.
        """

        def work(connection: sa.Connection) -> int:
            named = sa.or_(batches.c.batch_id == batch_id, batches.c.key == batch_id)
            keys = list(connection.execute(sa.select(batches.c.key).where(named)).scalars())
            held = sa.delete(batch_requests).where(batch_requests.c.key.in_(keys))
            num_requests = connection.execute(held).rowcount
            connection.execute(sa.delete(batches).where(batches.c.key.in_(keys)))
            return num_requests

        return self._database.write(work)


def _drop(connection: sa.Connection, hashes: Collection[str]) -> None:
    for some in portions(hashes):
        held = batch_requests.c.request_hash.in_(some)
        connection.execute(sa.delete(batch_requests).where(held))


def _drop_empty(connection: sa.Connection) -> None:
    held = sa.select(batch_requests.c.key).where(batch_requests.c.key == batches.c.key)
    connection.execute(sa.delete(batches).where(~held.exists()))
