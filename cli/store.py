"""The verbs of `distillery store`."""

from rich.markup import escape

from cli.console import console
from distillery.storage.store import Store
from schemas.execution import StoreSpec


def collect_garbage(spec: StoreSpec, older_than_s: float, *, dry_run: bool) -> None:
    """Delete attempts and checkpoints that nothing names; print each, and how many there were."""
    out = console()
    removed = Store(spec.root).gc(older_than_s=older_than_s, dry_run=dry_run)
    for uri in removed:
        out.print(escape(uri))
    folders = "1 folder" if len(removed) == 1 else f"{len(removed):,} folders"
    out.print(f"would delete {folders}" if dry_run else f"deleted {folders}")
