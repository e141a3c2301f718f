"""Chat messages: how a row becomes them, and how they are kept and compared."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from distillery.storage.fingerprint import canonical_json, sha256

ROLES = ("system", "user", "assistant")

SYSTEM_SEPARATOR = "\n\n"
"""Stands between instructions that come from two places."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class MessageError(ValueError):
    """A row's messages cannot be used; the text says why."""


def parse_messages(value: Any) -> list[Message]:
    """Return a column's value as messages: a list of {role, content}, or JSON text of one.

    A `developer` is the system, and content may come in parts, as OpenAI's clients write them.

    Raises:
        MessageError: It is not such a list; or a turn has an unknown role, or something other than
            text; or two turns of one side follow each other. The turn is named.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise MessageError(f"messages are not JSON: {error}") from None
    if not isinstance(value, list) or not value:
        raise MessageError(f"messages are {type(value).__name__}, not a list of turns")
    messages = [_parse_turn(turn, position) for position, turn in enumerate(value)]
    if messages[-1]["role"] == "system":
        raise MessageError("the last turn is the system's, so nothing is asked")
    _check_order(messages)
    return messages


def refuse_tools(row: Mapping[str, Any]) -> None:
    """Raise MessageError when tools are offered beside a row's messages, under OpenAI's names."""
    for name in ("tools", "functions"):
        if row.get(name) not in (None, "", [], {}, "[]", "{}", "null"):
            raise MessageError(f"the row has {name!r}, and prompts are text alone")


def _check_order(messages: list[Message]) -> None:
    """Raise where user and assistant do not take turns, as many chat templates have it."""
    expected = "user"
    for position, message in enumerate(messages):
        if message["role"] == "system":
            continue
        if message["role"] != expected:
            before = "begins the conversation"
            if expected == "user" and position:
                before = "does not follow a user's"
            elif expected == "assistant":
                before = "follows another of the user's; join the two"
            raise MessageError(f"turn {position}, the {message['role']}'s, {before}")
        expected = "assistant" if expected == "user" else "user"


def _parse_turn(turn: Any, position: int) -> Message:
    """Return one turn; see :func:`parse_messages`."""
    if not isinstance(turn, dict):
        raise MessageError(f"turn {position} is {type(turn).__name__}, not {{role, content}}")
    role = "system" if turn.get("role") == "developer" else turn.get("role")
    if role in ("tool", "function") or turn.get("tool_calls") or turn.get("function_call"):
        raise MessageError(f"turn {position} uses a tool, and prompts are text alone")
    if role not in ROLES:
        raise MessageError(f"turn {position} has the role {turn.get('role')!r}")
    content = turn.get("content")
    if isinstance(content, list):
        content = "\n".join(_part_text(part, position) for part in content)
    if not isinstance(content, str):
        raise MessageError(f"turn {position} has no text under 'content'")
    if not is_whole(content):
        raise MessageError(f"turn {position} has half a character, which cannot be kept")
    return Message(role=role, content=content)


def _part_text(part: Any, position: int) -> str:
    """Return the text of one part of a turn's content."""
    text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise MessageError(f"turn {position} has a part {kind!r}, and prompts are text alone")
    return text


def is_whole(text: str) -> bool:
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


def with_system_turn(messages: Sequence[Message], text: str) -> list[Message]:
    r"""Return messages with ``text`` before their system turn, or as one where they have none.

    >>> turns = with_system_turn([Message(role="user", content="Hi")], "Be brief.")
    >>> [turn["content"] for turn in with_system_turn(turns, "You are a clerk.")]
    ['You are a clerk.\n\nBe brief.', 'Hi']
    """
    own, rest = split_system_turn(messages)
    content = text if own is None else text + SYSTEM_SEPARATOR + own
    return [Message(role="system", content=content), *rest]


def split_system_turn(messages: Sequence[Message]) -> tuple[str | None, list[Message]]:
    """Return the text of the system turn at the beginning, None where there is none, and the rest.

    >>> split_system_turn([Message(role="user", content="Hi")])
    (None, [{'role': 'user', 'content': 'Hi'}])
    """
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], list(messages[1:])
    return None, list(messages)


def content_hash(messages: Sequence[Message]) -> str:
    """Return a hash by which two prompts count as the same question.

    Case, white space and system turns are ignored: none of them makes a test row unseen.
    """
    asked = [m for m in messages if m["role"] != "system"]
    return sha256([[m["role"], " ".join(m["content"].casefold().split())] for m in asked])


def shown(conversation: Sequence[Message]) -> str:
    """Return a conversation as text to be read: one turn by itself, several with their roles.

    >>> shown([Message(role="user", content="Hi")])
    'Hi'
    >>> system = Message(role="system", content="Be brief.")
    >>> print(shown([system, Message(role="user", content="Hi")]))
    [system]
    Be brief.
    <BLANKLINE>
    [user]
    Hi
    """
    if len(conversation) == 1:
        return conversation[0]["content"]
    return "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in conversation)
