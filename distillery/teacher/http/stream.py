"""Completions that come piece by piece, as server-sent events.

Source: OpenAI's API reference, "chat completion chunk"; the HTML standard, section 9.2.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from distillery.teacher.http.replies import Reply

_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


class Stream:
    """Watches a reply as it comes: when its first token is there."""

    def __init__(self) -> None:
        self.first_token_at: float | None = None
        """`time.perf_counter()` then. None: not yet, or the reply is not a stream."""
        self._begun = b""

    def take(self, part: bytes) -> None:
        """Take note of the next part. The first chunk often holds a role and no token."""
        if self.first_token_at is not None:
            return
        self._begun += part
        pieces = (piece for chunk in _chunks(self._begun) for piece in chunk.get("choices") or ())
        if any(map(_texts, pieces)):
            self.first_token_at, self._begun = time.perf_counter(), b""


def whole(reply: Reply) -> Reply:
    r"""Return the reply as it would be had it come in one piece; one that has stays as it is.

    >>> events = b'data: {"choices": [{"delta": {"content": "re"}}]}\n\ndata: [DONE]\n\n'
    >>> whole(Reply(200, {"content-type": "text/event-stream"}, events)).text
    '{"choices": [{"message": {"content": "re"}, "finish_reason": null}]}'
    """
    if reply.status != 200 or "text/event-stream" not in reply.headers.get("content-type", ""):
        return reply
    message: dict[str, str] = {}
    choice: dict[str, Any] = {"message": message, "finish_reason": None}
    body: dict[str, Any] = {"choices": [choice]}
    for chunk in _chunks(reply.content):
        if chunk.get("error"):
            return reply._replace(content=json.dumps(chunk).encode())
        body |= {name: chunk[name] for name in ("model", "usage") if chunk.get(name)}
        for piece in chunk.get("choices") or ():
            choice["finish_reason"] = piece.get("finish_reason") or choice["finish_reason"]
            for name, text in _texts(piece).items():
                message[name] = message.get(name, "") + text
    return reply._replace(content=json.dumps(body).encode())


def _chunks(content: bytes) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a stream, as far as they have come whole."""
    for line in content.splitlines():
        if line.startswith(b"data:"):
            with contextlib.suppress(ValueError):
                chunk = json.loads(line.removeprefix(b"data:"))
                if isinstance(chunk, dict):
                    yield chunk


def _texts(piece: dict[str, Any]) -> dict[str, str]:
    """Return what a piece of a choice adds to which text of the message."""
    delta = piece.get("delta") or {}
    return {name: delta[name] for name in _TEXTS if delta.get(name)}
