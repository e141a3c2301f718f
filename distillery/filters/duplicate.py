"""Rows with the same prompt and the same response."""

from typing import Any

from distillery.filters.base import SetFilter
from schemas.filters import DropReason, DuplicateFilter


class Duplicate(SetFilter[DuplicateFilter]):
    """Keeps the first of equal rows of a split."""

    reason = DropReason.DUPLICATE

    def rows(self, sql: Any) -> Any:
        """Return every row after the first.

        Rows of another state are not equal: a filter further on may drop the first of them.
        """
        return sql.sql("""
            SELECT
                rowid AS position,
                'the same prompt with the same response came before' AS detail,
                NULL::DOUBLE AS score
            FROM rows
            QUALIFY row_number() OVER (
                PARTITION BY split, state, messages, response ORDER BY rowid
            ) > 1
        """)
