"""Requests to one vLLM server: how many at once, how large, and how often again."""

import asyncio
import collections
import contextlib
import io
import json
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

import aiohttp
import yarl

from distillery.objectives.soft.vllm_api import TooMuch, check_reply
from distillery.teacher.http.chat_api import FatalReply, PassingFault, RateLimited
from distillery.teacher.http.endpoint import Endpoint

T = TypeVar("T")

_CONNECT_TIMEOUT_S = 10.0
_MAX_BACKOFF_S = 30.0
# Replies that are on their way or being read; a row whose reply is longer goes alone.
_ROOM_BYTES = 64 * 2**20
# A body so much longer than expected never ends.
_SLACK, _SLACK_BYTES = 4, 2**20


class VllmClient:
    """Posts to one server from an event loop of its own, and asks again where that may help."""

    def __init__(self, endpoint: Endpoint, *, backoff_s: float) -> None:
        """Start the loop; nothing is sent yet.

        Args:
            endpoint: Which server, and with which key.
            backoff_s: First pause before a request is sent again; each next one is doubled.
        """
        self.endpoint, self._spec, self._backoff_s = endpoint, endpoint.spec, backoff_s
        self.room = _Room(_ROOM_BYTES).taken
        self._slots = asyncio.Semaphore(endpoint.spec.concurrency)
        self._started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main()), name="teacher-scores", daemon=True
        )
        self._thread.start()
        self._started.wait()

    def ahead(self, works: Iterable[Coroutine[Any, Any, T]], most: int) -> Generator[T, None, None]:
        """Yield the results of ``works`` in their order, up to ``most`` of them under way."""
        pending: collections.deque[Future[T]] = collections.deque()
        try:
            for work in works:
                pending.append(asyncio.run_coroutine_threadsafe(work, self._loop))
                if len(pending) >= most:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    async def post(
        self,
        url: yarl.URL,
        body: dict[str, Any],
        read: Callable[[bytes], T],
        *,
        num_bytes: int,
        is_divisible: bool = False,
    ) -> T:
        """Return what ``read`` makes of the reply.

        Args:
            url: One of the server's addresses.
            body: Sent as JSON.
            read: Turns the body into what is kept, or raises as :func:`check_reply` does.
            num_bytes: Expected length of the body.
            is_divisible: Raise TooMuch at once, as the caller can send less.

        Raises:
            RefusedRequest, CannotShow: At once.
            PassingFault: After `teacher.max_attempts` attempts.
            TeacherError: The endpoint refuses the key or the model, or holds a rate limit for
                longer than `teacher.max_outage_s`.
        """
        failures, waited_s = 0, 0.0
        while True:
            try:
                async with self._slots:
                    return read(await self._exchange(url, body, num_bytes))
            except FatalReply as error:
                said = self.endpoint.redact(str(error))
                raise self.endpoint.fatal(error.status, said) from None
            except RateLimited as error:
                pause_s = max(error.retry_after_s or 0.0, self._pause_s(1))
                waited_s += pause_s
                if waited_s > self._spec.max_outage_s:
                    said = self.endpoint.redact(str(error))
                    raise self.endpoint.asks_to_wait(waited_s, said) from None
            except PassingFault as error:
                failures += 1
                is_last = failures >= self._spec.max_attempts
                if is_last or (is_divisible and isinstance(error, TooMuch)):
                    raise
                pause_s = self._pause_s(failures)
            await asyncio.sleep(pause_s)

    def close(self) -> None:
        """End the loop and close the connections."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()

    async def _main(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            headers=self.endpoint.headers,
            proxy=self.endpoint.proxy,
        ) as self._session:
            self._started.set()
            await self._stopping.wait()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _pause_s(self, failures: int) -> float:
        most_s: float = min(_MAX_BACKOFF_S, self._backoff_s * 2 ** (failures - 1))
        return random.uniform(0.5, 1.0) * most_s

    async def _exchange(self, url: yarl.URL, body: dict[str, Any], num_bytes: int) -> bytes:
        """Return the body of one HTTP exchange that went well.

        A reset or a time-out while the server is at work may come from the size of the request.
        """
        timeout_s = self._spec.timeout_s
        timeout = aiohttp.ClientTimeout(
            total=timeout_s, sock_connect=min(_CONNECT_TIMEOUT_S, timeout_s)
        )
        try:
            async with self._session.post(
                url, data=_payload(body), allow_redirects=False, timeout=timeout
            ) as reply:
                content = await _read(reply, _SLACK * num_bytes + _SLACK_BYTES)
                status, retry_after = reply.status, reply.headers.get("Retry-After")
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise PassingFault(self.endpoint.redact(str(error))) from None
        except TimeoutError:
            raise TooMuch(f"no response within {timeout_s:.3g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            said = self.endpoint.redact(str(error)) or type(error).__name__
            raise TooMuch(f"connection lost ({said})") from None
        content = self.endpoint.clean(content)
        check_reply(url.path, status, retry_after, content)
        return content


def _payload(body: dict[str, Any]) -> aiohttp.Payload:
    """Return the body as JSON, sent in pieces as aiohttp wants it for long ones."""
    content = io.BytesIO(json.dumps(body).encode())
    return aiohttp.BytesIOPayload(content, content_type="application/json")


async def _read(reply: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the body.

    Raises:
        TooMuch: It is longer than ``most`` bytes.
    """
    parts, size = [], 0
    async for part in reply.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > most:
            raise TooMuch(f"a body of more than {most:,} bytes", status=reply.status)
    return b"".join(parts)


class _Room:
    """So many bytes of replies may be there at once; first come, first served."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._turn = asyncio.Lock()
        self._given_back = asyncio.Event()

    @contextlib.asynccontextmanager
    async def taken(self, amount: int) -> AsyncIterator[None]:
        """Wait until ``amount`` is free, and hold it inside; more than there is takes all."""
        amount = min(amount, self._size)
        async with self._turn:
            while self._free < amount:
                self._given_back.clear()
                await self._given_back.wait()
            self._free -= amount
        try:
            yield
        finally:
            self._free += amount
            self._given_back.set()
