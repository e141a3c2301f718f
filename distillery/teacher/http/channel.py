"""One endpoint as this process sees it: one event loop, one session, one queue for all callers.

Chunks of a run work in threads of their own, and all of them ask through the same channel: so
there is one limiter, and the queue does not run dry where one chunk ends and the next begins.

Every request is its own unit. One that fails for a passing reason goes back into the queue, to be
sent again after a short pause, while the others go on. A slot is free again when the response is
kept, not when it has arrived: what a kill can lose is what was in flight.
"""

import asyncio
import collections
import contextlib
import dataclasses
import heapq
import io
import itertools
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any

import aiohttp

from distillery.teacher.budget import Budget
from distillery.teacher.http.chat_api import (
    OVERLOADED,
    Completion,
    FatalReply,
    PassingFault,
    RateLimited,
    read_reply,
    request_json,
)
from distillery.teacher.http.endpoint import Endpoint
from distillery.teacher.http.limiter import Bucket, Latencies, Pace, Window
from distillery.teacher.http.outage import Outage
from distillery.teacher.protocol import Activity, Message, OnResponse, Request, Response, Tally
from distillery.teacher.repair import repair_messages, schema_violation
from schemas.errors import BudgetError
from schemas.teacher import OpenAITeacher

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 10.0
_MAX_BACKOFF_S = 30.0
_MOST_ASKED_EMPTY = 3
# How long the first request goes alone.
_REFUSED_WITHIN_S = 0.2
# So many requests refused before any is answered: the settings are at fault, not the prompts.
_REFUSED_AT_FIRST = 8
# Room for what a body holds beside the text; one that goes on beyond it never ends.
_BODY_BYTES, _BYTES_PER_TOKEN = 4 * 2**20, 256
_WHOLE_BYTES = 2**20
_CHARS_PER_TOKEN = 4.0
_MEMORY = 0.05
_HEDGE_AFTER = 0.95


class _UnreachableError(PassingFault):
    """No connection to the endpoint could be made."""


class _SlowError(PassingFault):
    """No response in time."""


@dataclasses.dataclass(eq=False)
class _Batch:
    """What one caller waits for."""

    on_response: OnResponse
    budget: Budget
    num_left: int
    tally: Tally = dataclasses.field(default_factory=Tally)
    done: threading.Event = dataclasses.field(default_factory=threading.Event)
    error: BaseException | None = None
    tasks: set["asyncio.Task[None]"] = dataclasses.field(default_factory=set)
    items: list["_Item"] = dataclasses.field(default_factory=list)
    num_held: int = 0


@dataclasses.dataclass(eq=False)
class _Item:
    """One request on its way."""

    request: Request
    batch: _Batch
    messages: list[Message]
    num_chars: int
    sent: int = 0
    failures: int = 0
    num_empty: int = 0
    repaired: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    hedge_tokens: int = 0
    reserved: float = 0.0
    last: str = ""
    is_done: bool = False


