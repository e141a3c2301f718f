"""The gate, and the registry of promoted students."""

from distillery.registry.base import Registry
from schemas.execution import StoreSpec
from schemas.registry import MlflowRegistry


def open_registry(store: StoreSpec, *, outage_s: float | None = None) -> Registry:
    """Return the registry of a store; close it after use (it is a context manager).

    Args:
        store: Which registry, and where.
        outage_s: How long one that is away is waited for, seconds. None: as its backend does.

    Raises:
        RecipeError: Its address cannot be used, or what it needs is not installed.
        StoreError: The folder of a local database cannot be created.
    """
    if isinstance(store.registry, MlflowRegistry):
        from distillery.registry import mlflow

        return mlflow.MlflowRegistry(store, store.registry, outage_s=outage_s)
    from distillery.registry.database import DatabaseRegistry

    return DatabaseRegistry(store, outage_s=outage_s)
