"""A chat endpoint on this machine that fails on command.

    with StubEndpoint([Reply(status=429, headers={"Retry-After": "1"}), Reply()]) as stub:
        ...  # the first request meets 429, the next one an answer

Each request takes the next scripted reply; after the last one `respond` decides, or `default`.
"""

import asyncio
import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from tests.waiting import PATIENCE_S


@dataclass(frozen=True)
class Reply:
    """How one request is met."""

    status: int = 200
    text: str | None = "fine"
    finish_reason: str | None = "stop"
    message_facts: dict[str, Any] = field(default_factory=dict)
    """Further fields of the message, such as `reasoning`."""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    when: Callable[[], bool] | None = None
    """Answer only once this is so; however long that takes on a busy machine."""
    body: str | bytes | None = None
    """Sent as it is instead of a chat completion."""
    error: str = "scripted"
    error_facts: dict[str, Any] = field(default_factory=dict)
    """Further fields of the error, such as its code."""
    reset: bool = False
    """Close the connection without an answer."""
    model: str | None = None
    """Name that the completion bears. None: the one that was asked for."""
    usage: dict[str, Any] | None = field(
        default_factory=lambda: {"prompt_tokens": 7, "completion_tokens": 2}
    )
    """What the completion says of its tokens. None: nothing."""
    choices: list[Any] | None = None
    """Choices of the completion, in place of the one with `text`."""
    close_after: int | None = None
    """Promise the whole body, send so many bytes of it, and close the connection."""
    endless: bytes | None = None
    """Sent again and again as a body without end."""
    streams: bool = False
    """Send the text word by word to whoever asks for a stream."""


STANDS_STILL = Reply(delay_s=3600)
"""No answer while the endpoint is there."""

Script = Sequence[Reply]


class StubEndpoint:
    """Serves `paths` on a free port of 127.0.0.1 while the context is open."""

    def __init__(
        self,
        script: Script = (),
        *,
        default: Reply = Reply(),
        respond: Callable[[dict[str, Any]], Reply] | None = None,
        port: int = 0,
        paths: Sequence[str] = ("/v1/chat/completions",),
        models: Reply | None = None,
    ) -> None:
        self._script = list(script)
        self.port = port
        self.paths = paths
        self._models = models
        self.gets: list[str] = []
        """Paths below `/v1/` that were read; only `models` is there, and only if given."""
        self.default = default
        self._respond = respond
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self.base_url = ""

    @property
    def num_requests(self) -> int:
        return len(self.requests)

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        assert started.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=64 * 2**20)
        for path in self.paths:
            app.router.add_post(path, self._handle)
        app.router.add_get("/v1/{path:models.*}", self._get)
        self.add_routes(app.router)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", self.port))
        await web.SockSite(runner, listener).start()
        self.port = listener.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        started.set()
        await self._stop.wait()
        # asyncio of Python 3.11 leaks a connection that it is accepting while the server closes.
        self._loop.remove_reader(listener.fileno())
        await asyncio.sleep(0.02)
        await runner.cleanup()
        await asyncio.sleep(0)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Serve more than completions and the list of models."""

    async def _get(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        self.gets.append(path)
        if self._models is None or path != "models":
            return web.Response(status=404)
        return _response(self._models, {})

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        if self._script:
            reply = self._script.pop(0)
        else:
            reply = self._respond(body) if self._respond else self.default
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await asyncio.sleep(reply.delay_s)
            if reply.when is not None:
                await _come_about(reply.when)
            if reply.reset and request.transport is not None:
                request.transport.abort()
            response = _response(reply, body)
            if reply.endless is not None:
                return await _send_for_ever(request, reply.endless)
            if reply.streams and body.get("stream"):
                return await _send_word_by_word(request, json.loads(response.text or ""))
            if reply.close_after is not None:
                return await _send_a_part(request, response, reply.close_after)
            return response
        finally:
            self.in_flight -= 1


async def _come_about(is_so: Callable[[], bool]) -> None:
    """Wait until ``is_so``, or so long that the test is to fail rather than to hang."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            while not is_so():
                await asyncio.sleep(0.002)


async def _send_for_ever(request: web.Request, piece: bytes) -> web.StreamResponse:
    stream = web.StreamResponse(headers={"Content-Type": "application/json"})
    stream.enable_chunked_encoding()
    await stream.prepare(request)
    with contextlib.suppress(ConnectionError):  # until the client has had enough
        while True:
            await stream.write(piece)
            await asyncio.sleep(0.005)
    return stream


async def _send_word_by_word(
    request: web.Request, completion: dict[str, Any]
) -> web.StreamResponse:
    [choice] = completion.pop("choices")
    deltas = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word} for word in re.findall(r"\S+\s*", choice["message"]["content"])]
    ends = [None] * (len(deltas) - 1) + [choice["finish_reason"]]
    usage = completion.pop("usage", None)
    chunks = [
        {**completion, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}
        for delta, end in zip(deltas, ends, strict=True)
    ]
    if usage is not None:
        chunks.append({**completion, "choices": [], "usage": usage})
    stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await stream.prepare(request)
    for chunk in chunks:
        await stream.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await asyncio.sleep(0.005)
    await stream.write(b"data: [DONE]\n\n")
    return stream


async def _send_a_part(
    request: web.Request, whole: web.Response, num_bytes: int
) -> web.StreamResponse:
    assert isinstance(whole.body, bytes)
    stream = web.StreamResponse(status=whole.status, headers=whole.headers)
    stream.content_length = len(whole.body)
    await stream.prepare(request)
    await stream.write(whole.body[:num_bytes])
    if request.transport is not None:
        request.transport.close()
    return stream


def listing(*models: str, **facts: Any) -> Reply:
    """Return a list of models, each with further ``facts``."""
    data = [{"id": model, "object": "model", **facts} for model in models]
    return Reply(body=json.dumps({"object": "list", "data": data}))


def _response(reply: Reply, body: dict[str, Any]) -> web.Response:
    if reply.body is not None:
        content = reply.body.encode() if isinstance(reply.body, str) else reply.body
        return web.Response(status=reply.status, body=content, headers=reply.headers)
    if reply.status != 200:
        error = {"error": {"message": reply.error, **reply.error_facts}}
        return web.json_response(error, status=reply.status, headers=reply.headers)
    message = {"role": "assistant", "content": reply.text, **reply.message_facts}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    completion = {
        "model": reply.model or body["model"],
        "choices": [choice] if reply.choices is None else reply.choices,
    }
    if reply.usage is not None:
        completion["usage"] = reply.usage
    return web.json_response(completion)
