"""Rows pass from filter to filter, batch by batch; what is dropped is kept, with its reason."""

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from distillery.filters.base import Context, Drop, Rewrite, Row, RowFilter, Rows, SetFilter
from distillery.storage.sql import querying
from distillery.storage.stage import Attempt
from distillery.storage.store import RowWriter, Store
from distillery.task_types import TaskType
from schemas.filters import NOT_RESTORABLE, DropReason
from schemas.frames import arrow_schema, check_frame
from schemas.refs import DatasetRef

_BATCH_ROWS = 4096

_WITH_DROPS = """
    SELECT rows.*, drops.position IS NOT NULL AS is_dropped, drops.detail, drops.score
    FROM rows LEFT JOIN drops ON rows.rowid = drops.position
    ORDER BY rows.rowid
"""

AnyFilter = RowFilter[Any] | SetFilter[Any]
Tokens = dict[str, list[int]]
"""Prompt and completion tokens by teacher."""


@contextlib.contextmanager
def ready(filters: Sequence[tuple[str, AnyFilter]], context: Context) -> Iterator[None]:
    """Have ``filters`` ready for rows, and close what they opened, whatever happens."""
    with contextlib.ExitStack() as stack:
        for _, each in filters:
            stack.callback(each.close)
            each.open(context)
        yield


class Funnel:
    """Passes rows on from filter to filter, batch by batch, and counts what happens to them."""

    def __init__(
        self,
        task: TaskType,
        contract: Any,
        rejection: Any,
        rejected: RowWriter,
        *,
        restore: Iterable[str] = (),
    ) -> None:
        """Start with nothing counted.

        Args:
            task: What the rows are about.
            contract: Frame of the rows.
            rejection: Frame of the dropped ones.
            rejected: Where these go.
            restore: Ids of rows that pass although a filter would drop them.
        """
        self._task, self._schema = task, arrow_schema(contract)
        self._rejection, self._rejected = rejection, rejected
        self._restore = frozenset(restore)
        self.drops: Counter[str] = Counter()
        """Dropped rows by reason."""
        self.rewrites: Counter[str] = Counter()
        """Rewritten rows by reason."""
        self.restored: set[str] = set()
        """Ids of rows that passed for being named in `restore` alone."""
        self._steps: dict[int, _Step] = {}

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Return what came to each filter and became of it, in order, for the manifest."""
        return [step.facts() for _, step in sorted(self._steps.items())]

    def passing(
        self, filters: Sequence[tuple[str, AnyFilter]], rows: Iterable[Rows]
    ) -> Iterable[Rows]:
        """Return the rows that all ``filters`` keep, some of them rewritten."""
        for number, (name, chosen) in enumerate(filters):
            step = self._steps.setdefault(number, _Step(name))
            rows = (
                self._together(step, chosen, rows)
                if isinstance(chosen, SetFilter)
                else self._row_by_row(step, chosen, rows)
            )
        return rows

    def _row_by_row(
        self, step: "_Step", chosen: RowFilter[Any], rows: Iterable[Rows]
    ) -> Iterator[Rows]:
        for batch in rows:
            step.num_rows += len(batch)
            kept, dropped = [], []
            for row, done in zip(batch, chosen.batch(batch, self._task), strict=True):
                match done:
                    case Drop() as drop if not self._restores(step, row, drop.reason):
                        dropped.append(row | dataclasses.asdict(drop))
                    case Rewrite(columns, reason):
                        self.rewrites[reason.value] += 1
                        step.rewritten += 1
                        kept.append(row | dict(columns))
                    case _:
                        kept.append(row)
            self._reject(step, dropped)
            yield kept

    def _together(
        self, step: "_Step", chosen: SetFilter[Any], rows: Iterable[Rows]
    ) -> Iterator[Rows]:
        with querying() as sql:
            sql.register("incoming", self._schema.empty_table())
            sql.execute("CREATE TABLE rows AS FROM incoming")
            for batch in rows:
                step.num_rows += len(batch)
                sql.register("incoming", pa.Table.from_pylist(batch, self._schema))
                sql.execute("INSERT INTO rows FROM incoming")
            sql.register("drops", chosen.rows(sql))
            for read in sql.sql(_WITH_DROPS).to_arrow_reader(_BATCH_ROWS):
                batch = [row | {"reason": chosen.reason} for row in read.to_pylist()]
                dropped = [
                    row["is_dropped"] and not self._restores(step, row, chosen.reason)
                    for row in batch
                ]
                self._reject(step, list(itertools.compress(batch, dropped)))
                yield [row for row, gone in zip(batch, dropped, strict=True) if not gone]

    def _restores(self, step: "_Step", row: Row, reason: DropReason) -> bool:
        """Return whether a row that a filter would drop passes nevertheless; note it if so."""
        if row["prompt_id"] not in self._restore or reason in NOT_RESTORABLE:
            return False
        self.restored.add(row["prompt_id"])
        step.restored += 1
        return True

    def _reject(self, step: "_Step", dropped: Rows) -> None:
        reasons = [row["reason"].value for row in dropped]
        self.drops.update(reasons)
        step.dropped.update(reasons)
        add_tokens(step.tokens, dropped)
        rows = [
            row | {"filter": step.name, "reason": reason}
            for row, reason in zip(dropped, reasons, strict=True)
        ]
        write_rows(self._rejected, rows, self._rejection)


@dataclasses.dataclass
class _Step:
    """What one filter does."""

    name: str
    num_rows: int = 0
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    rewritten: int = 0
    restored: int = 0
    tokens: Tokens = dataclasses.field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return it as a FunnelStep has it."""
        return {
            "name": self.name,
            "num_rows": self.num_rows,
            "dropped": dict(self.dropped.most_common()),
            "rewritten": self.rewritten,
            "restored": self.restored,
            "dropped_tokens": self.tokens,
        }


def add_tokens(tokens: Tokens, rows: Rows) -> None:
    """Add the tokens of responses to those of their teachers; prompts have none."""
    for row in rows:
        if "completion_tokens" in row:
            of_teacher = tokens.setdefault(row.get("teacher") or "teacher", [0, 0])
            of_teacher[0] += row["prompt_tokens"]
            of_teacher[1] += row["completion_tokens"]


def note_filters(
    attempt: Attempt, funnel: Funnel, filters: Sequence[tuple[str, AnyFilter]]
) -> None:
    """Put into the manifest what filters have done, what they have seen and what that cost."""
    attempt.facts["reasons"] = dict(funnel.drops.most_common())
    attempt.facts["rewrites"] = dict(funnel.rewrites.most_common())
    attempt.facts["steps"] = [*funnel.steps]
    if funnel.restored:
        attempt.counts["restored"] = len(funnel.restored)
    attempt.facts["filters"] = [
        {"filter": name, **each.facts} for name, each in filters if each.facts
    ]
    for _, each in filters:
        if each.cost is not None:
            attempt.cost = (attempt.cost or 0.0) + each.cost
            attempt.currency = each.currency


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
