"""One call's requests on their way through batches, until each has its response."""

import collections
import dataclasses
import logging
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from distillery.ledger import SentBatch, SentRequest
from distillery.storage.scratch import scratch_folder
from distillery.teacher.attempts import Attempts, billed_tokens
from distillery.teacher.http.batch.base import BatchStatus, NotYetKnown
from distillery.teacher.http.batch.provider import Provider
from distillery.teacher.http.chat_api import request_json
from distillery.teacher.http.replies import (
    FatalReply,
    PassingFault,
    RateLimited,
    RefusedRequest,
    Unreachable,
)
from distillery.teacher.protocol import OnResponse, Request, Response
from schemas.errors import BudgetError, TeacherError

logger = logging.getLogger(__name__)

_MOST_KEPT = 1000
# So many requests refused before any is answered: the settings are at fault, not the prompts.
_REFUSED_AT_FIRST = 8
_QUEUE_IS_FULL = "token_limit"  # OpenAI: token_limit_exceeded


@dataclasses.dataclass(eq=False)
class Item:
    """One request on its way."""

    attempts: Attempts
    sent_limit: int = 0
    """`max_new_tokens` with which it was sent."""
    failures: int = 0
    """Attempts that brought nothing."""
    is_in_flight: bool = False

    @property
    def request(self) -> Request:
        """Return what was asked for."""
        return self.attempts.request

    @property
    def request_hash(self) -> str:
        """Return the key under which a batch holds it."""
        return self.attempts.request.request_hash


@dataclasses.dataclass(eq=False)
class _Open:
    """A batch that this call waits for, and those of its requests that it holds."""

    batch: SentBatch
    items: dict[str, Item]
    since: float = dataclasses.field(default_factory=time.monotonic)


