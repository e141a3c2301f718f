"""One file per filter, and the stage that runs them."""

from collections.abc import Sequence
from typing import Any

from distillery.filters.agreement import Agreement
from distillery.filters.base import RowFilter, SetFilter
from distillery.filters.duplicate import Duplicate
from distillery.filters.empty import Empty
from distillery.filters.format import Format
from distillery.filters.length import Length
from distillery.filters.refusal import Refusal
from distillery.filters.truncated import Truncated
from distillery.filters.usable import Usable
from schemas.filters import EmptyFilter, Filter

FILTERS: dict[str, type[RowFilter[Any]] | type[SetFilter[Any]]] = {
    "empty": Empty,
    "truncated": Truncated,
    "refusal": Refusal,
    "length": Length,
    "format": Format,
    "duplicate": Duplicate,
    "agreement": Agreement,
}


def make_filters(rules: Sequence[Filter]) -> list[tuple[str, RowFilter[Any] | SetFilter[Any]]]:
    """Return the filters of ``rules`` by name, between the two that no recipe can leave out.

    First goes what the teacher has no usable response to; a response without a token to learn from
    can never enter the training set.
    """
    named = [(rule.kind, FILTERS[rule.kind](rule)) for rule in rules]
    return [("teacher", Usable(None)), *named, ("empty", Empty(EmptyFilter()))]
