"""Copy a model out of the store."""

import shutil
from pathlib import Path

from distillery.storage.store import Store
from schemas.errors import RecipeError
from schemas.execution import StoreSpec
from schemas.refs import ModelRef


def export_model(model: ModelRef, folder: str, store: StoreSpec) -> None:
    """Copy a model of the store to a local folder, in place of the model that was there.

    Raises:
        RecipeError: The folder holds something other than a model, which would be lost.
    """
    target = Path(folder).expanduser().resolve()
    is_empty = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if not is_empty and not (target / "config.json").is_file():
        raise RecipeError(
            f"output {str(target)!r} holds something other than a model, which would be deleted. "
            "Name a new folder under 'output'."
        )
    partial = target.with_name(f"{target.name}.partial")
    with Store(store.root).local_copy(model) as source:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
