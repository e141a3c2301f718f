"""The verbs of `distillery ledger`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from cli.console import console
from distillery.ledger.engine import ledger_url
from distillery.ledger.ledger import Ledger
from schemas.errors import RecipeError, StoreError
from schemas.execution import StoreSpec

_TABLE_COLUMNS = 140


def print_stats(spec: StoreSpec) -> None:
    """Print one row per teacher, those with most responses first."""
    out = console(_TABLE_COLUMNS)
    with _open(spec) as ledger:
        stats = ledger.stats()
    if not stats:
        out.print("the ledger has no rows yet")
        return
    table = Table("teacher", "id")
    for name in ("rows", "states", "prompt tokens", "completion tokens", "cost", "repaired"):
        table.add_column(name, justify="left" if name == "states" else "right")
    table.add_column("from")
    table.add_column("to")
    for stat in stats:
        table.add_row(*_cells(stat))
    out.print(table)


def print_batches(spec: StoreSpec, *, forget: str | None) -> None:
    """Print one row per batch that is not read, oldest first; or forget one."""
    out = console(_TABLE_COLUMNS)
    with _open(spec) as ledger:
        if forget is not None:
            num_requests = ledger.batches.forget(forget)
            if not num_requests:
                raise RecipeError(
                    f"no batch {forget!r} is noted. `distillery ledger batches` lists those that "
                    "are."
                )
            out.print(f"{num_requests:,} requests are asked again by whoever wants them")
            return
        noted = ledger.batches.all()
    if not noted:
        out.print("no batch is waited for")
        return
    table = Table("batch", "endpoint", "submitted")
    for name in ("requests", "not read"):
        table.add_column(name, justify="right")
    for batch, num_left in noted:
        sent = f"{datetime.fromtimestamp(batch.sent_at, UTC):%Y-%m-%d %H:%M}"
        counts = (f"{batch.num_requests:,}", f"{num_left:,}")
        table.add_row(batch.batch_id or batch.key, escape(batch.endpoint), sent, *counts)
    out.print(table)


def purge_rows(
    spec: StoreSpec,
    *,
    teacher: str | None,
    older_than_s: float | None,
    prompt_hashes: Sequence[str] | None,
    contains: str | None,
    yes: bool,
) -> None:
    """Remove the rows that meet all criteria; without ``yes`` only count them."""
    criteria: dict[str, Any] = {
        "teacher": teacher,
        "older_than_s": older_than_s,
        "prompt_hashes": prompt_hashes or None,
        "contains": contains or None,
    }
    if all(value is None for value in criteria.values()):
        raise RecipeError(
            "a purge without a criterion would empty the ledger. Give one of --teacher, "
            "--older-than, --prompt-hash, --contains."
        )
    with _open(spec) as ledger:
        num_rows = ledger.purge(**criteria, dry_run=not yes)
    rows = "1 row" if num_rows == 1 else f"{num_rows:,} rows"
    would = f"would remove {rows}; add --yes to remove them for good"
    console().print(f"removed {rows}" if yes else would)


def _open(spec: StoreSpec) -> Ledger:
    """Return the ledger at ``spec``; looking at one does not make it."""
    url = ledger_url(spec)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        raise StoreError(
            f"there is no ledger {url.database!r}. Name the store that has one with --root, "
            "--ledger-url or --recipe."
        )
    return Ledger.open(spec)


def _cells(stat: dict[str, Any]) -> list[str]:
    states = sorted(stat["states"].items(), key=lambda item: -item[1])
    cost = sorted(stat["cost"].items(), key=lambda item: str(item[0]))
    return [
        escape(stat["model"]),
        stat["teacher_id"][:7],
        f"{stat['num_rows']:,}",
        ", ".join(f"{count:,} {state}" for state, count in states),
        f"{stat['prompt_tokens']:,}",
        f"{stat['completion_tokens']:,}",
        ", ".join(f"{amount:,.2f} {currency or ''}".strip() for currency, amount in cost) or "-",
        f"{stat['repaired']:,}",
        *(f"{datetime.fromtimestamp(stat[end], UTC):%Y-%m-%d}" for end in ("oldest", "newest")),
    ]
