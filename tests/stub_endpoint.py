"""A chat endpoint on this machine that fails on command.

    with StubEndpoint([Reply(status=429, headers={"Retry-After": "1"}), Reply()]) as stub:
        ...  # the first request meets 429, the next one an answer

Each request takes the next scripted reply; after the last one `respond` decides, or `default`.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web


@dataclass(frozen=True)
class Reply:
    """How one request is met."""

    status: int = 200
    text: str | None = "fine"
    finish_reason: str = "stop"
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    body: str | None = None
    """Sent as it is instead of a chat completion."""
    error: str = "scripted"
    reset: bool = False
    """Close the connection without an answer."""


Script = Sequence[Reply]


class StubEndpoint:
    """Serves `/v1/chat/completions` on a free port of 127.0.0.1 while the context is open."""

    def __init__(
        self,
        script: Script = (),
        *,
        default: Reply = Reply(),
        respond: Callable[[dict[str, Any]], Reply] | None = None,
    ) -> None:
        self._script = list(script)
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
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, listener).start()
        self.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        started.set()
        await self._stop.wait()
        # asyncio of Python 3.11 leaks a connection that it is accepting while the server closes.
        self._loop.remove_reader(listener.fileno())
        await asyncio.sleep(0.02)
        await runner.cleanup()
        await asyncio.sleep(0)

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
            if reply.reset and request.transport is not None:
                request.transport.abort()
            return _response(reply, body)
        finally:
            self.in_flight -= 1


def _response(reply: Reply, body: dict[str, Any]) -> web.Response:
    if reply.body is not None:
        return web.Response(status=reply.status, text=reply.body, headers=reply.headers)
    if reply.status != 200:
        error = {"error": {"message": reply.error}}
        return web.json_response(error, status=reply.status, headers=reply.headers)
    message = {"role": "assistant", "content": reply.text}
    return web.json_response(
        {
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 2},
        }
    )
