"""Rows pass from filter to filter, batch by batch; what is dropped is kept, with its reason."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from distillery.filters.base import Drop, Rewrite, RowFilter, SetFilter
from distillery.storage.sql import querying
from distillery.storage.store import RowWriter, Store
from distillery.task_types import TaskType
from schemas.frames import arrow_schema, check_frame
from schemas.refs import DatasetRef

_BATCH_ROWS = 4096
# Rows beyond it go to the scratch folder while a filter looks at all of them together.
_MEMORY = "400MB"

_WITH_DROPS = """
    SELECT rows.*, drops.position IS NOT NULL AS is_dropped, drops.detail, drops.score
    FROM rows LEFT JOIN drops ON rows.rowid = drops.position
    ORDER BY rows.rowid
"""

Rows = list[dict[str, Any]]


class Funnel:
    """Passes rows on from filter to filter, batch by batch, and counts what happens to them."""

    def __init__(self, task: TaskType, contract: Any, rejection: Any, rejected: RowWriter) -> None:
        """Start with nothing counted.

        Args:
            task: What the rows are about.
            contract: Frame of the rows.
            rejection: Frame of the dropped ones.
            rejected: Where these go.
        """
        self._task, self._schema = task, arrow_schema(contract)
        self._rejection, self._rejected = rejection, rejected
        self.drops: Counter[str] = Counter()
        """Dropped rows by reason."""
        self.rewrites: Counter[str] = Counter()
        """Rewritten rows by reason."""

    def passing(
        self, filters: Sequence[tuple[str, RowFilter[Any] | SetFilter[Any]]], rows: Iterable[Rows]
    ) -> Iterable[Rows]:
        """Return the rows that all ``filters`` keep, some of them rewritten."""
        for name, chosen in filters:
            rows = (
                self._together(name, chosen, rows)
                if isinstance(chosen, SetFilter)
                else self._row_by_row(name, chosen, rows)
            )
        return rows

    def _row_by_row(
        self, name: str, chosen: RowFilter[Any], rows: Iterable[Rows]
    ) -> Iterator[Rows]:
        for batch in rows:
            kept, dropped = [], []
            for row in batch:
                match chosen.row(row, self._task):
                    case Drop() as drop:
                        dropped.append(row | dataclasses.asdict(drop))
                    case Rewrite(columns, reason):
                        self.rewrites[reason.value] += 1
                        kept.append(row | dict(columns))
                    case None:
                        kept.append(row)
            self._reject(name, dropped)
            yield kept

    def _together(self, name: str, chosen: SetFilter[Any], rows: Iterable[Rows]) -> Iterator[Rows]:
        with querying(incoming=self._schema.empty_table()) as sql:
            sql.execute(f"SET memory_limit = '{_MEMORY}'")
            sql.execute("CREATE TABLE rows AS FROM incoming")
            for batch in rows:
                sql.register("incoming", pa.Table.from_pylist(batch, self._schema))
                sql.execute("INSERT INTO rows FROM incoming")
            sql.register("drops", chosen.rows(sql))
            for read in sql.sql(_WITH_DROPS).to_arrow_reader(_BATCH_ROWS):
                batch = [row | {"reason": chosen.reason} for row in read.to_pylist()]
                self._reject(name, [row for row in batch if row["is_dropped"]])
                yield [row for row in batch if not row["is_dropped"]]

    def _reject(self, name: str, dropped: Rows) -> None:
        self.drops.update(row["reason"].value for row in dropped)
        rows = [row | {"filter": name, "reason": row["reason"].value} for row in dropped]
        write_rows(self._rejected, rows, self._rejection)


def row_batches(
    store: Store, ref: DatasetRef, splits: tuple[str, ...] | None = None
) -> Iterator[Rows]:
    """Yield the rows of ``ref`` in batches, only those of ``splits`` when given."""
    for batch in store.batches(ref, splits=splits, batch_rows=_BATCH_ROWS):
        yield batch.to_pylist()


def write_rows(writer: RowWriter, rows: Rows, contract: Any) -> None:
    """Write rows in the columns of ``contract``, once they keep it."""
    if rows:
        table = pa.Table.from_pylist(rows, arrow_schema(contract))
        writer.write(check_frame(table.to_pandas(), contract))
