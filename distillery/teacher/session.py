"""A session with a teacher: its ledger, its budget and what all of it took, for many callers."""

import collections
import contextlib
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Self

from distillery.ledger import Ledger, LedgerRow, Spending
from distillery.storage.fingerprint import sha256
from distillery.teacher import open_teacher
from distillery.teacher.budget import Budget
from distillery.teacher.protocol import (
    Activity,
    Request,
    Response,
    request_body,
    teacher_identity,
)
from schemas.budget import PriceSpec
from schemas.errors import DistilleryError, StoreError
from schemas.execution import StoreSpec
from schemas.teacher import TeacherSpec

logger = logging.getLogger(__name__)

_POLL_S = 0.5
# How often to look what others spend: before they have finished one more request per slot, but
# reading it takes longer the more was spent, and must not take more than a twentieth of the time.
_SPENDING_S, _SPENDING_SHARE = 0.02, 20.0


class AskedFor:
    """Requests to bring to a response, each counted as often as a row waits for it."""

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        self.num_rows: collections.Counter[str] = collections.Counter()

    def add(self, requests: Sequence[Request]) -> None:
        """Add the requests of one row."""
        for request in requests:
            self.requests.setdefault(request.request_hash, request)
            self.num_rows[request.request_hash] += 1


@dataclasses.dataclass
class Totals:
    """What a session has done so far."""

    asked: int = 0
    """Requests that the teacher was asked, answered or not."""

    from_ledger: int = 0
    """Responses that were there, or that another row's request brought."""

    prompt_tokens: int = 0
    """Tokens read for what was asked, over all attempts."""

    completion_tokens: int = 0
    """Tokens written for what was asked, over all attempts."""

    cost: float | None = None
    """What that cost. None: no price is known."""

    saved_cost: float | None = None
    """What the responses from the ledger would cost at the price of today."""

    currency: str | None = None
    """Currency of both."""

    repaired: int = 0
    """Responses that are the answer to a request to repair the first one."""

    retries: int = 0
    """Attempts after the first."""

    rate_limited: int = 0
    """429s."""

    seconds: float | None = None
    """From the first request to the last response. None: nothing was asked."""

    num_responses: int = 0
    """Responses of the teacher."""

    last_error: str | None = None
    """What went wrong with the last request that failed in all attempts."""

    @classmethod
    def of_all(cls, totals: "Iterable[Totals]") -> "Totals":
        """Return what several sessions have done side by side."""
        found = [*totals]

        def known(name: str) -> list[Any]:
            return [value for each in found if (value := getattr(each, name)) is not None]

        whole = [field.name for field in dataclasses.fields(cls) if field.type is int]
        counted = {name: sum(known(name)) for name in whole}
        return cls(
            **counted,
            cost=sum(known("cost")) if known("cost") else None,
            saved_cost=sum(known("saved_cost")) if known("saved_cost") else None,
            currency=next(iter(known("currency")), None),
            seconds=max(known("seconds"), default=None),
            last_error=next(iter(known("last_error")), None),
        )

    def facts(self) -> dict[str, Any]:
        """Return the figures for a manifest; None where unknown."""
        named = dataclasses.asdict(self)
        for name in ("asked", "from_ledger", "num_responses", "last_error"):
            del named[name]
        rate = self.num_responses / self.seconds if self.seconds else None
        return named | {"rows_per_s": rate}


