"""Where store and ledger are, and how old is old, as the options say it."""

import re

from schemas.errors import RecipeError
from schemas.execution import StoreSpec

_SECONDS = {"h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def store_spec(root: str, ledger_url: str | None, recipe: str | None) -> StoreSpec:
    """Return the store of ``recipe``; without one that of the other options."""
    if recipe is None:
        return StoreSpec(root=root, ledger_url=ledger_url)
    from schemas.recipe import GenerationRecipe, load_recipe

    return load_recipe(recipe, [], GenerationRecipe).store


def seconds(age: str) -> float:
    """Return an age in seconds.

    >>> seconds("30d")
    2592000.0
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", age)
    if found is None:
        raise RecipeError(f"{age!r} is not an age. Write 12h, 30d or 8w.")
    return float(found[1]) * _SECONDS[found[2]]
