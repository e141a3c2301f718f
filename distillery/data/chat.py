"""Chat messages: how a row becomes them, and how they are kept and compared."""

import functools
import json
import string
from collections.abc import Mapping
from typing import Any, TypedDict

from distillery.storage.fingerprint import canonical_json, sha256

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class MessageError(ValueError):
    """A row's messages cannot be used; the text says why."""


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


def parse_messages(value: Any) -> list[Message]:
    """Return a column's value as messages: a list of {role, content}, or JSON text of one.

    Raises:
        MessageError: It is none, has an unknown role, or does not end with the user.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise MessageError(f"messages are not JSON: {error}") from None
    if not isinstance(value, list) or not value:
        raise MessageError(f"messages are {type(value).__name__}, not a list of turns")
    messages: list[Message] = []
    for position, turn in enumerate(value):
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise MessageError(f"turn {position} has no text under 'content'")
        if not _is_whole(turn["content"]):
            raise MessageError(f"turn {position} has half a character, which cannot be kept")
        if turn.get("role") not in ROLES:
            raise MessageError(f"turn {position} has the role {turn.get('role')!r}")
        messages.append({"role": turn["role"], "content": turn["content"]})
    if messages[-1]["role"] != "user":
        raise MessageError(f"the last turn is the {messages[-1]['role']}'s, not the user's")
    return messages


def _is_whole(text: str) -> bool:
    """Return whether no half of a surrogate pair is in it, such as an emoji that was cut."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def dump_messages(messages: list[Message]) -> str:
    """Return messages as the canonical JSON text in which they are kept."""
    return canonical_json(messages)


def load_messages(text: str) -> list[Message]:
    """Return messages from the text that ``dump_messages`` made."""
    messages: list[Message] = json.loads(text)
    return messages


def content_hash(messages: list[Message]) -> str:
    """Return a hash by which two prompts count as the same question.

    Case, white space and system turns are ignored: none of them makes a test row unseen.
    """
    asked = [m for m in messages if m["role"] != "system"]
    return sha256([[m["role"], " ".join(m["content"].casefold().split())] for m in asked])
