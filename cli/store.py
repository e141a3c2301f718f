"""The verbs of `distillery store`."""

from rich.markup import escape

from cli.console import console
from distillery.registry import alias_files, open_registry
from distillery.storage.store import Store
from schemas.errors import StoreError
from schemas.execution import StoreSpec


def collect_garbage(
    spec: StoreSpec, older_than_s: float, results_older_than_s: float | None, *, dry_run: bool
) -> None:
    """Delete what nobody needs any more; print each folder with its size, and the sum.

    What an alias points to or can go back to stays, so the registry has to be the right one.
    """
    out, store = console(), Store(spec.root)
    with open_registry(spec, outage_s=0.0) as registry:
        if unknown := alias_files.orphans(registry, store):
            raise StoreError(
                f"store {spec.root!r} has alias files of which registry {registry.name!r} knows "
                f"nothing: {', '.join(unknown)}. Their models would be deleted. Name the registry "
                "in which they were promoted with --ledger-url or --recipe, or delete the files."
            )
        garbage = store.gc(
            keep=registry.needed(),
            older_than_s=older_than_s,
            results_older_than_s=results_older_than_s,
            dry_run=dry_run,
        )
    for uri, num_bytes in garbage:
        out.print(f"{num_bytes / 1e6:9,.1f} MB  {escape(uri)}")
    folders = "1 folder" if len(garbage) == 1 else f"{len(garbage):,} folders"
    total = f"{folders}, {sum(num_bytes for _, num_bytes in garbage) / 1e6:,.1f} MB"
    out.print(f"would delete {total}" if dry_run else f"deleted {total}")
