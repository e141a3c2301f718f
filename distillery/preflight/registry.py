"""Whether a student could be promoted at all: asked before anything is spent."""

from distillery.registry import open_registry
from distillery.registry.base import standing
from distillery.storage.store import Store
from schemas.errors import RegistryError
from schemas.execution import StoreSpec
from schemas.gate import GateSpec
from schemas.task import TaskSpec


def check_registry(task: TaskSpec, gate: GateSpec, store: StoreSpec) -> None:
    """Return when the registry answers and the champion has its files.

    Raises:
        RecipeError: The registry's address cannot be used.
        RegistryError: The champion's files are gone: nobody could be compared with it.
        StoreError: The registry cannot be read or written.
    """
    with open_registry(store, outage_s=0.0) as registry:
        registry.check()
        entries = registry.history(task.name, gate.alias)
    if not entries:
        return
    files = Store(store.root)
    current, *before = standing(entries)
    if files.holds(current.student):
        return
    todo = "Restore its files, or set gate.alias to another name to start over."
    if before and files.holds(before[0].student):
        command = f"distillery registry rollback {task.name} --reason ..."
        todo = f"Go back to the one before it: `{command}`."
    raise RegistryError(
        f"{current.student.uri!r}, which {task.name}/{gate.alias} points to, is gone from store "
        f"{store.root!r}. No student could be compared with it, so none would be promoted. {todo}"
    )
