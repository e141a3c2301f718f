"""Rejected rows, to be looked at and restored: prompts and responses that a filter dropped."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow.dataset as pads

from distillery.data.chat import load_messages, shown
from distillery.storage.store import Store
from schemas.errors import InputDataError, RecipeError, StoreError
from schemas.execution import StageName
from schemas.filters import NOT_RESTORABLE, DropReason
from schemas.refs import DatasetRef

STAGES = (StageName.FILTER_PROMPTS, StageName.FILTER_RESPONSES)


@dataclass(frozen=True)
class RejectedRow:
    """A prompt, or a prompt with its response, that a filter dropped."""

    stage: str
    prompt_id: str
    split: str
    filter: str
    reason: str
    detail: str
    score: float | None
    prompt: str
    response: str | None
    """None: the prompt was dropped before anybody answered it."""

    @property
    def is_restorable(self) -> bool:
        """Whether `filters.restore` can let it pass: there has to be something to learn from."""
        return DropReason(self.reason) not in NOT_RESTORABLE


def newest_rejected(store: Store) -> list[DatasetRef]:
    """Return the rejected rows of the last run of each filter stage in ``store``.

    Raises:
        StoreError: There is none.
    """
    found = []
    for stage in STAGES:
        made = [store.find(stage, name) for name in store.list_folders(stage)]
        known = [manifest for manifest in made if manifest is not None]
        newest = max(known, key=lambda manifest: _made_at(manifest.created_at), default=None)
        ref = newest and newest.outputs.get("rejected")
        if isinstance(ref, DatasetRef):
            found.append(ref)
    if not found:
        raise StoreError(
            f"store {store.root!r} has no finished stage of filters, so nothing was rejected. Run "
            "a recipe, or name the store of one with its store.root."
        )
    return found


def rejected_rows(
    refs: Sequence[DatasetRef],
    store: Store,
    *,
    reason: str | None = None,
    filter: str | None = None,
    prompt_ids: Sequence[str] | None = None,
) -> Iterator[RejectedRow]:
    """Yield rejected rows in order, batch by batch, only those that meet all criteria.

    Raises:
        RecipeError: There is no such reason.
    """
    if reason is not None and reason not in list(DropReason):
        from schemas.base import nearest

        known = [one.value for one in DropReason]
        raise RecipeError(f"there is no reason {reason!r}.{nearest(reason, known)} Correct it.")
    wanted = pads.scalar(True)
    for column, value in (("reason", reason), ("filter", filter)):
        if value is not None:
            wanted &= pads.field(column) == value
    if prompt_ids is not None:
        wanted &= pads.field("prompt_id").isin(list(prompt_ids))
    for ref in refs:
        stage = ref.uri.partition("/")[0]
        for batch in store.dataset(ref).to_batches(filter=wanted):
            yield from (_row(row, stage) for row in batch.to_pylist())


def restored(
    prompt_ids: Sequence[str], refs: Sequence[DatasetRef], store: Store, before: Sequence[str]
) -> list[str]:
    """Return what `filters.restore` has to be for rows to pass in the next run, sorted.

    Args:
        prompt_ids: Ids of rejected rows.
        refs: Data sets of rejected rows.
        store: Where these are.
        before: Ids that are restored already.

    Raises:
        InputDataError: One of them was not rejected, or has nothing to learn from.
    """
    found = {row.prompt_id: row for row in rejected_rows(refs, store, prompt_ids=prompt_ids)}
    if unknown := [name for name in prompt_ids if name not in found]:
        raise InputDataError(
            f"{unknown[0]!r} is not among the rejected rows, so there is nothing to restore. See "
            "their ids with `distillery data rejected`."
        )
    if lost := [row for row in found.values() if not row.is_restorable]:
        raise InputDataError(
            f"{lost[0].prompt_id!r} was dropped as {lost[0].reason!r} ({lost[0].detail}), and no "
            "filter can be told to keep that: there would be nothing right to learn from. Leave "
            "it out."
        )
    return sorted({*before, *prompt_ids})


def first_rows(rows: Iterator[RejectedRow], limit: int) -> tuple[list[RejectedRow], int]:
    """Return the first ``limit`` rows, and how many there are in all."""
    first = list(itertools.islice(rows, limit))
    return first, len(first) + sum(1 for _ in rows)


def _row(row: dict[str, Any], stage: str) -> RejectedRow:
    return RejectedRow(
        stage=stage,
        prompt_id=row["prompt_id"],
        split=row["split"],
        filter=row["filter"],
        reason=row["reason"],
        detail=row["detail"],
        score=row["score"],
        prompt=shown(load_messages(row["messages"])),
        response=row.get("response"),
    )


def _made_at(moment: datetime) -> float:
    return moment.timestamp()
