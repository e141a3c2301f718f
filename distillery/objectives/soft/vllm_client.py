"""Requests to one vLLM server: how many at once, and how often again."""

import asyncio
import collections
from collections.abc import Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

import yarl

from distillery.objectives.soft.vllm_api import check_reply
from distillery.teacher.http.connection import Connection, backoff_s
from distillery.teacher.http.endpoint import Endpoint
from distillery.teacher.http.replies import FatalReply, PassingFault, RateLimited

T = TypeVar("T")

# A body so much longer than expected never ends.
_SLACK, _SLACK_BYTES = 4, 2**20


class VllmClient:
    """Posts to one server, and asks again where that may help."""

    def __init__(self, endpoint: Endpoint, *, backoff_s: float) -> None:
        """Start the loop; nothing is sent yet.

        Args:
            endpoint: Which server, and with which key.
            backoff_s: Bounds the first pause before a request is sent again; each next is doubled.
        """
        self.endpoint, self._spec, self._backoff_s = endpoint, endpoint.spec, backoff_s
        self._slots = asyncio.Semaphore(endpoint.spec.concurrency)
        self._connection = Connection(endpoint, name="teacher-scores")
        self.close = self._connection.close

    def ahead(self, works: Iterable[Coroutine[Any, Any, T]], most: int) -> Generator[T, None, None]:
        """Yield the results of ``works`` in their order, up to ``most`` of them under way."""
        pending: collections.deque[Future[T]] = collections.deque()
        try:
            for work in works:
                pending.append(self._connection.run(work))
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
    ) -> T:
        """Return what ``read`` makes of the reply.

        Args:
            url: One of the server's addresses.
            body: Sent as JSON.
            read: Turns the body into what is kept, or raises as :func:`check_reply` does.
            num_bytes: Expected length of the body.

        Raises:
            RefusedRequest, CannotShow: At once.
            PassingFault: After `teacher.max_attempts` attempts.
            TeacherError: The endpoint refuses the key or the model, or holds a rate limit for
                longer than `teacher.max_outage_s`.
        """
        failures, num_limited, waited_s = 0, 0, 0.0
        while True:
            try:
                async with self._slots:
                    return read(await self._exchange(url, body, num_bytes))
            except FatalReply as error:
                raise self.endpoint.fatal(error) from None
            except RateLimited as error:
                num_limited += 1
                pause_s = (error.retry_after_s or 0.0) + backoff_s(self._backoff_s, num_limited)
                waited_s += pause_s
                if waited_s > self._spec.max_outage_s:
                    raise self.endpoint.asks_to_wait(waited_s, error) from None
            except PassingFault:
                failures += 1
                if failures >= self._spec.max_attempts:
                    raise
                pause_s = backoff_s(self._backoff_s, failures)
            await asyncio.sleep(pause_s)

    async def _exchange(self, url: yarl.URL, body: dict[str, Any], num_bytes: int) -> bytes:
        """Return the body of one HTTP exchange that went well."""
        reply = await self._connection.exchange(
            url,
            body,
            timeout_s=self._spec.timeout_s,
            most_bytes=_SLACK * num_bytes + _SLACK_BYTES,
        )
        check_reply(url.path, reply)
        return reply.content