class Channel:
    """Asks one endpoint for all callers of this process. Open one with :func:`open_channel`."""

    def __init__(self, endpoint: Endpoint, *, backoff_s: float) -> None:
        spec = endpoint.spec
        now = time.monotonic()
        self._endpoint, self._spec, self._backoff_s = endpoint, spec, backoff_s
        self._window = Window(spec.concurrency)
        per_minute = spec.requests_per_minute
        self._pace = Pace(per_minute / 60 if per_minute else None, now)
        self._tokens = _token_bucket(spec, 1, now)
        self._latencies = Latencies(spec.timeout_s)
        self._outage = Outage(spec.max_outage_s, 2 * backoff_s)
        self._limited_since: float | None = None
        self._mean_tokens: float | None = None
        self._ready: collections.deque[_Item] = collections.deque()
        self._later: list[tuple[float, int, _Item]] = []
        self._numbers = itertools.count()
        self._batches: set[_Batch] = set()
        self._in_flight = self._num_sent = self._num_hedged = self._num_429 = self._num_retries = 0
        self._heard = self._answered = False
        self._first_sent_at = float("inf")
        self._held: list[tuple[_Item, Response]] = []
        self._models: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._ended_by: Exception | None = None
        self._watched: list[Callable[[], int]] = []
        self._started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main()), name="teacher-endpoint", daemon=True
        )
        self._thread.start()
        self._started.wait()

    # -- for callers, from any thread --------------------------------------------------------

    @property
    def activity(self) -> Activity:
        """Return what it is doing at this moment."""
        pace = self._pace.rate_per_s
        return Activity(
            in_flight=self._in_flight,
            limit=self._limit(),
            requests_per_minute=pace * 60 if pace else None,
            rate_limited=self._num_429,
            retries=self._num_retries,
            hedged=self._num_hedged,
        )

    def run(self, requests: Sequence[Request], on_response: OnResponse, budget: Budget) -> Tally:
        """Bring all requests to an end and return how much trouble they were."""
        if not requests:
            return Tally()
        batch = _Batch(on_response, budget, len(requests))
        batch.items = [_Item(r, batch, r.messages, _num_chars(r.messages)) for r in requests]
        self._loop.call_soon_threadsafe(self._submit, batch)
        try:
            batch.done.wait()
        finally:
            if not batch.done.is_set():
                self._loop.call_soon_threadsafe(self._fail, batch, asyncio.CancelledError())
        if batch.error is not None:
            raise batch.error
        return batch.tally

    @contextlib.contextmanager
    def sharing(self, processes: Callable[[], int]) -> Iterator[None]:
        """Keep to the share of one of so many processes, as long as the block lasts."""
        self._watched = [*self._watched, processes]
        try:
            yield
        finally:
            self._watched = [count for count in self._watched if count is not processes]

    def close(self) -> None:
        """End the loop and close the connections."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    # -- in the loop -------------------------------------------------------------------------

    async def _main(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            headers=self._endpoint.headers,
            proxy=self._endpoint.proxy,
        ) as self._session:
            self._started.set()
            await self._stopping.wait()
            tasks = [task for batch in self._batches for task in batch.tasks]
            self._end(self._endpoint.closed())  # whoever still waits would wait for ever
            await asyncio.gather(*tasks, return_exceptions=True)

    def _submit(self, batch: _Batch) -> None:
        if self._ended_by is not None:
            self._fail(batch, self._ended_by)
            return
        self._batches.add(batch)
        self._ready.extend(batch.items)
        self._pump()

    def _pump(self) -> None:
        """Send what may be sent now, and come back when more may be."""
        now = time.monotonic()
        self._share(now)
        wait_s = float("inf")
        while True:
            # While nothing is answered the others come first: the fault may be this request's.
            add = self._ready.append if self._outage.is_open else self._ready.appendleft
            while self._later and self._later[0][0] <= now:
                add(heapq.heappop(self._later)[2])
            while self._ready and self._ready[0].batch.error is not None:
                self._ready.popleft()
            if not self._ready or self._in_flight >= self._limit():
                break
            item = self._ready[0]
            if (wait_s := self._wait_s(item, now)) > 0 or not self._enter_budget(item):
                break
            self._ready.popleft()
            self._send(item, now)
        if self._later:
            wait_s = min(wait_s or float("inf"), max(0.0, self._later[0][0] - now))
        self._wake_in(wait_s)

    def _wake_in(self, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if 0 < wait_s < float("inf"):
            self._timer = self._loop.call_later(wait_s, self._pump)

    def _limit(self) -> int:
        """Return how many requests may be in flight: one until the endpoint is heard of.

        A wrong key is refused at once: an endpoint that takes its time is at work, and need not
        be waited for. One also while nothing but refusals has come: they come before any answer.
        """
        share = max(1, self._spec.concurrency // self._pace.processes)
        is_at_work = time.monotonic() - self._first_sent_at >= _REFUSED_WITHIN_S
        is_known = (self._heard or is_at_work) and len(self._held) < _REFUSED_AT_FIRST
        return min(self._window.size, share) if is_known else 1

    def _share(self, now: float) -> None:
        """Keep to this process's part of the told limits."""
        processes = max((count() for count in self._watched), default=1)
        if processes != self._pace.processes:
            self._pace.share(processes, now)
            self._tokens = _token_bucket(self._spec, processes, now)

    def _wait_s(self, item: _Item, now: float) -> float:
        """Return the seconds until ``item`` may be sent."""
        wait_s = max(
            self._outage.wait_s(in_flight=self._in_flight, now=now), self._pace.wait_s(now)
        )
        if self._tokens is not None:
            wait_s = max(wait_s, self._tokens.wait_s(self._expected_tokens(item), now))
        return wait_s

    def _expected_tokens(self, item: _Item) -> float:
        if self._mean_tokens is not None:
            return self._mean_tokens
        return item.num_chars / _CHARS_PER_TOKEN + item.request.sampling.max_new_tokens

    def _enter_budget(self, item: _Item) -> bool:
        """Return whether the budget lets ``item`` in; end its batch when nothing can change that.

        What is in flight may cost less than expected, so the end is told when it is answered.
        """
        batch, sampling = item.batch, item.request.sampling
        if batch.budget.enter(prompt_chars=item.num_chars, max_new_tokens=sampling.max_new_tokens):
            return True
        if batch.budget.num_in_flight == 0:
            self._fail(
                batch,
                BudgetError(
                    f"{batch.budget.sentence()} are spent, and the next request could pass that. "
                    "Responses so far are kept. Raise the cap and run again: only the missing ones "
                    "are asked."
                ),
            )
            self._loop.call_soon(self._pump)
        return False

    def _send(self, item: _Item, now: float) -> None:
        self._in_flight += 1
        self._num_sent += 1
        if self._num_sent == 1:
            self._first_sent_at = now
            self._loop.call_later(1.01 * _REFUSED_WITHIN_S, self._pump)
        self._pace.take(now)
        if self._tokens is not None:
            item.reserved = self._expected_tokens(item)
            self._tokens.take(item.reserved, now)
        if item.sent:
            self._num_retries += 1
            item.batch.tally.retries += 1
        item.sent += 1
        self._start(self._attempt(item, now), item.batch)

    def _start(self, work: Coroutine[Any, Any, None], batch: _Batch) -> None:
        """Have ``work`` done for ``batch``, and ended with it."""
        task = self._loop.create_task(work)
        batch.tasks.add(task)
        task.add_done_callback(batch.tasks.discard)

    async def _attempt(self, item: _Item, sent_at: float) -> None:
        """Send ``item`` once and deal with what follows."""
        billed = (0, 0)
        was_full = self._in_flight >= self._limit()
        try:
            completion, latency_s = await self._ask(item)
            billed = self._bill(item, completion)
            self._note_answer(completion, latency_s, was_full=was_full)
            await self._settle(item, completion, latency_s)
        except RateLimited as error:
            self._note_rate_limit(item, error, sent_at)
        except FatalReply as error:
            self._end(self._endpoint.fatal(error.status, self._endpoint.redact(str(error))))
        except PassingFault as error:
            await self._note_fault(item, error, sent_at)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # the receiver's: nothing more is to be asked for it
            self._fail(item.batch, error)
        finally:
            self._in_flight -= 1
            if self._tokens is not None:
                self._tokens.take(sum(billed) - item.reserved, time.monotonic())
            item.batch.budget.leave(*billed)
            self._pump()

    # -- one exchange ------------------------------------------------------------------------

    async def _ask(self, item: _Item) -> tuple[Completion, float]:
        """Return the completion of one attempt and the seconds that it took."""
        last = item.failures + 1 >= self._spec.max_attempts
        timeout_s = self._latencies.timeout_s(attempt=item.failures + 1, last=last)
        body = request_json(self._spec, item.request, item.messages)
        start = time.perf_counter()
        exchange = self._hedged if self._spec.hedged_fraction else self._exchange
        status, retry_after, content = await exchange(item, body, timeout_s)
        completion = self._endpoint.without_key(read_reply(status, retry_after, content))
        return completion, time.perf_counter() - start

    async def _exchange(
        self, item: _Item, body: dict[str, Any], timeout_s: float
    ) -> tuple[int, str | None, bytes]:
        """Return status, Retry-After and body of one HTTP exchange."""
        timeout = aiohttp.ClientTimeout(
            total=timeout_s, sock_connect=min(_CONNECT_TIMEOUT_S, timeout_s)
        )
        most = _BODY_BYTES + _BYTES_PER_TOKEN * item.request.sampling.max_new_tokens
        try:
            async with self._session.post(
                self._endpoint.url, data=_payload(body), allow_redirects=False, timeout=timeout
            ) as reply:
                content = await _read(reply, most)
                return (
                    reply.status,
                    reply.headers.get("Retry-After"),
                    self._endpoint.clean(content),
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _UnreachableError(self._endpoint.redact(str(error))) from None
        except TimeoutError:
            if timeout_s >= self._spec.timeout_s:
                self._window.shrink(sent_at=time.monotonic() - timeout_s, now=time.monotonic())
            raise _SlowError(f"no response within {timeout_s:.3g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            said = self._endpoint.redact(str(error)) or type(error).__name__
            raise PassingFault(f"connection lost ({said})") from None

    async def _hedged(
        self, item: _Item, body: dict[str, Any], timeout_s: float
    ) -> tuple[int, str | None, bytes]:
        """Return the earlier of two exchanges, the second begun when the first takes long."""
        exchanges = {asyncio.ensure_future(self._exchange(item, body, timeout_s))}
        try:
            usual_s = self._latencies.quantile_s(_HEDGE_AFTER)
            done, _ = await asyncio.wait(exchanges, timeout=usual_s)
            most = self._spec.hedged_fraction * self._num_sent
            if not done and self._num_hedged + 1 <= most:
                self._num_hedged += 1
                item.batch.tally.hedged += 1
                # The loser is paid for too, and never says for how much.
                item.hedge_tokens = round(self._expected_tokens(item))
                exchanges.add(asyncio.ensure_future(self._exchange(item, body, timeout_s)))
            while True:
                done, waiting = await asyncio.wait(exchanges, return_when=asyncio.FIRST_COMPLETED)
                good = next((task for task in done if task.exception() is None), None)
                if good is not None or not waiting:
                    return (good or done.pop()).result()
                exchanges = waiting
        finally:
            for task in exchanges:
                task.cancel()

    # -- what an attempt teaches -------------------------------------------------------------

    def _bill(self, item: _Item, completion: Completion) -> tuple[int, int]:
        """Return the tokens of a reply; estimated where the endpoint does not count them."""
        if completion.state == "refused" and completion.prompt_tokens is None:
            return 0, 0
        prompt, answer = completion.prompt_tokens, completion.completion_tokens
        if prompt is None:
            prompt = round(_num_chars(item.messages) / _CHARS_PER_TOKEN)
        if answer is None:
            answer = round(len(completion.text) / _CHARS_PER_TOKEN)
        old = self._mean_tokens if self._mean_tokens is not None else float(prompt + answer)
        self._mean_tokens = old + _MEMORY * (prompt + answer - old)
        prompt, item.hedge_tokens = prompt + item.hedge_tokens, 0
        item.prompt_tokens += prompt
        item.completion_tokens += answer
        return prompt, answer

    def _note_answer(self, completion: Completion, latency_s: float, *, was_full: bool) -> None:
        self._heard = True
        self._limited_since = None
        self._pace.accepted()
        self._outage.answered()
        if completion.state != "refused":
            self._latencies.add(latency_s)
            if was_full:
                self._window.grow()
        model = completion.model
        if model is not None and model not in self._models:
            self._models.add(model)
            if not model.endswith(self._spec.model) and not model.startswith(self._spec.model):
                logger.warning(
                    "endpoint '%s' answers as model %r, not as teacher.model=%r; the responses "
                    "are kept under the latter",
                    self._endpoint,
                    model,
                    self._spec.model,
                )

    def _note_rate_limit(self, item: _Item, error: RateLimited, sent_at: float) -> None:
        """Wait as the endpoint asks; the request goes back to the front, no attempt is spent."""
        now = time.monotonic()
        self._heard = True
        self._num_429 += 1
        item.batch.tally.rate_limited += 1
        self._pace.refused(error.retry_after_s, sent_at=sent_at, now=now)
        self._window.shrink(sent_at=sent_at, now=now)
        self._ready.appendleft(item)
        self._limited_since = self._limited_since or sent_at
        wait_s = max(error.retry_after_s or 0.0, now - self._limited_since)
        if wait_s > self._spec.max_outage_s:
            self._end(self._endpoint.asks_to_wait(wait_s, self._endpoint.redact(str(error))))

    async def _note_fault(self, item: _Item, error: PassingFault, sent_at: float) -> None:
        """Have the request sent again after a pause, or give it up."""
        now = time.monotonic()
        item.last = self._endpoint.redact(str(error))
        logger.debug("attempt %d at %s: %s", item.sent, item.request.request_hash[:12], item.last)
        # Of an endpoint that is there, a failure of what has failed before tells nothing new.
        if error.status is None or not all(i.request.is_suspect for i in self._left()):
            self._outage.failed(sent_at=sent_at, now=now)
        if error.status is not None:
            self._heard = True
            self._pace.accepted()
        if error.status in OVERLOADED:
            self._window.shrink(sent_at=sent_at, now=now)
        # An endpoint that is away says nothing about the request.
        if not (isinstance(error, _UnreachableError) and self._heard):
            item.failures += 1
        is_over = self._outage.is_over(now) or (
            not self._heard and self._outage.failures >= self._spec.max_attempts
        )
        if is_over and not isinstance(error, _UnreachableError) and self._blames_what_is_left():
            self._outage.reset()
            for other in self._take_waiting():
                self._start(self._give_up(other), other.batch)
            await self._give_up(item)
        elif is_over and not self._heard:
            self._end(self._endpoint.never_there(self._outage.failures, item.last))
        elif is_over:
            self._end(self._endpoint.gone(item.last))
        elif item.failures < self._spec.max_attempts or not self._heard:
            pause_s = self._backoff_s * 2 ** min(max(0, item.failures - 1), 16)
            due = now + random.uniform(0, min(_MAX_BACKOFF_S, pause_s))
            heapq.heappush(self._later, (due, next(self._numbers), item))
        else:
            await self._give_up(item)

    def _blames_what_is_left(self) -> bool:
        """Return whether all that is left has failed while the endpoint answered others.

        Then there is no other request to tell a broken endpoint from broken requests by.
        """
        return all(
            item.request.is_suspect or (self._answered and item.failures) for item in self._left()
        )

    def _left(self) -> Iterator[_Item]:
        """Yield the requests that have come to no end yet."""
        return (item for batch in self._batches for item in batch.items if not item.is_done)

    def _take_waiting(self) -> list[_Item]:
        """Empty the queues and return what was in them."""
        waiting = [*self._ready, *(item for _, _, item in self._later)]
        self._ready.clear()
        self._later.clear()
        return [item for item in waiting if item.batch.error is None]

    async def _give_up(self, item: _Item) -> None:
        try:
            await self._finish(item, _failed(item))
        except Exception as failure:
            self._fail(item.batch, failure)

    # -- the end of a request ----------------------------------------------------------------

    async def _settle(self, item: _Item, completion: Completion, latency_s: float) -> None:
        """Hand over the response, or ask again where that is worth while."""
        state, error = completion.state, completion.error
        if state == "empty":
            item.num_empty += 1
            if item.num_empty < _MOST_ASKED_EMPTY:
                self._ready.appendleft(item)
                return
        schema = item.request.response_schema
        if state == "ok" and schema is not None:
            violation = schema_violation(completion.text, schema)
            if violation is not None and not item.repaired:
                item.repaired = True
                item.messages = repair_messages(item.request, completion.text, violation)
                self._ready.appendleft(item)
                return
            if violation is not None:
                state, error = "malformed", violation
        response = Response(
            request=item.request,
            state=state,
            text=completion.text,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            model_reported=completion.model,
            latency_s=latency_s,
            attempts=item.sent,
            repaired=item.repaired,
            billed_prompt_tokens=item.prompt_tokens,
            billed_completion_tokens=item.completion_tokens,
            error=error and self._endpoint.redact(error),
        )
        if state == "refused" and not self._answered:
            await self._hold(item, response)
            return
        self._answered = True
        await self._release_held(self._held)
        await self._finish(item, response)

    async def _hold(self, item: _Item, response: Response) -> None:
        """Keep a refusal back until something is answered.

        A parameter that the endpoint does not know makes it refuse every request; were these
        kept, no later run would ask again. They cost nothing.
        """
        self._held.append((item, response))
        item.batch.num_held += 1
        if len(self._held) >= _REFUSED_AT_FIRST and self._in_flight == 1:  # this one
            self._end(self._endpoint.refuses_all(len(self._held), response.error))
        elif item.batch.num_held == item.batch.num_left:
            await self._release_held([pair for pair in self._held if pair[0].batch is item.batch])

    async def _release_held(self, pairs: Iterable[tuple[_Item, Response]]) -> None:
        pairs = list(pairs)
        self._held = [pair for pair in self._held if pair not in pairs]
        for item, response in pairs:
            item.batch.num_held -= 1
            await self._finish(item, response)

    async def _finish(self, item: _Item, response: Response) -> None:
        """Hand over a response, wait until it is kept, and count its request as done."""
        batch = item.batch
        # Shielded: a response that is being kept is kept, also when the run has to end.
        await asyncio.shield(asyncio.wrap_future(batch.on_response(response)))
        item.is_done = True
        batch.num_left -= 1
        if batch.num_left == 0:
            self._batches.discard(batch)
            batch.done.set()
        elif batch.num_held == batch.num_left:
            await self._release_held([pair for pair in self._held if pair[0].batch is batch])

    def _fail(self, batch: _Batch, error: BaseException) -> None:
        """End one batch with an error; what it has in flight is given up."""
        if batch.done.is_set():
            return
        batch.error = error
        self._batches.discard(batch)
        self._held = [pair for pair in self._held if pair[0].batch is not batch]
        self._later = [entry for entry in self._later if entry[2].batch is not batch]
        heapq.heapify(self._later)
        mine = asyncio.current_task(self._loop)
        for task in batch.tasks - {mine}:
            task.cancel()
        batch.done.set()

    def _end(self, error: Exception) -> None:
        """End all batches, and those to come: no request can meet anything else."""
        self._ended_by = error
        for batch in list(self._batches):
            self._fail(batch, error)


def _payload(body: dict[str, Any]) -> aiohttp.Payload:
    """Return the body as JSON; one of megabytes is sent in pieces, as aiohttp wants it."""
    content = json.dumps(body).encode()
    if len(content) < _WHOLE_BYTES:
        return aiohttp.BytesPayload(content, content_type="application/json")
    return aiohttp.BytesIOPayload(io.BytesIO(content), content_type="application/json")


async def _read(reply: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the body.

    Raises:
        PassingFault: It is longer than ``most`` bytes, so it may never end.
    """
    parts, size = [], 0
    async for part in reply.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > most:
            raise PassingFault(f"a body of more than {most:,} bytes", status=reply.status)
    return b"".join(parts)


def _failed(item: _Item) -> Response:
    return Response(
        request=item.request,
        state="failed",
        text="",
        attempts=item.sent,
        repaired=item.repaired,
        billed_prompt_tokens=item.prompt_tokens,
        billed_completion_tokens=item.completion_tokens,
        error=item.last or "not asked: what failed with it in an earlier run got no answer",
    )


def _num_chars(messages: list[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def _token_bucket(spec: OpenAITeacher, processes: int, now: float) -> Bucket | None:
    """Return the bucket of the told tokens per minute; None when none is told."""
    if spec.tokens_per_minute is None:
        return None
    rate = spec.tokens_per_minute / 60 / processes
    return Bucket(rate, rate, rate, now)


@dataclasses.dataclass
class _Opened:
    """The channels of this process."""

    channels: dict[object, Channel] = dataclasses.field(default_factory=dict)
    users: collections.Counter[object] = dataclasses.field(default_factory=collections.Counter)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


_opened = _Opened()

# What a channel does not read: runs that differ in it alone share their endpoint's limits.
_OF_THE_REQUEST = {
    "max_new_tokens",
    "sampling_temperature",
    "top_p",
    "seed",
    "samples",
    "structured_output",
    "price",
    "budget",
    "declared",
}


@contextlib.contextmanager
def open_channel(endpoint: Endpoint, *, backoff_s: float) -> Iterator[Channel]:
    """Yield the channel to ``endpoint``, shared with whoever has it open in this process."""
    asking = endpoint.spec.model_dump_json(exclude=_OF_THE_REQUEST)
    key = (os.getpid(), asking, endpoint.key, backoff_s)
    with _opened.lock:
        if key not in _opened.channels:
            _opened.channels[key] = Channel(endpoint, backoff_s=backoff_s)
        _opened.users[key] += 1
        channel = _opened.channels[key]
    try:
        yield channel
    finally:
        with _opened.lock:
            _opened.users[key] -= 1
            last = _opened.users[key] == 0
            if last:
                del _opened.channels[key], _opened.users[key]
        if last:
            channel.close()
