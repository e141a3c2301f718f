"""A provider of batches as a session sees it: one connection and one count for all callers."""

import concurrent.futures
import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import yarl

from distillery.ledger import Batches, SentBatch
from distillery.teacher.budget import Budget
from distillery.teacher.http.batch.base import BatchFormat, BatchStatus
from distillery.teacher.http.batch.formats import batch_endpoint, batch_format
from distillery.teacher.http.connection import Connection, backoff_s
from distillery.teacher.http.oddities import Oddities
from distillery.teacher.http.replies import (
    FatalReply,
    PassingFault,
    RateLimited,
    RefusedRequest,
    Unreachable,
)
from distillery.teacher.protocol import BatchActivity
from schemas.errors import TeacherError
from schemas.teacher import OpenAITeacher

logger = logging.getLogger(__name__)
T = TypeVar("T")

_NO_SUCH_ROUTE = (404, 405)
_KEPT_S = 28 * 86_400.0  # providers keep results for 29 or 30 days
_LONGEST_PAUSE_S, _PAUSE_SHARE = 60.0, 0.05
_READ_LATER = "Run again: what they bring is read, and nothing is asked twice."


class Provider:
    """Takes batches and says how far they are. Safe to use from several threads."""

    def __init__(
        self,
        spec: OpenAITeacher,
        budget: Budget,
        batches: Batches,
        *,
        poll_s: float,
        first_backoff_s: float,
    ) -> None:
        """Read the key and open the connection; nothing is sent yet.

        Raises:
            RecipeError: The address is not a URL, or the key is not where the recipe says.
        """
        self.spec, self.budget, self.batches = spec, budget, batches
        self.endpoint = batch_endpoint(spec)
        self.connection = Connection(self.endpoint, name="teacher-batches")
        self.format: BatchFormat = batch_format(self.endpoint, self.connection)
        self.oddities = Oddities(self.endpoint)
        self.most_requests = self.format.most_requests
        """Most requests in a batch; halved when the provider's queue is full."""
        self.has_answered = False
        self.num_ended = 0
        """Batches that were read to their end."""
        self._poll_s, self._first_backoff_s = poll_s, first_backoff_s
        self._is_heard = False
        self._open: dict[str, tuple[SentBatch, BatchStatus | None]] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()

    @property
    def is_closed(self) -> bool:
        """Return whether the session was closed."""
        return self._closed.is_set()

    def close(self) -> None:
        """Close the connection; whoever waits for a batch waits no longer."""
        self._closed.set()
        self.connection.close()

    # -- which batches are open --------------------------------------------------------------

    def note(self, batch: SentBatch, status: BatchStatus | None = None) -> None:
        """Note a batch that is waited for, and how far it is."""
        with self._lock:
            self._open[batch.key] = (batch, status)

    def drop(self, batch: SentBatch) -> None:
        """Note that nobody waits for a batch any more."""
        with self._lock:
            self._open.pop(batch.key, None)

    @property
    def num_open(self) -> int:
        """Return how many batches are waited for."""
        return len(self._open)

    @property
    def activity(self) -> BatchActivity:
        """Return what the batches have come to."""
        with self._lock:
            known = list(self._open.values())
        statuses = [status for _, status in known if status is not None]
        return BatchActivity(
            num_batches=len(known),
            num_requests=sum(batch.num_requests for batch, _ in known),
            completed=sum(status.completed for status in statuses),
            failed=sum(status.failed for status in statuses),
            status=statuses[0].word if statuses else "submitted",
        )

    # -- talking to it -----------------------------------------------------------------------

    def pause(self, waited_s: float) -> None:
        """Wait before a batch is looked at again: the longer, the longer it has taken so far.

        Raises:
            TeacherError: The session was closed meanwhile.
        """
        share = _PAUSE_SHARE * waited_s
        self._sleep(min(max(self._poll_s, share), max(self._poll_s, _LONGEST_PAUSE_S)))

    def insist(
        self,
        ask: Callable[[], T],
        *,
        missing: TeacherError | None = None,
    ) -> T:
        """Return what ``ask`` returns; faults that pass are waited out, up to `max_outage_s`.

        Args:
            ask: Asks once.
            missing: What it means when what is asked for is not there.

        Raises:
            TeacherError: The provider has gone away, refuses the key, or has no batches.
        """
        failures, failed_at = 0, time.monotonic()
        while True:
            try:
                found = ask()
            except RateLimited as error:
                wait_s = error.retry_after_s or backoff_s(self._first_backoff_s, failures + 1)
                if wait_s > self.spec.max_outage_s:
                    raise self.endpoint.asks_to_wait(wait_s, error) from None
            except PassingFault as error:
                failures += 1
                wait_s = backoff_s(self._first_backoff_s, failures)
                self._check_outage(error, failures, time.monotonic() - failed_at)
            except FatalReply as error:
                raise self.fatal(error, missing) from None
            except RefusedRequest as error:
                what = f"refused a batch with {self.endpoint.redact(str(error))!r}"
                advice = "Correct the teacher section of the recipe, or set teacher.batch to false."
                raise self.endpoint.error(what, advice) from None
            else:
                self._is_heard = True
                return found
            self._sleep(wait_s)
            failed_at = time.monotonic() if not failures else failed_at

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what ``work`` returns, done in the connection's loop.

        Raises:
            TeacherError: The session was closed meanwhile.
        """
        if self._closed.is_set():
            work.close()
            raise self._was_closed()
        try:
            return self.connection.run(work).result()
        except concurrent.futures.CancelledError:
            raise self._was_closed() from None

    @contextlib.contextmanager
    def results(self, url: yarl.URL, missing: TeacherError) -> Iterator[Iterator[dict[str, Any]]]:
        """Yield the lines of a file of results, of which memory holds one at a time."""
        with tempfile.TemporaryFile() as file:

            def fetch() -> None:
                file.seek(0)
                file.truncate()
                self.run(self.format.download(url, file))

            self.insist(fetch, missing=missing)
            file.seek(0)
            yield self.format.objects(file)

    def is_forgotten(self, batch: SentBatch) -> bool:
        """Return whether the provider keeps the results of ``batch`` no more."""
        return time.time() - batch.sent_at > _KEPT_S

    # -- errors ------------------------------------------------------------------------------

    def unknown(self, batch: SentBatch) -> TeacherError:
        """Return the error for a batch that is noted and that the provider does not know."""
        return self.endpoint.error(
            f"does not know the batch {batch.batch_id!r} of {batch.num_requests:,} requests that "
            f"was submitted to '{batch.endpoint}' by an earlier run",
            "Correct teacher.base_url or the key; if the batch was deleted there, run `distillery "
            f"ledger batches --forget {batch.batch_id}` to have its requests asked again.",
        )

    def fatal(self, error: FatalReply, missing: TeacherError | None = None) -> TeacherError:
        """Return the error for a reply that no further attempt can change."""
        if error.status not in _NO_SUCH_ROUTE:
            return self.endpoint.fatal(error)
        if missing is not None:
            return missing
        said = self.endpoint.redact(str(error))
        advice = "Set teacher.batch to false, or correct teacher.base_url."
        return self.endpoint.error(f"takes no batches: {said!r}", advice)

    def _check_outage(self, error: PassingFault, failures: int, for_s: float) -> None:
        fault = self.endpoint.redact(str(error))
        if not self._is_heard and failures >= self.spec.max_attempts:
            what = f"gave no answer in {failures} attempts; the last failed with {fault!r}"
            raise self.endpoint.error(what, "Start the endpoint or correct teacher.base_url.")
        if self._is_heard and for_s > self.spec.max_outage_s:
            what = (
                f"has answered nothing for more than teacher.max_outage_s="
                f"{self.spec.max_outage_s:g}; the last attempt failed with {fault!r}"
            )
            raise self.endpoint.error(what, _READ_LATER)
        if not isinstance(error, Unreachable):
            logger.debug("batches at '%s': %s", self.endpoint, fault)

    def _sleep(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise self._was_closed()

    def _was_closed(self) -> TeacherError:
        return self.endpoint.error("was closed while batches were waited for", _READ_LATER)
