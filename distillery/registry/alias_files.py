"""The file that deployers read: `aliases/<task>/<alias>.json` in the store.

It is a copy of the registry's newest entry and is written after it. A kill in between leaves an
old copy, which the next run or registry command replaces.
"""

import logging

from distillery.registry.base import Registry
from distillery.storage.store import Store
from schemas.promotion import AliasFile

logger = logging.getLogger(__name__)


def uri(task: str, alias: str) -> str:
    """Return where the file of an alias is in the store.

    >>> uri("tickets", "champion")
    'aliases/tickets/champion.json'
    """
    return f"aliases/{task}/{alias}.json"


def refresh(registry: Registry, store: Store, task: str, alias: str) -> bool:
    """Make the file of an alias what the registry says; return whether it was not.

    It is read again after it was written: of two that write at once the last one sees the newest
    entry.
    """
    place, is_new = uri(task, alias), False
    while entries := registry.history(task, alias):
        ids = tuple(entry.id for entry in entries)
        content = AliasFile(**dict(entries[-1]), history=ids).model_dump_json(indent=1).encode()
        if store.read_bytes(place) == content:
            break
        store.write_bytes(place, content)
        is_new = True
    return is_new


def refresh_all(registry: Registry, store: Store) -> None:
    """Make the files of all aliases what the registry says."""
    for task, alias in registry.aliases():
        if refresh(registry, store, task, alias):
            logger.info("%s was not what the registry says, and is now", uri(task, alias))


def orphans(registry: Registry, store: Store) -> list[str]:
    """Return the alias files of which the registry knows nothing, as task/alias."""
    files = store.fs.glob(store.path("aliases/*/*.json"))
    there = {"/".join(file.removesuffix(".json").split("/")[-2:]) for file in files}
    return sorted(there - {"/".join(alias) for alias in registry.aliases()})
