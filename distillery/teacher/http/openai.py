"""A teacher behind an OpenAI-compatible chat endpoint."""

import threading
from collections.abc import Sequence

from distillery.teacher.budget import Budget
from distillery.teacher.http.channel import Channel
from distillery.teacher.http.endpoint import Endpoint
from distillery.teacher.protocol import Activity, OnResponse, Request
from schemas.teacher import OpenAITeacher


class EndpointTeacher:
    """Asks an OpenAI-compatible endpoint; all threads that ask it share its limits."""

    def __init__(
        self, spec: OpenAITeacher, *, budget: Budget | None = None, backoff_s: float = 0.5
    ) -> None:
        """Describe the teacher; nothing is sent yet.

        Args:
            spec: Which endpoint.
            budget: What its responses may cost.
            backoff_s: Bounds the first pause before a request is sent again; each next is doubled.
        """
        self._spec, self._backoff_s = spec, backoff_s
        self._budget = budget or Budget(spec.budget, spec.price, num_tokens=0, cost=0.0)
        self._lock = threading.Lock()
        self._channel: Channel | None = None

    @property
    def activity(self) -> Activity:
        """Return what is going on at the endpoint, for all callers."""
        channel = self._channel
        return channel.activity if channel else Activity()

    def answer(self, requests: Sequence[Request], on_response: OnResponse) -> None:
        """Send all requests and pass on each response, failed ones too.

        The first request to an endpoint goes alone until it is answered, 0.2 s at most, so that
        a wrong key or address costs one.

        Raises:
            RecipeError: Address or key cannot be used; nothing has been sent.
            TeacherError: The endpoint cannot be reached, refuses the key, does not know the
                model, refuses every request, or has gone away.
            BudgetError: A cap keeps the rest from being asked.
        """
        self._open().run(requests, on_response)

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _open(self) -> Channel:
        """Return the channel; opened when it is first needed, so that ledger hits need no key."""
        with self._lock:
            if self._channel is None:
                endpoint = Endpoint(self._spec)
                self._channel = Channel(endpoint, self._budget, backoff_s=self._backoff_s)
            return self._channel