class Work:
    """Brings requests to their responses: submits, waits, reads, and asks the rest again."""

    def __init__(
        self, provider: Provider, requests: Sequence[Request], on_response: OnResponse
    ) -> None:
        self._provider, self._on_response = provider, on_response
        self._items = {r.request_hash: Item(Attempts(r)) for r in requests}
        self._waiting: collections.deque[Item] = collections.deque()
        self._open: list[_Open] = []
        self._kept: list[tuple[str, Future[None]]] = []
        self._num_left = len(self._items)
        self._num_unsent = 0
        self._held_at: int | None = None
        """Batches that had ended when the provider's queue was found full."""

    def run(self) -> None:
        """Bring all requests to an end."""
        try:
            self._adopt()
            while self._num_left:
                before = self._num_left
                self._send_what_fits()
                for opened in list(self._open):
                    self._look_at(opened)
                if self._num_left == before:
                    first = min((opened.since for opened in self._open), default=time.monotonic())
                    self._provider.pause(time.monotonic() - first)
        except BaseException:
            self._say_what_goes_on()
            raise
        finally:
            for opened in list(self._open):
                self._close(opened)
            for item in self._items.values():
                self._land(item)

    # -- sending -----------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Take over the batches in which earlier runs have put requests of ours."""
        adopted: set[str] = set()
        for batch, held in self._provider.batches.holding(list(self._items)).items():
            for request_hash, sent in held.items():
                item = self._items[request_hash]
                item.attempts = Attempts.restored(item.request, sent.attempts)
                item.sent_limit, item.is_in_flight = sent.max_new_tokens, True
                self._provider.budget.readmit()
            logger.info(
                "batch %s holds %d of the requests; an earlier run has submitted it",
                batch.batch_id or batch.key,
                len(held),
            )
            adopted |= held.keys()
            self._open_up(batch, [self._items[request_hash] for request_hash in held])
        self._waiting = collections.deque(
            item for item in self._items.values() if item.request_hash not in adopted
        )

    def _send_what_fits(self) -> None:
        """Submit what waits, as far as the provider's queue and the budget allow."""
        if self._held_at == self._provider.num_ended and self._provider.num_open:
            return
        self._held_at = None
        while self._waiting:
            with scratch_folder("batch") as folder:
                file = folder / "requests"
                items = self._fill(file)
                if not items:
                    self._check_budget()
                    return
                self._submit(items, file)

    def _fill(self, path: Path) -> list[Item]:
        """Write a file of requests and return them; the rest goes on waiting."""
        form, budget, items = self._provider.format, self._provider.budget, list[Item]()
        size = len(form.opening) + len(form.closing)
        with path.open("wb") as file:
            file.write(form.opening)
            while self._waiting and len(items) < self._provider.most_requests:
                item = self._waiting[0]
                request, limit = item.request, item.request.sampling.max_new_tokens
                line = form.line(request, item.attempts.messages)
                size += len(line) + len(form.separator)
                if items and size > form.most_bytes:
                    break
                if not budget.enter(prompt_chars=request.num_chars, max_new_tokens=limit):
                    break
                file.write((form.separator if items else b"") + line)
                item.is_in_flight, item.sent_limit = True, limit
                items.append(self._waiting.popleft())
            file.write(form.closing)
        return items

    def _check_budget(self) -> None:
        """Raise when nothing that is in flight can make room for another request."""
        budget = self._provider.budget
        if budget.num_in_flight == 0:
            raise BudgetError(
                f"{budget.sentence()} are spent, and the next request could pass that. Responses "
                "so far are kept. Raise the cap and run again: only the missing ones are asked."
            )

    def _submit(self, items: list[Item], file: Path) -> None:
        """Have a file of requests taken; that is noted before, and the id after."""
        provider = self._provider
        key, place = uuid.uuid4().hex, str(provider.endpoint)
        batch = SentBatch(key, None, place, len(items), time.time())
        sent = {i.request_hash: SentRequest(i.attempts.dump(), i.sent_limit) for i in items}
        provider.batches.begin(batch, sent)
        opened = self._open_up(batch, items)
        try:
            batch_id = provider.insist(lambda: self._hand_in(batch, file))
        except TeacherError:
            # It was not taken. What the first attempts cost stays noted, and is not forgotten.
            if not provider.is_closed and not any(item.attempts.count for item in items):
                provider.batches.forget(key)
                self._close(opened)
            raise
        if batch_id is not None:
            self._identify(opened, batch_id)
            logger.info(
                "submitted batch %s of %d requests to '%s'; it may take up to 24 hours",
                batch_id,
                len(items),
                provider.endpoint,
            )

    def _hand_in(self, batch: SentBatch, file: Path) -> str | None:
        """Return the id of a batch; None when it may have been taken, and nobody said so."""
        try:
            return self._provider.run(self._provider.format.submit(batch, file))
        except Unreachable:
            raise
        except PassingFault as error:
            logger.warning("batch %s may have been submitted, or not: %s", batch.key, error)
            return None

    def _open_up(self, batch: SentBatch, items: list[Item]) -> _Open:
        opened = _Open(batch, {item.request_hash: item for item in items})
        self._open.append(opened)
        self._provider.note(batch)
        return opened

    def _identify(self, opened: _Open, batch_id: str) -> None:
        opened.batch = opened.batch._replace(batch_id=batch_id)
        self._provider.batches.submitted(opened.batch.key, batch_id)
        self._provider.note(opened.batch)

    def _close(self, opened: _Open) -> None:
        self._open.remove(opened)
        self._provider.drop(opened.batch)

    # -- waiting -----------------------------------------------------------------------------

    def _look_at(self, opened: _Open) -> None:
        """Read a batch if it has ended."""
        provider = self._provider
        if provider.is_forgotten(opened.batch):
            logger.warning("batch %s is too old to be read; it is asked again", opened.batch)
            self._put_back(opened)
        elif opened.batch.batch_id is not None or self._find(opened):
            batch_id = str(opened.batch.batch_id)
            status = provider.insist(
                lambda: provider.run(provider.format.status(batch_id)),
                missing=provider.unknown(opened.batch),
            )
            provider.note(opened.batch, status)
            if status.state != "running":
                self._read(opened, status)

    def _find(self, opened: _Open) -> bool:
        """Return whether a batch that may have been submitted was found; else it is sent again."""
        provider, held = self._provider, set(opened.items)
        known = provider.batches.known_ids()
        try:
            batch_id = provider.insist(
                lambda: provider.run(provider.format.find(opened.batch, held, known))
            )
        except NotYetKnown as error:
            logger.debug("batch %s: %s", opened.batch.key, error)
            return False
        if batch_id is not None:
            self._identify(opened, batch_id)
            return True
        self._num_unsent += 1
        if self._num_unsent >= provider.spec.max_attempts:
            what = f"did not take a batch in {self._num_unsent} attempts"
            raise provider.endpoint.error(what, "Run again when it is well.")
        self._put_back(opened)
        return False

    def _put_back(self, opened: _Open) -> None:
        """Have the requests of a batch that brings nothing wait to be sent."""
        for item in opened.items.values():
            self._land(item)
        self._waiting.extend(opened.items.values())
        self._close(opened)

    def _say_what_goes_on(self) -> None:
        for opened in self._open:
            logger.warning(
                "batch %s of %d requests goes on at '%s' and is paid for; the next run reads what "
                "it brings",
                opened.batch.batch_id or opened.batch.key,
                opened.batch.num_requests,
                self._provider.endpoint,
            )

    # -- reading -----------------------------------------------------------------------------

    def _read(self, opened: _Open, status: BatchStatus) -> None:
        """Keep what a batch has brought, and have the rest asked again."""
        provider, left = self._provider, dict(opened.items)
        unanswered, doubted, fatal = list[Item](), list[tuple[Item, RefusedRequest]](), None
        for url in status.results:
            with provider.results(url, provider.unknown(opened.batch)) as entries:
                for entry in entries:
                    if (item := left.pop(str(entry.get("custom_id")), None)) is None:
                        continue
                    try:
                        self._take(item, entry)
                    except RefusedRequest as error:
                        doubted.append((item, error))
                    except FatalReply as error:
                        fatal = fatal or error
                        unanswered.append(item)
                    except (PassingFault, RateLimited) as error:
                        if status.state == "cancelled":
                            unanswered.append(item)
                        else:
                            self._fail(item, error)
        unanswered += left.values()
        self._believe(opened, doubted)
        if fatal is not None:
            raise self._useless(opened, unanswered, provider.endpoint.fatal(fatal))
        if unanswered and status.state == "cancelled":
            what = f"was told to cancel batch {opened.batch.batch_id!r}"
            advice = f"Run again to have the other {len(unanswered):,} requests asked."
            raise self._useless(opened, unanswered, provider.endpoint.error(what, advice))
        self._close(opened)
        provider.num_ended += 1
        if status.state == "failed":
            self._note_failure(opened, status, unanswered)
        else:
            fault = PassingFault(f"batch {opened.batch.batch_id} ended without it ({status.word})")
            for item in unanswered:
                self._fail(item, fault)
        self._settle()

    def _take(self, item: Item, entry: dict[str, Any]) -> None:
        """Hand over the response in a line of the results, or have it asked again."""
        provider, limit = self._provider, item.request.sampling.max_new_tokens
        response = provider.endpoint.without_key(provider.format.read(entry, item.request))
        provider.oddities.check_model(response.model_reported)
        provider.has_answered = True
        tokens = billed_tokens(response)
        item.attempts.count += 1
        item.attempts.spend(*tokens)
        self._land(item, *tokens)
        is_short = response.state == "truncated" and item.sent_limit < limit
        final = None if is_short else item.attempts.take(response)
        if final is None:
            self._waiting.append(item)
        else:
            self._hand_over(item, final)

    def _fail(self, item: Item, error: PassingFault | RateLimited) -> None:
        """Have a request asked again that brought nothing, or give it up."""
        tokens = error.tokens if isinstance(error, PassingFault) else (0, 0)
        item.attempts.count += 1
        item.attempts.spend(*tokens)
        self._land(item, *tokens)
        item.failures += 1
        if item.failures < self._provider.spec.max_attempts:
            self._waiting.append(item)
        else:
            fault = self._provider.endpoint.redact(str(error))
            self._hand_over(item, item.attempts.failed(fault))

    def _believe(self, opened: _Open, doubted: list[tuple[Item, RefusedRequest]]) -> None:
        """Hand over refusals; while nothing was ever answered, the settings may be at fault."""
        endpoint = self._provider.endpoint
        if doubted and not self._provider.has_answered:
            refused = [item for item, _ in doubted]
            item, error = doubted[-1]
            said = endpoint.redact(str(error))
            if error.is_about_settings(request_json(endpoint.spec, item.request, [])):
                fatal = FatalReply(said, 400, error.error.param)
                raise self._useless(opened, refused, endpoint.fatal(fatal))
            if sum(not error.is_about_prompt for _, error in doubted) >= _REFUSED_AT_FIRST:
                what = f"refused all {len(doubted)} requests of a batch, the last with {said!r}"
                advice = "Correct the teacher section of the recipe."
                raise self._useless(opened, refused, endpoint.error(what, advice))
        for item, error in doubted:
            item.attempts.count += 1
            self._land(item)
            refusal = Response(item.request, "refused", "", error=endpoint.redact(str(error)))
            self._hand_over(item, item.attempts.take(refusal) or refusal)

    def _note_failure(self, opened: _Open, status: BatchStatus, unanswered: list[Item]) -> None:
        """Have what a failed batch held asked again in smaller ones, or raise."""
        provider, batch = self._provider, opened.batch
        if _QUEUE_IS_FULL in status.error and (provider.num_open or batch.num_requests > 1):
            if provider.num_open:
                self._held_at = provider.num_ended
            else:
                provider.most_requests = max(1, batch.num_requests // 2)
            logger.info("batch %s did not fit into the queue: %s", batch.batch_id, status.error)
            for item in unanswered:
                self._land(item)
            self._waiting.extend(unanswered)
        elif len(unanswered) == len(opened.items):
            what = f"could not carry out batch {batch.batch_id!r}: {status.error!r}"
            advice = "Correct the teacher section of the recipe."
            if _QUEUE_IS_FULL in status.error:
                advice = "Run again when its queue has room."
            raise self._useless(opened, unanswered, provider.endpoint.error(what, advice))
        else:
            for item in unanswered:
                self._fail(item, PassingFault(status.error))

    def _useless(self, opened: _Open, items: list[Item], error: TeacherError) -> TeacherError:
        """Return ``error``, once nobody will look for these requests in their batch again."""
        if opened in self._open:
            self._close(opened)
        self._settle()
        self._provider.batches.settle([item.request_hash for item in items])
        return error

    # -- the end of a request ----------------------------------------------------------------

    def _land(self, item: Item, read: int = 0, written: int = 0) -> None:
        """Note that a request is in flight no more, and what it was billed for."""
        if item.is_in_flight:
            item.is_in_flight = False
            self._provider.budget.leave(read, written)

    def _hand_over(self, item: Item, response: Response) -> None:
        self._kept.append((item.request_hash, self._on_response(response)))
        self._num_left -= 1
        if len(self._kept) >= _MOST_KEPT:
            self._settle()

    def _settle(self) -> None:
        """Forget the requests that were handed over, once their responses are safe."""
        for _, future in self._kept:
            future.result()
        self._provider.batches.settle([request_hash for request_hash, _ in self._kept])
        self._kept = []
