"""A recipe as the YAML file that makes it: what differs from the defaults, and nothing else."""

from typing import Any

import yaml
from pydantic import BaseModel

from schemas.recipe import Recipe


def recipe_yaml(recipe: Recipe, heading: str) -> str:
    """Return ``recipe`` as YAML that :func:`schemas.recipe.load_recipe` reads.

    Args:
        recipe: Any.
        heading: What stands above it, as a comment.
    """
    comment = "".join(f"# {line}".rstrip() + "\n" for line in heading.splitlines())
    text = yaml.safe_dump(_told(recipe), sort_keys=False, allow_unicode=True, width=92)
    return f"# yaml-language-server: $schema=recipe.schema.json\n#\n{comment}\n{text}"


def _told(section: BaseModel) -> dict[str, Any]:
    """Return the fields of a section that are not as they are by default; always its kind."""
    told = {}
    fields = type(section).model_fields
    for name, field in sorted(fields.items(), key=lambda item: item[0] != "kind"):
        value = getattr(section, name)
        if name == "kind" or field.is_required() or value != field.get_default():
            told[name] = _plain(value)
    return told


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _told(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, str) else value  # names of an enumeration, too