class TeacherSession:
    """A teacher with its ledger and budget. Safe to use from several threads.

    Responses are committed as they arrive and paid for once, however many callers, sessions and
    processes want them. The budget counts what was ever spent for the session's purpose.
    """

    def __init__(self, teacher: TeacherSpec, store: StoreSpec, *, purpose: str) -> None:
        """Describe the session; nothing is asked before :meth:`answer`.

        Args:
            teacher: Who answers.
            store: Where the ledger is.
            purpose: What the money is spent for: a stage's fingerprint.

        Raises:
            StoreError: The ledger cannot be opened.
        """
        self.teacher, self.store, self._purpose = teacher, store, purpose
        self._price = teacher.charges
        self._identity = teacher_identity(teacher)
        self.totals = Totals()
        if self._price is not None:
            self.totals = Totals(cost=0.0, saved_cost=0.0, currency=self._price.currency)
        self.failed_with: DistilleryError | None = None
        self.suspects: set[str] = set()
        """Hashes of requests that failed in an earlier run, which answered others."""
        self.cut: set[str] = set()
        """Hashes of requests whose response was cut at a lower limit."""
        self.given_up: set[str] = set()
        """Hashes of requests that have failed in this session, for whichever caller."""
        self._asks_suspects_only = True
        self._first_asked: float | None = None
        self._spending_due = float("-inf")
        self._lock = threading.Lock()
        self.ledger = Ledger.open(store)
        try:
            self._spent_before = spent = self.ledger.spent(purpose)
            self._budget = Budget(
                teacher.budget,
                self._price,
                num_tokens=_num_tokens(spent),
                cost=spent.cost,
                mean_tokens=(
                    spent.prompt_tokens / spent.requests,
                    spent.completion_tokens / spent.requests,
                )
                if _num_tokens(spent)
                else None,
            )
            self._backend = open_teacher(teacher, budget=self._budget, batches=self.ledger.batches)
        except BaseException:
            self.ledger.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to teacher and ledger."""
        self._backend.close()
        self.ledger.close()

    def answer(
        self,
        asked_for: AskedFor,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> dict[str, int]:
        """Bring requests to a response in the ledger and return how many rows have which state.

        Rows without one in the end (`failed`) are asked again by the next run.

        Args:
            asked_for: The requests.
            on_progress: Called with the number of rows that have their response.

        Raises:
            RecipeError: The teacher cannot be used as the recipe describes it.
            TeacherError: The teacher cannot answer anything.
            BudgetError: A cap is reached.
            StoreError: The ledger cannot be read or written.
        """
        asking = _Asking(self, asked_for, on_progress)
        try:
            asking.run()
        except DistilleryError as error:
            self.failed_with = error
            raise
        return dict(asking.by_state)

    def activity(self) -> Activity:
        """Return what the teacher is doing at this moment."""
        return self._backend.activity

    # -- for _Asking ---------------------------------------------------------------------------

    def ask(self, requests: list[Request], keep: Callable[[Response], "Future[None]"]) -> None:
        """Have the teacher answer ``requests``."""
        with self._lock:
            self._first_asked = self._first_asked or time.monotonic()
            self.totals.asked += len(requests)
            requests = [
                dataclasses.replace(
                    r,
                    is_suspect=r.request_hash in self.suspects,
                    was_cut=r.request_hash in self.cut,
                )
                for r in requests
            ]
            self._asks_suspects_only &= all(request.is_suspect for request in requests)
        try:
            self._backend.answer(requests, keep)
        finally:
            activity = self._backend.activity
            self.totals.retries = activity.retries
            self.totals.rate_limited = activity.rate_limited

    def keep(self, response: Response) -> "Future[None]":
        """Commit a response; the future is done when it is safe."""
        self._note_response(response)
        kept = self.ledger.commit_soon(self._row(response), purpose=self._purpose)
        if self._budget.is_capped:
            kept.add_done_callback(self._read_spending)
        return kept

    def found(self, response: LedgerRow | Response, num_rows: int) -> None:
        """Note rows that have a response for which nothing had to be paid."""
        with self._lock:
            self.totals.from_ledger += num_rows
            if self._price is not None:
                tokens = (response.prompt_tokens or 0, response.completion_tokens or 0)
                saved = num_rows * self._price.cost(*tokens)
                self.totals.saved_cost = (self.totals.saved_cost or 0.0) + saved

    def read_spending(self) -> None:
        """Take over what other processes have spent for the same purpose, if there is a cap."""
        if not self._budget.is_capped:
            return
        start = time.thread_time()
        spent, before, totals = self.ledger.spent(self._purpose), self._spent_before, self.totals
        pause_s = max(_SPENDING_S, _SPENDING_SHARE * (time.thread_time() - start))
        self._spending_due = time.monotonic() + pause_s
        with self._lock:
            # What is not committed yet is among it, so the rest is no more than what others spent.
            own_tokens, own_cost = totals.prompt_tokens + totals.completion_tokens, totals.cost
        self._budget.note_others(
            num_tokens=_num_tokens(spent) - _num_tokens(before) - own_tokens,
            cost=spent.cost - before.cost - (own_cost or 0.0),
        )

    def _read_spending(self, _: "Future[None]") -> None:
        """Do so before the next request is let in, when it is due."""
        if time.monotonic() >= self._spending_due:
            with contextlib.suppress(StoreError):  # who commits next meets it, too
                self.read_spending()

    def _note_response(self, response: Response) -> None:
        totals = self.totals
        tokens = (response.billed_prompt_tokens, response.billed_completion_tokens)
        with self._lock:
            totals.num_responses += response.state != "failed"
            totals.prompt_tokens += tokens[0]
            totals.completion_tokens += tokens[1]
            if self._price is not None:
                totals.cost = (totals.cost or 0.0) + self._price.cost(*tokens)
            totals.repaired += response.repaired
            if response.state == "failed":
                totals.last_error = response.error
                self.given_up.add(response.request.request_hash)
            totals.seconds = time.monotonic() - (self._first_asked or time.monotonic())

    def _row(self, response: Response) -> LedgerRow:
        failed_runs = int(self._blames_request(response))
        return ledger_row(response, self._identity, self._price, failed_runs=failed_runs)

    def _blames_request(self, response: Response) -> bool:
        """Return whether a response failed for its request's sake, and not for the endpoint's.

        Where nothing is answered, nothing is learnt; but when only requests are left that have
        failed while others were answered, there is no other to tell by.
        """
        failed = response.state == "failed" and response.attempts > 0
        return failed and (self.totals.num_responses > 0 or self._asks_suspects_only)


class _Asking:
    """The requests of one caller on their way to a response."""

    def __init__(
        self,
        session: TeacherSession,
        asked_for: AskedFor,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        self._session, self._asked_for, self._on_progress = session, asked_for, on_progress
        self._done: set[str] = set()
        self.by_state: collections.Counter[str] = collections.Counter()
        """Rows that have which state."""
        self._max_new_tokens = max(
            (r.sampling.max_new_tokens for r in asked_for.requests.values()), default=0
        )

    def run(self) -> None:
        """Bring every request to a final state, or to the end of its attempts."""
        requests, session = self._asked_for.requests, self._session
        self._look_up(list(requests))
        if len(self._done) == len(requests):
            return
        has_waited = False
        with session.ledger.working() as owner:
            while left := [h for h in requests if h not in self._done]:
                claimed = session.ledger.claim(left, owner, max_new_tokens=self._max_new_tokens)
                session.read_spending()
                # What another chunk has just failed to get an answer to is claimed, not asked.
                fresh = claimed - session.given_up
                if asked := [requests[h] for h in left if h in fresh]:
                    session.ask(asked, self._keep)
                if not claimed:
                    if not has_waited:
                        logger.info("waiting for %d requests that are being asked", len(left))
                    has_waited = True
                    time.sleep(_POLL_S)
                self._look_up([h for h in left if h not in self._done])

    def _look_up(self, hashes: list[str]) -> None:
        """Take over the states of responses that are in the ledger by now."""
        found = self._session.ledger.get(hashes)
        for request_hash in hashes:
            row = found.get(request_hash)
            if row is not None and row.is_final(self._max_new_tokens):
                self._session.found(row, self._asked_for.num_rows[request_hash])
                self._note(request_hash, row.state)
            elif request_hash in self._session.given_up:
                self._note(request_hash, "failed")
            elif row is not None:
                if row.failed_runs:
                    self._session.suspects.add(request_hash)
                if row.state == "truncated":
                    self._session.cut.add(request_hash)

    def _keep(self, response: Response) -> "Future[None]":
        kept = self._session.keep(response)
        request_hash = response.request.request_hash
        if spared := self._asked_for.num_rows[request_hash] - 1:
            self._session.found(response, spared)
        self._note(request_hash, response.state)
        return kept

    def _note(self, request_hash: str, state: str) -> None:
        self._done.add(request_hash)
        self.by_state[state] += self._asked_for.num_rows[request_hash]
        if self._on_progress is not None:
            self._on_progress(self.by_state.total())


def ledger_row(
    response: Response,
    identity: dict[str, Any],
    price: PriceSpec | None,
    *,
    failed_runs: int = 0,
) -> LedgerRow:
    """Return what the ledger keeps of a response of the teacher with ``identity``."""
    request = response.request
    tokens = (response.billed_prompt_tokens, response.billed_completion_tokens)
    return LedgerRow(
        request_hash=request.request_hash,
        prompt_hash=sha256(request.messages),
        teacher_id=sha256(identity),
        teacher=json.dumps(identity, sort_keys=True),
        request=json.dumps(request_body(request), sort_keys=True),
        state=response.state,
        text=response.text,
        reasoning=response.reasoning,
        finish_reason=response.finish_reason,
        max_new_tokens=request.sampling.max_new_tokens,
        prompt_tokens=response.prompt_tokens,
        completion_tokens=response.completion_tokens,
        billed_prompt_tokens=tokens[0],
        billed_completion_tokens=tokens[1],
        cost=price.cost(*tokens) if price else None,
        currency=price.currency if price else None,
        model_reported=response.model_reported,
        mean_log_probability=response.mean_log_probability,
        latency_s=response.latency_s,
        attempts=response.attempts,
        failed_runs=failed_runs,
        repaired=response.repaired,
        error=response.error,
    )


def _num_tokens(spent: Spending) -> int:
    return spent.prompt_tokens + spent.completion_tokens
