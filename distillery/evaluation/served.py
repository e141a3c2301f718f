"""A served model as the clock sees it: asked as so many users at once would ask it."""

import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from distillery.evaluation.protocol import Answered
from distillery.ledger import LedgerRow
from distillery.teacher import Request, Response, Teacher
from distillery.teacher.protocol import NO_TEXT, kept
from schemas.errors import TeacherError


class ServedModel:
    """Asks an endpoint past the ledger, with the requests that made its answers.

    One request at a time is streamed, as only a stream tells when the first token comes. Where the
    endpoint refuses to stream, it is asked without, and that moment is not known.
    """

    def __init__(self, endpoint: Teacher) -> None:
        self._endpoint = endpoint
        self._is_heard = self._refuses_streams = False

    def answer(self, requests: Sequence[Request], concurrency: int) -> list[Answered]:
        """Return the answers in order, ``concurrency`` requests in flight.

        As a user would wait: connection, rate limits and retries included.

        Raises:
            TeacherError: Some request got no answer in all attempts, so there is nothing to time.
        """
        ask = self._ask_alone if concurrency == 1 else self._ask
        with ThreadPoolExecutor(concurrency) as users:
            return [_timed(*found) for found in users.map(ask, requests)]

    def responses(self, requests: Sequence[Request], concurrency: int) -> list[Response]:
        """Return the responses in order, none of them streamed; otherwise as :meth:`answer`."""
        with ThreadPoolExecutor(concurrency) as users:
            return [response for response, _ in users.map(self._ask, requests)]

    def _ask_alone(self, request: Request) -> tuple[Response, float]:
        """Return a response that was streamed if that can be, and its seconds.

        The first one is not: once something was answered, a refusal is about the stream, or about
        the prompt, which is then refused without a stream as well.
        """
        if self._is_heard and not self._refuses_streams:
            response, seconds = self._ask(dataclasses.replace(request, is_streamed=True))
            if response.state != "refused":
                return response, seconds
        response, seconds = self._ask(request)
        if response.state != "refused":
            self._refuses_streams, self._is_heard = self._is_heard, True
        return response, seconds

    def _ask(self, request: Request) -> tuple[Response, float]:
        responses: list[Response] = []

        def note(response: Response) -> "Future[None]":
            responses.append(response)
            return kept()

        start = time.perf_counter()
        self._endpoint.answer([request], note)
        seconds = time.perf_counter() - start
        [response] = responses
        if response.state == "failed":
            raise TeacherError(
                "a request got no answer while the teacher's speed was measured: "
                f"{response.error!r}. Answers for the scores are kept. Run again when the "
                "endpoint is well."
            )
        return response, seconds


def answered(found: Response | LedgerRow) -> Answered:
    """Return what a teacher's response, fresh or from the ledger, says to a comparison."""
    text = None if found.state in NO_TEXT else found.text
    is_cut = found.state == "truncated"
    return Answered(text, is_cut, found.prompt_tokens, found.completion_tokens)


def _timed(response: Response, seconds: float) -> Answered:
    return dataclasses.replace(
        answered(response), first_token_s=response.first_token_s, latency_s=seconds
    )
