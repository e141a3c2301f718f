"""Labels of which there are far more rows than of others."""

import hashlib
import math
from collections import Counter
from typing import Any

import pyarrow as pa

from distillery.data.answer_classes import LABEL, answer_classes, class_of
from distillery.filters.base import Context, SetFilter
from distillery.task_types import TaskType
from schemas.errors import RecipeError
from schemas.filters import BalanceFilter, DropReason

_BATCH_ROWS = 8192
_CLASSES = pa.schema([("position", pa.int64()), ("class", pa.string()), ("rank", pa.string())])

_DROPS = """
    WITH counted AS (
        SELECT position, split, class, rank, count(*) OVER (PARTITION BY split, class) AS num_rows
        FROM classes JOIN rows ON rows.rowid = position WHERE class IS NOT NULL
    ), capped AS (
        SELECT *,
            ceil({max_ratio} * min(num_rows) OVER (PARTITION BY split))::BIGINT AS most,
            row_number() OVER (PARTITION BY split, class ORDER BY rank, position) AS place
        FROM counted
    )
    SELECT
        position,
        printf('%s %s is that of %d rows of the split, above %d', '{name}', class, num_rows, most)
            AS detail,
        num_rows::DOUBLE AS score
    FROM capped WHERE place > most
"""


class Balance(SetFilter[BalanceFilter]):
    """Keeps of a frequent label no more than a multiple of the rows of the rarest, in each split.

    Its facts say of which labels more prompts would be needed instead, and how many.
    """

    reason = DropReason.OVER_REPRESENTED

    def open(self, context: Context) -> None:
        """Find out what is to be balanced.

        Raises:
            RecipeError: The answers have no such classes.
        """
        check_field(self.spec, context.task)
        self._task, self._name = context.task, self.spec.field or LABEL
        self._known = answer_classes(context.task)[self._name]

    def rows(self, sql: Any) -> Any:
        """Return the rows beyond the ratio, those with the highest hash of seed and id first."""
        counts: dict[str, Counter[str]] = {}
        sql.register("incoming_classes", _CLASSES.empty_table())
        sql.execute("CREATE TABLE classes AS FROM incoming_classes")
        with sql.cursor() as reading:
            query = reading.sql("SELECT rowid AS position, split, prompt_id, response FROM rows")
            for batch in query.to_arrow_reader(_BATCH_ROWS):
                found = []
                for position, split, prompt_id, response in zip(
                    *(column.to_pylist() for column in batch.columns), strict=True
                ):
                    of_row = class_of(response, self._name, self._task)
                    if of_row is not None:
                        counts.setdefault(split, Counter())[of_row] += 1
                    found.append((position, of_row, self._rank(prompt_id)))
                columns = [pa.array(column) for column in zip(*found, strict=True)]
                sql.register("incoming_classes", pa.table(columns, schema=_CLASSES))
                sql.execute("INSERT INTO classes FROM incoming_classes")
        self.facts |= {split: self._balance(of_split) for split, of_split in counts.items()}
        name = self._name.replace("'", "''").replace("%", "%%")
        drops = _DROPS.format(max_ratio=self.spec.max_ratio, name=name)
        return sql.sql(drops if self.spec.over == "drop" else f"{drops} LIMIT 0")

    def _rank(self, prompt_id: str) -> str:
        """Return what orders the rows of a class: the same in any order and set of rows."""
        if self.spec.keep == "first":
            return ""
        return hashlib.sha256(f"{self.spec.seed} {prompt_id}".encode()).hexdigest()[:16]

    def _balance(self, counts: Counter[str]) -> dict[str, Any]:
        """Return the rows by class, and how many rows more would keep the ratio without a drop."""
        least = math.ceil(max(counts.values()) / self.spec.max_ratio)
        missing = {name: least - counts[name] for name in self._known if counts[name] < least}
        rarest_first = sorted(missing.items(), key=lambda pair: -pair[1])
        return {"rows": dict(counts.most_common()), "prompts_needed": dict(rarest_first)}


def check_field(spec: BalanceFilter, task: TaskType) -> None:
    """Return when answers have the classes that are to be balanced.

    Raises:
        RecipeError: They have not.
    """
    known = answer_classes(task)
    if not known:
        raise RecipeError(
            "filters.responses has a filter 'balance', but answers of this task are open: they "
            "have no labels. Remove it."
        )
    if (spec.field or LABEL) not in known:
        raise RecipeError(
            f"balance.field in filters.responses is {spec.field!r}, but answers can be balanced "
            f"by {', '.join(known)}. Set it to one of them."
        )
