"""A teacher that is asked by the batch."""

import threading
from collections.abc import Sequence

from distillery.ledger import Batches
from distillery.teacher.budget import Budget
from distillery.teacher.http.batch.provider import Provider
from distillery.teacher.http.batch.work import Work
from distillery.teacher.protocol import Activity, OnResponse, Request
from schemas.errors import RecipeError
from schemas.teacher import OpenAITeacher


class BatchTeacher:
    """Puts requests into batches at a provider and reads what comes of them within a day.

    What is in which batch is in the ledger, so whoever comes after a killed run finds it again.
    """

    def __init__(
        self,
        spec: OpenAITeacher,
        batches: Batches,
        *,
        budget: Budget | None = None,
        poll_s: float = 5.0,
        backoff_s: float = 0.5,
    ) -> None:
        """Describe the teacher; nothing is sent yet.

        Args:
            spec: Which provider.
            batches: Where it is noted what is in which batch.
            budget: What its responses may cost.
            poll_s: First pause between two looks at a batch; they grow to a minute.
            backoff_s: Bounds the first pause before something is asked again; each next is doubled.
        """
        self._spec, self._batches, self._pauses_s = spec, batches, (poll_s, backoff_s)
        self._budget = budget or Budget(spec.budget, spec.charges, num_tokens=0, cost=0.0)
        self._lock = threading.Lock()
        self._provider: Provider | None = None

    @property
    def activity(self) -> Activity:
        """Return how far the batches of all callers are."""
        provider = self._provider
        if provider is None:
            return Activity()
        batches = provider.activity
        in_flight = self._budget.num_in_flight
        return Activity(in_flight=in_flight, limit=in_flight, batches=batches)

    def answer(self, requests: Sequence[Request], on_response: OnResponse) -> None:
        """Submit all requests, wait, and pass on each response, failed ones too.

        What earlier runs have submitted and not read is not submitted again. Single requests that
        brought nothing, or something broken, go into the next batch.

        Raises:
            RecipeError: Address or key cannot be used, or a response is to be streamed.
            TeacherError: The provider takes no batches, refuses the key, or has gone away; or a
                batch has failed, or was cancelled. What is submitted goes on, and the next run
                reads it.
            BudgetError: A cap keeps the rest from being asked.
            StoreError: The ledger cannot be read or written.
        """
        if any(request.is_streamed for request in requests):
            raise RecipeError(
                "a response that comes in a batch cannot be streamed. Set teacher.batch to false."
            )
        if requests:
            Work(self._open(), requests, on_response).run()

    def close(self) -> None:
        """Close the connection; batches go on."""
        with self._lock:
            provider, self._provider = self._provider, None
        if provider is not None:
            provider.close()

    def _open(self) -> Provider:
        with self._lock:
            if self._provider is None:
                poll_s, backoff_s = self._pauses_s
                self._provider = Provider(
                    self._spec,
                    self._budget,
                    self._batches,
                    poll_s=poll_s,
                    first_backoff_s=backoff_s,
                )
            return self._provider
