"""How responses get into the ledger: the merging rule, and commits in groups."""

import itertools
import queue
import threading
import uuid
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple

import sqlalchemy as sa

from distillery.ledger.database import Database, is_about_all
from distillery.ledger.rows import LedgerRow
from distillery.ledger.tables import charges, claims, responses
from schemas.errors import StoreError

# Bounds what is held twice, in the queue's rows and in the driver's parameters.
_MOST_ROWS_PER_GROUP = 1000


class Entry(NamedTuple):
    """A row to be committed."""

    row: LedgerRow
    """The row, with this run's figures."""

    purpose: str | None
    """What its cost is put down to."""

    charge: str
    """Key of its charge, unlike any other."""


class Writer:
    """Writes rows within a transaction of the caller.

    Its statements go to the driver as text: with SQLAlchemy's own a single row takes twice as long.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._mark = ":{}" if engine.dialect.paramstyle == "named" else "%({})s"
        self._charge = self._insert(charges, "DO NOTHING")
        self._merge = self._insert(responses, f"(request_hash) DO UPDATE SET {_merging_rule()}")
        mark = self._mark.format("request_hash")
        self._drop_claim = f"DELETE FROM claims WHERE request_hash = {mark}"
        self._set_claim = self._insert(
            claims,
            "(request_hash) DO UPDATE SET owner = excluded.owner, process = excluded.process",
        )

    def commit(self, connection: sa.Connection, entries: Iterable[Entry]) -> None:
        """Charge for rows, merge them into the ledger and drop the claims on them.

        Entries that were committed before, with an answer that was lost, change nothing: their
        charges are there.
        """
        # One order for all writers, so PostgreSQL cannot deadlock.
        ordered = sorted(entries, key=lambda entry: entry.row.request_hash)
        # Waits for a transaction that is still committing the same charges.
        if connection.exec_driver_sql(self._charge, [*map(_charge, ordered)]).rowcount == 0:
            return
        connection.exec_driver_sql(self._merge, [storable(entry.row) for entry in ordered])
        connection.exec_driver_sql(
            self._drop_claim, [{"request_hash": entry.row.request_hash} for entry in ordered]
        )

    def claim(self, connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
        """Put down claims, rows of their table; whoever held one before loses it."""
        if rows:
            connection.exec_driver_sql(self._set_claim, rows)

    def _insert(self, table: sa.Table, on_conflict: str) -> str:
        names = [column.name for column in table.c]
        values = ", ".join(map(self._mark.format, names))
        return (
            f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({values}) "
            f"ON CONFLICT {on_conflict}"
        )


def _merging_rule() -> str:
    """Return what becomes of each column of a response that is there when another one comes.

    The text gives way unless it is ok; figures add up over all runs. A request that is asked
    again, as its text was cut, and fails or is refused under the longer limit keeps that text; a
    refusal is not asked for twice.
    """
    declined = "(responses.state = 'truncated' AND excluded.state = 'refused')"
    failed = "(excluded.state = 'failed' AND responses.state <> 'failed')"
    stays = f"(responses.state = 'ok' OR {failed} OR {declined})"
    pick = "CASE WHEN {0} THEN responses.{1} ELSE excluded.{1} END"
    names = [column.name for column in responses.c if not column.primary_key]
    rule = {name: pick.format(stays, name) for name in names}
    rule["max_new_tokens"] = pick.format(f"{stays} AND NOT {declined}", "max_new_tokens")
    for name in ("attempts", "billed_prompt_tokens", "billed_completion_tokens", "failed_runs"):
        rule[name] = f"responses.{name} + excluded.{name}"
    # Unknown and known cost is what is known.
    rule["cost"] = "coalesce(responses.cost + excluded.cost, responses.cost, excluded.cost)"
    rule["currency"] = "coalesce(excluded.currency, responses.currency)"
    return ", ".join(f"{name} = {value}" for name, value in rule.items())


class GroupCommit:
    """A thread that commits rows as soon as they come; what comes meanwhile is the next group."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer
        # Keys in order are written faster than random ones.
        self._charge_prefix, self._numbers = uuid.uuid4().hex[:24], itertools.count()
        self._queue: queue.SimpleQueue[tuple[Entry, Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ledger-commit", daemon=True)
        self._thread.start()

    def submit(self, row: LedgerRow, purpose: str | None) -> Future[None]:
        """Return a future that is done when ``row`` is committed."""
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # a paid response is kept, whoever loses interest
        charge = f"{self._charge_prefix}{next(self._numbers):08x}"
        self._queue.put((Entry(row, purpose, charge), future))
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
        """Commit a group; one row that the database refuses does not fail the others."""
        entries = [entry for entry, _ in group]
        try:
            self._database.write(lambda connection: self._writer.commit(connection, entries))
        except Exception as error:
            if is_about_all(error):
                self._give_up(group, error)
            elif len(group) > 1:
                half = len(group) // 2
                self._commit(group[:half])
                self._commit(group[half:])
            else:
                group[0][1].set_exception(_unwritable(group[0][0].row, error))
        else:
            for _, future in group:
                future.set_result(None)

    def _give_up(self, group: list[tuple[Entry, Future[None]]], error: Exception) -> None:
        """Fail all that waits: each group by itself would wait as long again."""
        if self._take(group, None):
            self._queue.put(None)
        lost = StoreError(f"lost {len(group)} paid response(s): {error}")
        lost.__cause__ = error
        for _, future in group:
            future.set_exception(lost)


def storable(row: LedgerRow) -> dict[str, Any]:
    """Return the columns of ``row``.

    Halves of surrogate pairs (a response may be cut between them) and NULs, which databases
    and Parquet refuse, become U+FFFD.
    """
    values = dict(vars(row))
    for name, value in values.items():
        if isinstance(value, str) and not (value.isascii() and "\0" not in value):
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


def _charge(entry: Entry) -> dict[str, Any]:
    """Return a row of the table of charges."""
    return {
        "charge": entry.charge,
        "purpose": entry.purpose,
        "prompt_tokens": entry.row.billed_prompt_tokens,
        "completion_tokens": entry.row.billed_completion_tokens,
        "cost": entry.row.cost or 0.0,
    }
