"""Requests to a scripted endpoint, asked through a channel that is closed at the end."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from distillery.teacher import Request, Response, Sampling, make_request, teacher_identity
from distillery.teacher.http.openai import EndpointTeacher
from distillery.teacher.protocol import kept
from schemas.teacher import OpenAITeacher
from tests.stub_endpoint import StubEndpoint


def spec_for(stub: StubEndpoint, **changes: Any) -> OpenAITeacher:
    settings: dict[str, Any] = {"model": "big", "base_url": stub.base_url, "concurrency": 4}
    return OpenAITeacher(**{**settings, **changes})


def requests_for(spec: OpenAITeacher, count: int) -> list[Request]:
    """Return requests for q0, q1, ... of the prompts p0, p1, ..."""
    identity, sampling = teacher_identity(spec), Sampling.of(spec)
    return [
        make_request(identity, [{"role": "user", "content": f"q{n}"}], sampling, prompt_id=f"p{n}")
        for n in range(count)
    ]


def answer(
    spec: OpenAITeacher,
    requests: list[Request],
    on_response: Callable[[Response], object],
    *,
    backoff_s: float = 0.01,
) -> int:
    """Have the requests answered, and return how many 429s that took."""

    def keep(response: Response) -> "Future[None]":
        on_response(response)
        return kept()

    teacher = EndpointTeacher(spec, backoff_s=backoff_s)
    try:
        teacher.answer(requests, keep)
        return teacher.activity.rate_limited
    finally:
        teacher.close()


def ask(spec: OpenAITeacher, count: int = 1) -> list[Response]:
    """Return the responses to q0, q1, ... in the order in which they come."""
    responses: list[Response] = []
    answer(spec, requests_for(spec, count), responses.append)
    return responses
