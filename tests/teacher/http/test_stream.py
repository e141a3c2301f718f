import dataclasses
import json
from typing import Any

import pytest

from distillery.teacher import Response
from distillery.teacher.http.replies import Reply as Whole
from distillery.teacher.http.stream import Stream, whole
from tests.fixtures_endpoint import answer, requests_for, spec_for
from tests.stub_endpoint import Reply, StubEndpoint


def asked(stub: StubEndpoint, *, is_streamed: bool) -> Response:
    spec = spec_for(stub)
    requests = [dataclasses.replace(r, is_streamed=is_streamed) for r in requests_for(spec, 1)]
    responses: list[Response] = []
    answer(spec, requests, responses.append)
    return responses[0]


def event(**delta: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n"


def streamed(*events: bytes) -> Whole:
    return Whole(200, {"content-type": "text/event-stream; charset=utf-8"}, b"".join(events))


def test_a_streamed_response_is_the_same_and_tells_when_its_first_token_came() -> None:
    with StubEndpoint(default=Reply(text="it is a refund", streams=True)) as stub:
        pieces, one = asked(stub, is_streamed=True), asked(stub, is_streamed=False)
    assert pieces.first_token_s is not None
    assert 0 < pieces.first_token_s < pieces.latency_s
    assert one.first_token_s is None
    for name in ("state", "text", "finish_reason", "prompt_tokens", "completion_tokens"):
        assert getattr(pieces, name) == getattr(one, name), name
    assert pieces.model_reported == "big"


def test_an_endpoint_that_answers_in_one_piece_all_the_same_tells_nothing() -> None:
    with StubEndpoint(default=Reply(text="refund")) as stub:
        found = asked(stub, is_streamed=True)
    assert (found.text, found.first_token_s) == ("refund", None)


@pytest.mark.parametrize("name", ["content", "reasoning_content", "reasoning"])
def test_a_role_is_no_token_and_a_thought_is_one(name: str) -> None:
    stream, token = Stream(), event(**{name: "re"})
    stream.take(event(role="assistant", content=""))
    stream.take(token[:20])
    assert stream.first_token_at is None
    stream.take(token[20:])
    assert stream.first_token_at is not None


def test_an_error_in_the_middle_is_an_error_not_half_a_response() -> None:
    error = b'data: {"error": {"message": "overloaded", "code": 503}}\n\n'
    found = json.loads(whole(streamed(event(content="half"), error)).content)
    assert found == {"error": {"message": "overloaded", "code": 503}}
