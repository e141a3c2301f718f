"""One endpoint as a session sees it: one event loop, one connection, one queue for all callers.

Chunks of a run work in threads of their own, and all of them ask through the same channel: so
there is one limiter, and the queue does not run dry where one chunk ends and the next begins.

Every request is its own unit. One that fails for a passing reason goes back into the queue, to be
sent again after a short pause, while the others go on. A slot is free again when the response is
kept, not when it has arrived: what a kill can lose is what was in flight.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from distillery.teacher.attempts import billed_tokens
from distillery.teacher.budget import Budget
from distillery.teacher.http.chat_api import read_reply, request_json
from distillery.teacher.http.connection import Connection, backoff_s
from distillery.teacher.http.endpoint import Endpoint
from distillery.teacher.http.gate import Gate
from distillery.teacher.http.oddities import Oddities
from distillery.teacher.http.queue import Batch, Item, Queue
from distillery.teacher.http.replies import (
    FatalReply,
    PassingFault,
    RateLimited,
    RefusedRequest,
    Unreachable,
    used_up_s,
)
from distillery.teacher.http.stream import Stream, whole
from distillery.teacher.protocol import Activity, OnResponse, Request, Response
from schemas.errors import BudgetError, TeacherError

logger = logging.getLogger(__name__)

# So many requests refused before any is answered: the settings are at fault, not the prompts.
_REFUSED_AT_FIRST = 8
# Room for what a body holds beside the text; one that goes on beyond it never ends.
_BODY_BYTES, _BYTES_PER_TOKEN = 4 * 2**20, 256
_ASK_THE_REST = "Run again: only the missing ones are asked."


class Channel:
    """Asks one endpoint for all threads that call it."""

    def __init__(self, endpoint: Endpoint, budget: Budget, *, backoff_s: float) -> None:
        self._endpoint, self._spec, self._backoff_s = endpoint, endpoint.spec, backoff_s
        self._budget = budget
        self._gate = Gate(endpoint.spec, backoff_s=backoff_s)
        self._queue = Queue()
        self._oddities = Oddities(endpoint)
        self._num_retries = self._num_doubted = 0
        self._answered = False
        self._timer: asyncio.TimerHandle | None = None
        self._ended_by: Exception | None = None
        self._connection = Connection(endpoint, name="teacher-endpoint")
        # Otherwise whoever is still waiting would wait forever.
        self._connection.before_end = lambda: self._end(
            endpoint.error("was closed while it was being asked", _ASK_THE_REST)
        )

    # -- for callers, from any thread --------------------------------------------------------

    @property
    def activity(self) -> Activity:
        """Return what it is doing at this moment."""
        pace = self._gate.pace.rate_per_s
        return Activity(
            in_flight=self._gate.in_flight,
            limit=self._limit,
            requests_per_minute=pace * 60 if pace else None,
            rate_limited=self._gate.num_429,
            retries=self._num_retries,
        )

    def run(self, requests: Sequence[Request], on_response: OnResponse) -> None:
        """Bring all requests to an end."""
        if not requests:
            return
        batch, loop = Batch(requests, on_response), self._connection.loop
        loop.call_soon_threadsafe(self._submit, batch)
        try:
            batch.done.wait()
        finally:
            if not batch.done.is_set():
                loop.call_soon_threadsafe(self._fail, batch, asyncio.CancelledError())
        if batch.error is not None:
            raise batch.error

    def close(self) -> None:
        """End the loop and close the connections."""
        self._connection.close()

    # -- sending -----------------------------------------------------------------------------

    def _submit(self, batch: Batch) -> None:
        if self._ended_by is not None:
            self._fail(batch, self._ended_by)
            return
        self._queue.add(batch)
        self._pump()

    def _pump(self) -> None:
        """Send what may be sent now, and come back when more may be."""
        now = time.monotonic()
        wait_s = float("inf")
        # While nothing is answered the others come first: the fault may be this request's.
        while item := self._queue.first(now, others_first=self._gate.outage.is_open):
            if self._gate.in_flight >= self._limit:
                break
            request = item.request
            expected = sum(
                self._budget.expected(request.num_chars, request.sampling.max_new_tokens)
            )
            if (wait_s := self._gate.wait_s(expected, now)) > 0 or not self._enter_budget(item):
                break
            wait_s = float("inf")
            self._send(self._queue.take_first(), expected, now)
        if self._queue.next_due < float("inf"):
            wait_s = min(wait_s or float("inf"), max(0.0, self._queue.next_due - now))
        self._wake_in(wait_s)

    def _wake_in(self, wait_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if 0 < wait_s < float("inf"):
            self._timer = self._connection.loop.call_later(wait_s, self._pump)

    @property
    def _limit(self) -> int:
        """Return how many requests may be in flight: one while only the endpoint's faults come."""
        return 1 if self._refuses_all or self._oddities.thoughts_only else self._gate.limit

    @property
    def _refuses_all(self) -> bool:
        """Return whether so many requests were refused, and none answered, as prompts are not."""
        return self._num_doubted >= _REFUSED_AT_FIRST and not self._answered

    def _enter_budget(self, item: Item) -> bool:
        """Return whether the budget lets ``item`` in; end its batch when nothing can change that.

        What is in flight may cost less than expected, so the run ends only once it is answered.
        """
        budget, request = self._budget, item.request
        if budget.enter(
            prompt_chars=request.num_chars, max_new_tokens=request.sampling.max_new_tokens
        ):
            return True
        if budget.num_in_flight == 0:
            self._fail(
                item.batch,
                BudgetError(
                    f"{budget.sentence()} are spent, and the next request could pass that. "
                    "Responses so far are kept. Raise the cap and run again: only the missing ones "
                    "are asked."
                ),
            )
            self._connection.loop.call_soon(self._pump)
        return False

    def _send(self, item: Item, expected: float, now: float) -> None:
        if (look_again_s := self._gate.enter(expected, now)) is not None:
            self._connection.loop.call_later(look_again_s, self._pump)
        if item.attempts.count:
            self._num_retries += 1
        item.attempts.count += 1
        self._start(self._attempt(item, expected, now), item.batch)

    def _start(self, work: Coroutine[Any, Any, None], batch: Batch) -> None:
        """Have ``work`` done for ``batch``, and ended with it."""
        task = self._connection.loop.create_task(work)
        batch.tasks.add(task)
        task.add_done_callback(batch.tasks.discard)

    # -- one attempt -------------------------------------------------------------------------

    async def _attempt(self, item: Item, expected: float, sent_at: float) -> None:
        """Send ``item`` once and deal with what follows."""
        spent_before = (item.attempts.read, item.attempts.written)
        try:
            await self._settle(item, await self._ask(item))
        except RefusedRequest as error:
            await self._note_refusal(item, error)
        except RateLimited as error:
            self._note_rate_limit(item, error, sent_at)
        except FatalReply as error:
            self._end(self._endpoint.fatal(error))
        except PassingFault as error:
            item.attempts.spend(*error.tokens)
            await self._note_fault(item, error, sent_at)
        except asyncio.CancelledError:
            raise
        except TeacherError as error:
            self._end(error)
        except BaseException as error:  # the receiver's: nothing more is to be asked for it
            self._fail(item.batch, error)
        finally:
            read = item.attempts.read - spent_before[0]
            written = item.attempts.written - spent_before[1]
            self._gate.leave(expected=expected, tokens=read + written)
            self._budget.leave(read, written)
            self._pump()

    async def _ask(self, item: Item) -> Response:
        """Return the response that one attempt brings."""
        was_full = self._gate.in_flight >= self._limit
        request, messages = item.request, item.attempts.messages
        start, stream = time.perf_counter(), Stream()
        reply = await self._connection.exchange(
            self._endpoint.url,
            request_json(self._spec, request, messages),
            timeout_s=self._spec.timeout_s,
            most_bytes=_BODY_BYTES + _BYTES_PER_TOKEN * request.sampling.max_new_tokens,
            on_part=stream.take if request.is_streamed else None,
        )
        latency_s = time.perf_counter() - start
        response = self._endpoint.without_key(read_reply(whole(reply), request))
        item.attempts.spend(*billed_tokens(response))
        self._oddities.check(response)
        self._gate.note_answer(used_up_s(reply.headers))
        if was_full and response.state != "refused":
            self._gate.window.grow()
        first_token_s = stream.first_token_at and stream.first_token_at - start
        return dataclasses.replace(response, latency_s=latency_s, first_token_s=first_token_s)

    async def _settle(self, item: Item, response: Response) -> None:
        """Hand over the response, or ask again where that may help."""
        self._answered = True
        item.num_unexplained += response.finish_reason is None
        may_be_cut = self._oddities.may_be_cut(response, item.num_unexplained)
        final = None if may_be_cut else item.attempts.take(response)
        if final is None and self._oddities.thoughts_only:
            self._queue.put_last(item)  # others tell whether the endpoint only thinks
        elif final is None:
            self._queue.put_first(item)
        else:
            await self._finish(item, final)

    async def _note_refusal(self, item: Item, error: RefusedRequest) -> None:
        """Hand over the refusal; while nothing is answered, ask once more, after all others.

        A parameter that the endpoint does not take makes it refuse every request; were these
        kept, no later run would ask again. They cost nothing.
        """
        self._gate.note_answer(None)
        said = self._endpoint.redact(str(error))
        sent = request_json(self._spec, item.request, [])
        item.num_refused += 1
        if not self._answered and error.is_about_settings(sent):
            self._end(self._endpoint.fatal(FatalReply(said, 400, error.error.param)))
            return
        is_known = self._answered or error.is_about_prompt
        self._num_doubted += item.num_refused == 1 and not is_known
        if is_known or (item.num_refused > 1 and not self._refuses_all):
            response = Response(item.request, "refused", "", error=said)
            await self._hand_over(item, item.attempts.take(response) or response)
        elif self._refuses_all and self._gate.in_flight == 1:  # this one
            what = f"refused the first {self._num_doubted} requests, the last with {said!r}"
            self._end(self._endpoint.error(what, "Correct the teacher section of the recipe."))
        else:
            self._queue.put_last(item)

    def _note_rate_limit(self, item: Item, error: RateLimited, sent_at: float) -> None:
        """Wait as the endpoint asks, all or this request alone; no attempt is spent."""
        now = time.monotonic()
        all_wait, wait_s = self._gate.note_limit(error, sent_at, now)
        is_let_in = self._gate.in_flight > 1  # what was sent besides may still be answered
        if (error.retry_after_s or 0.0 if is_let_in else wait_s) > self._spec.max_outage_s:
            self._end(self._endpoint.asks_to_wait(wait_s, error))
        item.num_limited += 1
        if all_wait:
            self._queue.put_first(item)
            return
        pause_s = error.retry_after_s
        if pause_s is None:
            pause_s = backoff_s(self._backoff_s, item.num_limited)
        self._queue.put_later(item, now + pause_s)

    async def _note_fault(self, item: Item, error: PassingFault, sent_at: float) -> None:
        """Have the request sent again after a pause, or give it up."""
        now, outage = time.monotonic(), self._gate.outage
        item.last_fault = self._endpoint.redact(str(error))
        logger.debug("attempt at %s: %s", item.request.request_hash[:12], item.last_fault)
        # Of an endpoint that is there, a failure of what has failed before tells nothing new.
        unfinished = self._queue.unfinished()
        if error.status is None or not all(other.request.is_suspect for other in unfinished):
            outage.failed(sent_at=sent_at, now=now)
        self._gate.note_fault(error, sent_at, now)
        is_heard = self._gate.is_heard
        # An endpoint that is away says nothing about the request.
        if not (isinstance(error, Unreachable) and is_heard):
            item.failures += 1
        is_over = outage.is_over(now) or (
            not is_heard and outage.failures >= self._spec.max_attempts
        )
        if is_over and not isinstance(error, Unreachable) and self._blames_what_is_left():
            outage.reset()
            for other in self._queue.take_all():
                self._start(self._give_up(other), other.batch)
            await self._give_up(item)
        elif is_over:
            what = f"gave no answer in {outage.failures} attempts"
            advice = "Start the endpoint or correct teacher.base_url."
            if is_heard:
                most_s = f"teacher.max_outage_s={self._spec.max_outage_s:g}"
                what, advice = f"has answered nothing for more than {most_s}", _ASK_THE_REST
            what += f"; the last failed with {item.last_fault!r}"
            self._end(self._endpoint.error(what, advice))
        elif item.failures < self._spec.max_attempts or not is_heard:
            self._queue.put_later(item, now + backoff_s(self._backoff_s, item.failures))
        else:
            await self._give_up(item)

    def _blames_what_is_left(self) -> bool:
        """Return whether all that is left has failed while the endpoint answered others.

        Then there is no other request to tell a broken endpoint from broken requests by.
        """
        return all(
            item.request.is_suspect or (self._answered and item.failures)
            for item in self._queue.unfinished()
        )

    # -- the end of a request ----------------------------------------------------------------

    async def _give_up(self, item: Item) -> None:
        fault = item.last_fault or "not asked: what failed with it in an earlier run got no answer"
        await self._hand_over(item, item.attempts.failed(fault))

    async def _hand_over(self, item: Item, response: Response) -> None:
        """Finish a request; an error of the receiver ends its batch."""
        try:
            await self._finish(item, response)
        except asyncio.CancelledError:
            raise
        except BaseException as failure:
            self._fail(item.batch, failure)

    async def _finish(self, item: Item, response: Response) -> None:
        """Hand over a response, wait until it is kept, and count its request as done."""
        batch, item.is_handed_over = item.batch, True
        # Shielded: a response that is being kept is kept, also when the run has to end.
        await asyncio.shield(asyncio.wrap_future(batch.on_response(response)))
        item.is_done = True
        batch.num_left -= 1
        if batch.num_left == 0:
            self._queue.batches.discard(batch)
            batch.done.set()

    def _fail(self, batch: Batch, error: BaseException) -> None:
        """End one batch with an error."""
        if not batch.done.is_set():
            self._queue.batches.discard(batch)
            for item in batch.items:  # paid for, without a final response: its charge counts
                if (item.attempts.read or item.attempts.written) and not item.is_handed_over:
                    item.is_handed_over = True
                    with contextlib.suppress(Exception):
                        batch.on_response(item.attempts.unfinished(str(error)))
            batch.end(error)

    def _end(self, error: Exception) -> None:
        """End all batches, and those to come: no request can meet anything else."""
        self._ended_by = error
        for batch in list(self._queue.batches):
            self._fail(batch, error)
