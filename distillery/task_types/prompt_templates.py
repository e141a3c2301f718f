"""How a row becomes a prompt: a template and the values of its columns."""

import functools
import json
import string
from collections.abc import Mapping
from typing import Any


def template_columns(template: str) -> tuple[str, ...]:
    """Return the columns that a prompt template asks for.

    >>> template_columns("Premise: {premise} Hypothesis: {hypothesis}")
    ('premise', 'hypothesis')
    """
    return tuple(name for _, name in _parts(template) if name is not None)


@functools.cache
def _parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """Return the template as pairs of a text and the column after it, if any."""
    return tuple((text, name) for text, name, _, _ in string.Formatter().parse(template))


def render_prompt(template: str, values: Mapping[str, Any]) -> str:
    """Return the template with ``{column}`` replaced; braces inside values stay as they are.

    When all columns are empty so is the prompt, whatever text stands around them: the question is
    missing.

    >>> render_prompt("Ticket: {text}", {"text": "a {b}"})
    'Ticket: a {b}'
    """
    columns = {name: as_text(values.get(name)) for name in template_columns(template)}
    if not any(value.strip() for value in columns.values()):
        return ""
    return "".join(text + (columns[name] if name else "") for text, name in _parts(template))


def as_text(value: Any) -> str:
    """Return the value of a column as text: lists and objects as JSON, nothing as ''.

    >>> as_text({"amount": [1, None]})
    '{"amount": [1, null]}'
    """
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else str(value)
