"""One line of a log: what was asked of a model, and what it answered.

Two shapes are read, both with the bodies of OpenAI's `POST /v1/chat/completions`:

    {"request": {"messages": [...], ...}, "response": {"choices": [...]}, "timestamp": ...}
    {"custom_id": ..., "body": {"messages": [...]}, "response": {"status_code": ..., "body": {...}}}

The second is a batch's input and output, joined. Only text is kept: of a picture, a sound or a
call of a tool no more than that it was there, so that the row is put aside with its reason.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from distillery.storage.fingerprint import sha256

_TIMES = ("timestamp", "created_at", "created", "time")
# Unix times of today in milliseconds, microseconds and nanoseconds.
_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))


class Entry(NamedTuple):
    """What one line of a log holds."""

    id: str
    """The request's own id; without one a hash of the line, which stays from night to night."""

    turns: list[dict[str, Any]] | None
    """The conversation, the response as its last turn where it is whole. None: there is none."""

    offers_tools: bool
    """Whether the request offered tools."""

    model: str | None
    """The model that was asked."""

    time_s: float | None
    """When it was asked, seconds since 1970, UTC. None: the line does not say."""

    @property
    def asked(self) -> str:
        """Return what the user wrote last, by which prompts are told apart."""
        texts = [turn["content"] for turn in self.turns or [] if turn.get("role") == "user"]
        return _text(texts[-1]) if texts else ""

    def row(self) -> dict[str, Any]:
        """Return the entry as a row of a source with the column `messages`."""
        row = {"id": self.id, "messages": self.turns, "model": self.model}
        return row | ({"tools": True} if self.offers_tools else {})


def read_entry(values: Mapping[str, Any], time_field: str | None) -> Entry:
    """Return what a line holds.

    Args:
        values: The line.
        time_field: Where it says when the request was made. None: the first of the usual names,
            or `created` of the response.

    >>> entry = read_entry({"request": {"messages": [{"role": "user", "content": "Hi"}]}}, None)
    >>> entry.asked, entry.time_s
    ('Hi', None)
    """
    request = _object(values.get("request")) or _object(values.get("body")) or dict(values)
    if "messages" not in request:
        request = _object(request.get("body")) or request
    response = _object(values.get("response")) or {}
    given = response.get("status_code", 200)
    if "choices" not in response:
        response = _object(response.get("body")) or response
    messages = request.get("messages")
    turns = [_skeleton(turn) for turn in messages] if isinstance(messages, list) else None
    if turns is not None and given == 200 and (answer := _answer(response)):
        turns.append({"role": "assistant", "content": answer})
    named = [values.get(name) for name in ("id", "request_id", "custom_id")]
    own = next((name for name in [*named, response.get("id")] if isinstance(name, str)), None)
    times = [values.get(time_field)] if time_field else [values.get(name) for name in _TIMES]
    if time_field is None:
        times.append(response.get("created"))
    tools = ("tools", "functions")
    return Entry(
        id=own or sha256(json.dumps(values, sort_keys=True, default=str))[:32],
        turns=turns,
        offers_tools=any(request.get(name) for name in tools),
        model=request["model"] if isinstance(request.get("model"), str) else None,
        time_s=next((found for time in times if (found := _seconds(time)) is not None), None),
    )


def texts(turns: list[dict[str, Any]]) -> list[str]:
    """Return all texts of a conversation, in order; see :func:`with_texts`."""
    found: list[str] = []
    for turn in turns:
        content = turn["content"]
        parts = content if isinstance(content, list) else [{"text": content}]
        found += [part["text"] for part in parts if isinstance(part.get("text"), str)]
    return found


def with_texts(turns: list[dict[str, Any]], replaced: list[str]) -> list[dict[str, Any]]:
    """Return the conversation with other texts in the places of its own."""
    rest = iter(replaced)

    def other(part: dict[str, Any]) -> dict[str, Any]:
        return part | {"text": next(rest)} if isinstance(part.get("text"), str) else part

    made = []
    for turn in turns:
        content = turn["content"]
        if isinstance(content, list):
            made.append(turn | {"content": [other(part) for part in content]})
        else:
            made.append(turn | {"content": next(rest) if isinstance(content, str) else None})
    return made


def _answer(response: Mapping[str, Any]) -> str | None:
    """Return the text of a response; None where it is no whole answer in words."""
    try:
        choice = response["choices"][0]
        message = choice["message"]
        content, called = message.get("content"), message.get("tool_calls")
    except (LookupError, TypeError, AttributeError):
        return None
    is_whole = choice.get("finish_reason") in (None, "stop") and not called
    text = _text(content) if is_whole else ""
    return text or None


def _skeleton(turn: Any) -> dict[str, Any]:
    """Return a turn with its text, and no more than the kinds of what is no text."""
    if not isinstance(turn, dict):
        return {"role": None, "content": None}
    content = turn.get("content")
    if isinstance(content, list):
        content = [_part(part) for part in content]
    elif not isinstance(content, str):
        content = None
    kept = {"role": turn.get("role"), "content": content}
    for name in ("tool_calls", "function_call"):
        if turn.get(name):
            kept[name] = True
    return kept


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        return {"type": type(part).__name__}
    kind = {"type": str(part.get("type"))}
    return kind | {"text": part["text"]} if isinstance(part.get("text"), str) else kind


def _text(content: Any) -> str:
    parts = content if isinstance(content, list) else [{"text": content}]
    found = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in found if isinstance(text, str))


def _object(value: Any) -> dict[str, Any] | None:
    """Return a value that is an object, or the JSON text of one; None for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _seconds(value: Any) -> float | None:
    """Return a time as seconds since 1970: a Unix time of any unit, or ISO 8601.

    >>> _seconds("2026-11-27T07:00:00Z") == _seconds(1795762800) == _seconds(1795762800000)
    True
    >>> _seconds("yesterday") is None
    True
    """
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    for least, per_second in _UNITS:
        if number >= least:
            return number / per_second
    return number if number > 0 else None
