"""The ledger's command line: ``python -m distillery.ledger stats``."""

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distillery.ledger.engine import ledger_url
from distillery.ledger.ledger import Ledger
from schemas.errors import DistilleryError, StoreError
from schemas.execution import StoreSpec
from schemas.recipe import GenerationRecipe, load_recipe

_SECONDS = {"h": 3600.0, "d": 86_400.0, "w": 604_800.0}
# Where there is no terminal, rich assumes 80 columns, too few for the table.
_COLUMNS = 140


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    console = Console(
        highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _COLUMNS
    )
    try:
        options.run(options, console)
    except DistilleryError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"[red]{type(error).__name__}:[/] {escape(str(error))}"
        )
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distillery.ledger", description="Look after the ledger of responses."
    )
    where = argparse.ArgumentParser(add_help=False)
    place = where.add_mutually_exclusive_group()
    place.add_argument("--root", default=".distillery", help="store with the ledger (%(default)s)")
    place.add_argument("--ledger-url", help="SQLAlchemy URL; write a password as ${NAME}")
    place.add_argument("--recipe", help="recipe whose store has the ledger")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    stats = commands.add_parser("stats", parents=[where], help="rows, tokens and cost by teacher")
    stats.set_defaults(run=_stats)

    export = commands.add_parser("export", parents=[where], help="write rows as JSON lines")
    export.add_argument("file", help="compressed when its name ends in .gz")
    export.add_argument("--teacher", help="only of this model name, or start of a teacher id")
    export.set_defaults(run=_export)

    imported = commands.add_parser("import", parents=[where], help="take in an exported file")
    imported.add_argument("file")
    imported.set_defaults(run=_import)

    purge = commands.add_parser("purge", parents=[where], help="remove rows for good")
    purge.add_argument("--teacher", help="of this model name, or start of a teacher id")
    purge.add_argument("--older-than", type=_age, metavar="AGE", help="such as 12h, 30d or 8w")
    purge.add_argument("--prompt-hash", action="append", metavar="HASH", help="may be repeated")
    purge.add_argument("--contains", metavar="TEXT", help="in a message or its response")
    purge.add_argument("--yes", action="store_true", help="remove them, instead of counting them")
    purge.set_defaults(run=_purge, refuse=purge.error)
    return parser


def _age(text: str) -> float:
    """Return an age in seconds.

    >>> _age("30d")
    2592000.0
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age. Write 12h, 30d or 8w.")
    return float(found[1]) * _SECONDS[found[2]]


def _open(options: argparse.Namespace, *, may_create: bool = False) -> Ledger:
    """Return the ledger that the options name; only an import makes one that is not there."""
    if options.recipe is not None:
        spec = load_recipe(options.recipe, [], GenerationRecipe).store
    else:
        spec = StoreSpec(root=options.root, ledger_url=options.ledger_url)
    url = ledger_url(spec)
    if (
        url.get_backend_name() == "sqlite"
        and not may_create
        and not Path(url.database or "").exists()
    ):
        raise StoreError(
            f"there is no ledger {url.database!r}. Name the store that has one with --root, "
            "--ledger-url or --recipe."
        )
    return Ledger.open(spec)


def _stats(options: argparse.Namespace, console: Console) -> None:
    with _open(options) as ledger:
        stats = ledger.stats()
    if not stats:
        console.print("the ledger has no rows yet")
        return
    table = Table("teacher", "id")
    for name in ("rows", "states", "prompt tokens", "completion tokens", "cost", "repaired"):
        table.add_column(name, justify="left" if name == "states" else "right")
    table.add_column("from")
    table.add_column("to")
    for stat in stats:
        table.add_row(*_cells(stat))
    console.print(table)


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


def _export(options: argparse.Namespace, console: Console) -> None:
    with _open(options) as ledger:
        num_rows = ledger.export(options.file, teacher=options.teacher)
    console.print(f"exported {num_rows:,} rows to {escape(options.file)}")


def _import(options: argparse.Namespace, console: Console) -> None:
    with _open(options, may_create=True) as ledger:
        added, kept = ledger.import_rows(options.file)
    console.print(f"imported {added:,} rows; {kept:,} were there already, or better")


def _purge(options: argparse.Namespace, console: Console) -> None:
    criteria = {
        "teacher": options.teacher,
        "older_than_s": options.older_than,
        "prompt_hashes": options.prompt_hash,
        "contains": options.contains or None,
    }
    if all(value is None for value in criteria.values()):
        options.refuse("give one of --teacher, --older-than, --prompt-hash, --contains")
    with _open(options) as ledger:
        num_rows = ledger.purge(**criteria, dry_run=not options.yes)
    if options.yes:
        console.print(f"removed {num_rows:,} rows")
    else:
        console.print(f"would remove {num_rows:,} rows; add --yes to remove them for good")
