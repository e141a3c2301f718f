"""The classes that answers fall into: labels, or closed properties of JSON answers."""

import json
from collections.abc import Mapping

from distillery.task_types import TaskType
from schemas.task import JsonFormat

LABEL = "label"
"""Name of the classes where an answer is a label."""


def answer_classes(task: TaskType) -> dict[str, tuple[str, ...]]:
    """Return what may be balanced and counted, by name: all its classes.

    The labels under `label`; of JSON answers the properties that are one of a list, or true or
    false. Nothing where answers are open.

    >>> from distillery.task_types import task_type
    >>> from schemas.task import JsonFormat, TaskSpec
    >>> schema = {"properties": {"urgent": {"type": "boolean"}, "note": {"type": "string"}}}
    >>> json_task = TaskSpec(
    ...     name="t", type="classification", answer_format=JsonFormat(json_schema=schema)
    ... )
    >>> answer_classes(task_type(json_task))
    {'urgent': ('false', 'true')}
    """
    if task.labels:
        return {LABEL: tuple(task.labels)}
    if not isinstance(task.task.answer_format, JsonFormat):
        return {}
    properties = task.task.answer_format.json_schema.get("properties")
    found = {}
    for name, schema in (properties if isinstance(properties, Mapping) else {}).items():
        values = schema.get("enum") if isinstance(schema, Mapping) else None
        if isinstance(schema, Mapping) and schema.get("type") == "boolean":
            values = [False, True]
        if isinstance(values, list):
            found[name] = tuple(map(_as_text, values))
    return found


def class_of(response: str, name: str, task: TaskType) -> str | None:
    """Return the class ``name`` of a response; None where it has no answer, or none of the name."""
    if name == LABEL and task.labels:
        if response in task.labels:  # as the filter `format` leaves it
            return response
        answer = task.parse(response)
        return answer.text if answer else None
    try:
        found = json.loads(response)
    except ValueError:
        answer = task.parse(response)
        found = json.loads(answer.text) if answer else None
    value = found.get(name) if isinstance(found, dict) else None
    return None if value is None else _as_text(value)


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
