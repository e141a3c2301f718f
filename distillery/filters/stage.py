"""The stage that filters teacher responses: dropped rows are kept, with filter and reason."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from distillery.filters import make_filters
from distillery.filters.base import Drop, Rewrite, RowFilter, SetFilter
from distillery.storage.sql import querying
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import RowWriter
from distillery.task_types import TaskType, task_type
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.filters import FilterSpec
from schemas.frames import RejectedFrame, ResponseFrame, TrainingFrame, arrow_schema, check_frame
from schemas.refs import DatasetRef
from schemas.task import TaskSpec

_LOGIC_VERSION = 4
_BATCH_ROWS = 4096

_WITH_DROPS = """
    SELECT rows.*, drops.position IS NOT NULL AS is_dropped, drops.detail, drops.score
    FROM rows LEFT JOIN drops ON rows.rowid = drops.position
    ORDER BY rows.rowid
"""

Rows = list[dict[str, Any]]
Chosen = RowFilter[Any] | SetFilter[Any]


def filter_responses(
    responses: DatasetRef,
    task: TaskSpec,
    filters: FilterSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> StageResult:
    """Return the responses that pass all filters as `kept`, the others as `rejected`.

    Rows without a usable response are rejected whatever the filters: those that the teacher failed
    at or refused, those that break the response schema, and those of which no sample passed its
    verifier. The facts count drops and rewrites by reason.
    """
    kind = task_type(task)
    rules = kind.default_rules if filters.rules is None else filters.rules
    stage = Stage(
        StageName.FILTER_RESPONSES,
        _LOGIC_VERSION,
        inputs={"responses": responses.fingerprint},
        spec={"rules": rules, "task_type": task.type, "answer_format": task.answer_format},
    )

    def work(attempt: Attempt) -> None:
        splits: Counter[str] = Counter()
        with (
            attempt.row_writer("kept", arrow_schema(TrainingFrame)) as kept,
            attempt.row_writer("rejected", arrow_schema(RejectedFrame)) as rejected,
        ):
            filtering = _Filtering(kind, rejected)
            rows: Iterable[Rows] = (
                batch.to_pylist()
                for batch in attempt.store.batches(responses, batch_rows=_BATCH_ROWS)
            )
            for name, chosen in make_filters(rules):
                rows = filtering.passing(name, chosen, rows)
            for batch in rows:
                splits.update(row["split"] for row in batch)
                _write(kept, batch, TrainingFrame)
        attempt.counts |= {
            "responses": responses.num_rows,
            "kept_train": splits["train"],
            "kept_validation": splits["validation"],
            "rejected": filtering.drops.total(),
        }
        attempt.facts["reasons"] = dict(filtering.drops.most_common())
        attempt.facts["rewrites"] = dict(filtering.rewrites.most_common())

    return run_stage(stage, store, execution, work)


class _Filtering:
    """Passes rows on from filter to filter, batch by batch, and counts what happens to them."""

    def __init__(self, task: TaskType, rejected: RowWriter) -> None:
        self._task = task
        self._rejected = rejected
        self.drops: Counter[str] = Counter()
        self.rewrites: Counter[str] = Counter()

    def passing(self, name: str, chosen: Chosen, rows: Iterable[Rows]) -> Iterator[Rows]:
        """Yield the rows that a filter keeps, some of them with another response."""
        if isinstance(chosen, RowFilter):
            return self._row_by_row(name, chosen, rows)
        return self._together(name, chosen, rows)

    def _row_by_row(
        self, name: str, chosen: RowFilter[Any], rows: Iterable[Rows]
    ) -> Iterator[Rows]:
        for batch in rows:
            kept, dropped = [], []
            for row in batch:
                match chosen.row(row, self._task):
                    case Drop() as drop:
                        dropped.append(row | dataclasses.asdict(drop))
                    case Rewrite(response, reason):
                        self.rewrites[reason.value] += 1
                        kept.append(row | {"response": response})
                    case None:
                        kept.append(row)
            self._reject(name, dropped)
            yield kept

    def _together(self, name: str, chosen: SetFilter[Any], rows: Iterable[Rows]) -> Iterator[Rows]:
        schema = arrow_schema(ResponseFrame)
        with querying(incoming=schema.empty_table()) as sql:
            sql.execute("CREATE TABLE rows AS FROM incoming")
            for batch in rows:
                sql.register("incoming", pa.Table.from_pylist(batch, schema))
                sql.execute("INSERT INTO rows FROM incoming")
            sql.register("drops", chosen.rows(sql))
            for read in sql.sql(_WITH_DROPS).to_arrow_reader(_BATCH_ROWS):
                batch = [row | {"reason": chosen.reason} for row in read.to_pylist()]
                self._reject(name, [row for row in batch if row["is_dropped"]])
                yield [row for row in batch if not row["is_dropped"]]

    def _reject(self, name: str, dropped: Rows) -> None:
        self.drops.update(row["reason"].value for row in dropped)
        rows = [row | {"filter": name, "reason": row["reason"].value} for row in dropped]
        _write(self._rejected, rows, RejectedFrame)


def _write(writer: RowWriter, rows: Rows, contract: Any) -> None:
    if rows:
        table = pa.Table.from_pylist(rows, arrow_schema(contract))
        writer.write(check_frame(table.to_pandas(), contract))
