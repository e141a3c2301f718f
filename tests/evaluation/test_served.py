import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from distillery.evaluation.protocol import Answered
from distillery.evaluation.served import ServedModel
from distillery.teacher.http.openai import EndpointTeacher
from schemas.errors import TeacherError
from tests.fixtures_endpoint import requests_for, spec_for
from tests.stub_endpoint import Reply, StubEndpoint


@contextlib.contextmanager
def served(stub: StubEndpoint) -> Iterator[ServedModel]:
    with contextlib.closing(EndpointTeacher(spec_for(stub), backoff_s=0.01)) as endpoint:
        yield ServedModel(endpoint)


def ask(stub: StubEndpoint, num_requests: int, concurrency: int) -> list[Answered]:
    with served(stub) as model:
        return model.answer(requests_for(spec_for(stub), num_requests), concurrency)


def test_one_at_a_time_is_streamed_after_the_first() -> None:
    with StubEndpoint(default=Reply(text="a refund", streams=True)) as stub:
        first, second, third = ask(stub, 3, 1)
    assert [request.get("stream") for request in stub.requests] == [None, True, True]
    assert first.first_token_s is None
    for answer in (second, third):
        assert answer.response == "a refund"
        assert answer.first_token_s and answer.latency_s
        assert answer.first_token_s < answer.latency_s


def test_an_endpoint_that_refuses_to_stream_is_asked_without() -> None:
    def respond(body: dict[str, Any]) -> Reply:
        if "stream" not in body:
            return Reply(text="refund")
        return Reply(status=400, error="may not stream", error_facts={"param": "stream"})

    with StubEndpoint(respond=respond) as stub:
        answers = ask(stub, 4, 1)
    assert [answer.response for answer in answers] == ["refund"] * 4
    assert [answer.first_token_s for answer in answers] == [None] * 4
    assert [request.get("stream") for request in stub.requests] == [None, True, None, None, None]


def test_a_declined_prompt_does_not_end_the_streaming() -> None:
    def respond(body: dict[str, Any]) -> Reply:
        if body["messages"][-1]["content"] == "q1":
            return Reply(status=400, error="no", error_facts={"code": "content_filter"})
        return Reply(text="refund", streams=True)

    with StubEndpoint(respond=respond) as stub:
        answers = ask(stub, 3, 1)
    assert [answer.response for answer in answers] == ["refund", None, "refund"]
    assert answers[2].first_token_s is not None


def test_so_many_requests_are_in_flight_and_answers_keep_their_order() -> None:
    def respond(body: dict[str, Any]) -> Reply:
        # Nobody is answered before three have come.
        asked = body["messages"][-1]["content"]
        return Reply(text=f"to {asked}", when=lambda: stub.max_in_flight >= 3)

    with StubEndpoint(respond=respond) as stub:
        answers = ask(stub, 7, 3)
    assert [answer.response for answer in answers] == [f"to q{number}" for number in range(7)]
    assert stub.max_in_flight == 3
    assert not any("stream" in request for request in stub.requests)


def test_an_endpoint_that_fails_cannot_be_timed() -> None:
    with (
        StubEndpoint(default=Reply(status=500)) as stub,
        pytest.raises(TeacherError, match="no answer"),
    ):
        ask(stub, 1, 1)
