"""How responses get into the ledger: the merging rule, and commits in groups."""

import logging
import queue
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from distillery.ledger.database import Database, OutageError, is_away
from distillery.ledger.rows import LedgerRow
from distillery.ledger.tables import claims, responses, spending
from schemas.errors import StoreError

logger = logging.getLogger(__name__)

# Bounds what is held twice, in the queue's rows and in the driver's parameters.
_MOST_ROWS_PER_GROUP = 1000

# These add up over all runs; all other columns belong to the text and go with it.
_SUMMED = ("attempts", "billed_prompt_tokens", "billed_completion_tokens", "failed_runs")
# What may hold what an endpoint or a user wrote.
_WRITTEN = ("text", "error", "model_reported", "finish_reason", "request", "teacher")
# Which response an import or a migration prefers.
_RANK = {"failed": 0, "refused": 1, "empty": 2, "malformed": 3, "truncated": 4, "ok": 5}


class Entry(NamedTuple):
    """A row to be committed."""

    row: LedgerRow
    """The row, with this run's figures."""

    purpose: str | None
    """What its cost is put down to."""


class Writer:
    """Writes rows within a transaction of the caller.

    Its statements are built once and go to the driver as text: with SQLAlchemy's own parameters
    a single row takes twice as long.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._dialect = engine.dialect
        # The two are written alike; SQLAlchemy keeps one per dialect.
        self._insert = sqlite.insert if self._dialect.name == "sqlite" else postgresql.insert
        self._merge = self._compiled(self._upsert_response())
        self._prefer = self._compiled(self._upsert_better_response())
        self._spend = self._compiled(self._upsert_spending())
        self._drop_claim = self._compiled(
            sa.delete(claims).where(claims.c.request_hash == sa.bindparam("request_hash"))
        )
        self._set_claim = self._compiled(self._upsert_claim())

    def commit(self, connection: sa.Connection, entries: Iterable[Entry]) -> None:
        """Merge rows into the ledger, drop the claims on them, and add up what was spent."""
        # One order for all writers, so PostgreSQL cannot deadlock.
        ordered = sorted(entries, key=lambda entry: entry.row.request_hash)
        values = [storable(entry.row) for entry in ordered]
        connection.exec_driver_sql(self._merge, values)
        connection.exec_driver_sql(
            self._drop_claim, [{"request_hash": entry.row.request_hash} for entry in ordered]
        )
        if spent := _spending_by_purpose(ordered):
            connection.exec_driver_sql(self._spend, spent)

    def prefer(self, connection: sa.Connection, rows: Iterable[LedgerRow]) -> int:
        """Put in rows that are new or better than what is there, and return how many.

        Better is the state nearer to ok, and of two truncated texts the longer; then figures are
        added up. Doing it again changes nothing.
        """
        values = sorted((storable(row) for row in rows), key=lambda row: str(row["request_hash"]))
        return connection.exec_driver_sql(self._prefer, values).rowcount if values else 0

    def claim(self, connection: sa.Connection, hashes: Iterable[str], owner: str) -> None:
        """Put down that ``owner`` asks for these requests."""
        if values := [{"request_hash": h, "owner": owner} for h in hashes]:
            connection.exec_driver_sql(self._set_claim, values)

    def _compiled(self, statement: sa.sql.ClauseElement) -> str:
        return str(statement.compile(dialect=self._dialect))

    def _inserted(self, table: sa.Table) -> Any:
        return self._insert(table).values({c.name: sa.bindparam(c.name) for c in table.c})

    def _upsert_response(self) -> sa.sql.ClauseElement:
        """Return the upsert of a run: the text gives way unless it is ok; figures add up."""
        insert = self._inserted(responses)
        new, old = insert.excluded, responses.c
        # A request that is asked again, as its text was cut, and fails or is refused under the
        # longer limit keeps that text; a refusal is not asked for twice.
        declined = sa.and_(old.state == _text("truncated"), new.state == _text("refused"))
        stays = sa.or_(
            old.state == _text("ok"),
            sa.and_(new.state == _text("failed"), old.state != _text("failed")),
            declined,
        )
        kept = {
            c.name: sa.case((stays, old[c.name]), else_=new[c.name])
            for c in responses.c
            if not c.primary_key
        }
        kept["max_new_tokens"] = sa.case(
            (sa.and_(stays, sa.not_(declined)), old.max_new_tokens), else_=new.max_new_tokens
        )
        return insert.on_conflict_do_update(  # type: ignore[no-any-return]
            index_elements=["request_hash"], set_={**kept, **_sums(new, old)}
        )

    def _upsert_better_response(self) -> sa.sql.ClauseElement:
        """Return the upsert of an import or a migration: only a better row takes the place."""
        insert = self._inserted(responses)
        new, old = insert.excluded, responses.c
        taken = {c.name: new[c.name] for c in responses.c if not c.primary_key}
        is_longer = sa.and_(
            new.state == _text("truncated"),
            old.state == _text("truncated"),
            new.max_new_tokens > old.max_new_tokens,
        )
        return insert.on_conflict_do_update(  # type: ignore[no-any-return]
            index_elements=["request_hash"],
            set_={**taken, **_sums(new, old)},
            where=sa.or_(_rank(new.state) > _rank(old.state), is_longer),
        )

    def _upsert_spending(self) -> sa.sql.ClauseElement:
        insert = self._inserted(spending)
        added = {c.name: c + insert.excluded[c.name] for c in spending.c if not c.primary_key}
        return insert.on_conflict_do_update(  # type: ignore[no-any-return]
            index_elements=["purpose"], set_=added
        )

    def _upsert_claim(self) -> sa.sql.ClauseElement:
        insert = self._inserted(claims)
        return insert.on_conflict_do_update(  # type: ignore[no-any-return]
            index_elements=["request_hash"], set_={"owner": insert.excluded.owner}
        )


class GroupCommit:
    """A thread that commits rows as soon as they come; what comes meanwhile is the next group."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer
        self._queue: queue.SimpleQueue[tuple[Entry, Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger-commit", daemon=True)
        self._thread.start()

    def submit(self, entry: Entry) -> Future[None]:
        """Return a future that is done when ``entry`` is committed."""
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # a paid response is kept, whoever loses interest
        self._queue.put((entry, future))
        return future

    def close(self) -> None:
        """Commit what is left and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            group = [first]
            is_last = self._take(group, _MOST_ROWS_PER_GROUP)
            self._commit(group)
            if is_last:
                return

    def _take(self, group: list[tuple[Entry, Future[None]]], most: int | None) -> bool:
        """Add what waits to ``group``, and return whether the end is among it."""
        while most is None or len(group) < most:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return False
            if item is None:
                return True
            group.append(item)
        return False

    def _commit(self, group: list[tuple[Entry, Future[None]]]) -> None:
        try:
            self._write([entry for entry, _ in group])
        except OutageError as error:
            self._give_up(group, error)
        except Exception as error:
            if len(group) > 1:
                self._commit_singly(group)
            else:
                group[0][1].set_exception(_unwritable(group[0][0].row, error))
        else:
            for _, future in group:
                future.set_result(None)

    def _write(self, entries: Sequence[Entry]) -> None:
        self._database.write(lambda c: self._writer.commit(c, entries), survives=is_away)

    def _commit_singly(self, group: list[tuple[Entry, Future[None]]]) -> None:
        """Commit row by row, so that one which the database refuses does not fail the others."""
        for position, (entry, future) in enumerate(group):
            try:
                self._write([entry])
            except OutageError as error:
                self._give_up(group[position:], error)
                return
            except Exception as error:
                future.set_exception(_unwritable(entry.row, error))
            else:
                future.set_result(None)

    def _give_up(self, group: list[tuple[Entry, Future[None]]], error: OutageError) -> None:
        """Fail all that waits: each group by itself would wait as long again."""
        if self._take(group, None):
            self._queue.put(None)
        lost = StoreError(f"lost {len(group)} paid response(s): {error}")
        lost.__cause__ = error
        logger.error("%s", lost)
        for _, future in group:
            future.set_exception(lost)


def storable(row: LedgerRow) -> dict[str, Any]:
    """Return the columns of ``row``.

    Halves of surrogate pairs (a response may be cut between them) and NULs, which databases
    and Parquet refuse, become U+FFFD.
    """
    values = dict(vars(row))
    for name in _WRITTEN:
        value = values[name]
        if value and not (value.isascii() and "\0" not in value):
            whole = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            values[name] = whole.replace("\0", "\ufffd")
    return values


def _unwritable(row: LedgerRow, error: Exception) -> StoreError:
    """Return the error for a row that the database refuses, and nothing else does."""
    unwritable = StoreError(
        f"the response to request {row.request_hash!r} cannot be kept in the ledger: {error} Its "
        "other responses are kept. Run again: only this one is asked."
    )
    unwritable.__cause__ = error
    return unwritable


def _spending_by_purpose(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Return the rows to be added to the table of spending, ordered by purpose."""
    spent: dict[str, dict[str, Any]] = {}
    for row, purpose in entries:
        if purpose is None:
            continue
        total = spent.get(purpose)
        if total is None:
            total = spent[purpose] = {
                "purpose": purpose,
                "requests": 0,
                "prompt_tokens": 0,
                "completion_tokens": 0,
                "cost": 0.0,
            }
        total["requests"] += 1
        total["prompt_tokens"] += row.billed_prompt_tokens
        total["completion_tokens"] += row.billed_completion_tokens
        total["cost"] += row.cost or 0.0
    return [spent[purpose] for purpose in sorted(spent)]


def _sums(new: Any, old: Any) -> dict[str, Any]:
    """Return the columns that add up over all runs; unknown and known cost is what is known."""
    known: Any = sa.func.coalesce(new.cost, sa.literal_column("0"))
    cost = sa.case((old.cost.is_(None), new.cost), else_=old.cost + known)
    return {
        **{name: old[name] + new[name] for name in _SUMMED},
        "cost": cost,
        "currency": sa.func.coalesce(new.currency, old.currency),
    }


def _rank(state: Any) -> Any:
    ranks: Any = [(state == _text(n), sa.literal_column(str(rank))) for n, rank in _RANK.items()]
    return sa.case(*ranks, else_=sa.literal_column("-1"))


def _text(constant: str) -> Any:
    """Return an SQL constant: compiled statements carry no values beside the row's."""
    return sa.literal_column(f"'{constant}'")
