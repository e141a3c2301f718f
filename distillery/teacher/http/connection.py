"""Exchanges with one endpoint over HTTP, from an event loop in a thread of its own."""

import asyncio
import contextlib
import io
import json
import random
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import IO, Any, Self, TypeVar

import aiohttp
import yarl

from distillery.teacher.http.endpoint import Endpoint
from distillery.teacher.http.replies import PassingFault, Reply, Unreachable

T = TypeVar("T")

_CONNECT_TIMEOUT_S = 10.0
_MAX_BACKOFF_S = 30.0
# What an upload is answered with, or a download in place of the file, is short.
_UPLOADED_BYTES, _DOWNLOADED_AT_ONCE = 4 * 2**20, 2**20


class Connection:
    """A session with one endpoint, and the event loop in which it lives."""

    def __init__(self, endpoint: Endpoint, *, name: str) -> None:
        """Start the loop in a thread of that name; nothing is sent yet."""
        self.endpoint = endpoint
        self.before_end: Callable[[], None] = lambda: None
        """Called in the loop before what still runs in it is ended."""
        started = threading.Event()
        self.thread = threading.Thread(
            target=lambda: asyncio.run(self._main(started)), name=name, daemon=True
        )
        self.thread.start()
        started.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the loop and close the connections."""
        if self.thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it has just ended
                self.loop.call_soon_threadsafe(self._stopping.set)
            self.thread.join()

    def run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have ``work`` done in the loop, from any thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    async def exchange(
        self,
        url: yarl.URL,
        body: dict[str, Any] | None,
        *,
        timeout_s: float,
        most_bytes: int,
        on_part: Callable[[bytes], None] | None = None,
    ) -> Reply:
        """Return the reply to ``body``, posted as JSON, or to a GET without one.

        ``on_part`` is given each part of its content when it comes.

        Raises:
            Unreachable: No connection could be made.
            PassingFault: It ended without a whole reply, or with more than ``most_bytes``; a
                TimeoutError is its cause when there was none within ``timeout_s``.
        """
        timeout = aiohttp.ClientTimeout(
            total=timeout_s, sock_connect=min(_CONNECT_TIMEOUT_S, timeout_s)
        )
        data = None
        if body is not None:  # one of megabytes has to be sent in pieces
            sent = io.BytesIO(json.dumps(body).encode())
            data = aiohttp.BytesIOPayload(sent, content_type="application/json")

        async def read(reply: aiohttp.ClientResponse) -> bytes:
            return await _read(reply, most_bytes, on_part)

        return await self._reply(url, data, read, timeout, timeout_s)

    async def upload(
        self, url: yarl.URL, data: aiohttp.FormData | aiohttp.Payload, *, stall_s: float
    ) -> Reply:
        """Return the reply to posted ``data``, which may take long to send.

        Raises:
            Unreachable: No connection could be made.
            PassingFault: It ended without a whole reply, or none came within ``stall_s``.
        """

        async def read(reply: aiohttp.ClientResponse) -> bytes:
            return await _read(reply, _UPLOADED_BYTES, None)

        return await self._reply(url, data, read, _getting_on(stall_s), stall_s)

    async def download(self, url: yarl.URL, file: IO[bytes], *, stall_s: float) -> Reply:
        """Return the reply to a GET, its content written to ``file`` where the status is 200.

        Raises:
            Unreachable: No connection could be made.
            PassingFault: It ended without a whole reply, or nothing came for ``stall_s``.
        """

        async def read(reply: aiohttp.ClientResponse) -> bytes:
            if reply.status != 200:
                return await _read(reply, _UPLOADED_BYTES, None)
            async for part in reply.content.iter_chunked(_DOWNLOADED_AT_ONCE):
                file.write(part)
            return b""

        return await self._reply(url, None, read, _getting_on(stall_s), stall_s)

    async def _reply(
        self,
        url: yarl.URL,
        data: aiohttp.FormData | aiohttp.Payload | None,
        read: Callable[[aiohttp.ClientResponse], Coroutine[Any, Any, bytes]],
        timeout: aiohttp.ClientTimeout,
        timeout_s: float,
    ) -> Reply:
        """Return the reply to posted ``data``, or to a GET; what went wrong is a PassingFault."""
        method = "GET" if data is None else "POST"
        try:
            async with self._session.request(
                method, url, data=data, allow_redirects=False, timeout=timeout
            ) as reply:
                content = self.endpoint.clean(await read(reply))
                return Reply(reply.status, reply.headers, content)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable(self.endpoint.redact(str(error))) from None
        except TimeoutError as error:
            raise PassingFault(f"no response within {timeout_s:.3g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            said = self.endpoint.redact(str(error)) or type(error).__name__
            raise PassingFault(f"connection lost ({said})") from None

    async def _main(self, started: threading.Event) -> None:
        self.loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            headers=self.endpoint.headers,
            proxy=self.endpoint.proxy,
        ) as self._session:
            started.set()
            await self._stopping.wait()
            self.before_end()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def backoff_s(first_s: float, failures: int) -> float:
    """Return a random pause after so many failures, up to ``first_s`` doubled at each, 30 at most.

    Source: Brooker 2015, Exponential Backoff And Jitter ("full jitter").
    """
    return random.uniform(0, min(_MAX_BACKOFF_S, first_s * 2 ** min(max(0, failures - 1), 16)))


def _getting_on(stall_s: float) -> aiohttp.ClientTimeout:
    """Return the patience with what takes long, but never so long without anything new."""
    return aiohttp.ClientTimeout(
        total=None, sock_connect=min(_CONNECT_TIMEOUT_S, stall_s), sock_read=stall_s
    )


async def _read(
    reply: aiohttp.ClientResponse, most: int, on_part: Callable[[bytes], None] | None
) -> bytes:
    """Return the body.

    Raises:
        PassingFault: It is longer than ``most`` bytes, so it may never end.
    """
    parts, size = [], 0
    async for part in reply.content.iter_any():
        parts.append(part)
        if on_part is not None:
            on_part(part)
        size += len(part)
        if size > most:
            raise PassingFault(f"a body of more than {most:,} bytes", status=reply.status)
    return b"".join(parts)
