"""The endpoint teacher: retries what passes, stops at once at what does not, and keeps its key."""

import asyncio
import datetime
import email.utils
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from distillery.teacher import (
    Request,
    Response,
    Sampling,
    Unfinished,
    make_request,
    open_teacher,
    teacher_identity,
)
from distillery.teacher.openai import EndpointTeacher
from schemas.errors import RecipeError, StoreError, TeacherError
from schemas.teacher import OpenAITeacher
from tests.stub_endpoint import Reply, StubEndpoint

KEY = "sk-planted-7f3a9c"


def spec_for(stub: StubEndpoint, **changes: Any) -> OpenAITeacher:
    settings: dict[str, Any] = {"model": "big", "base_url": stub.base_url, "concurrency": 4}
    return OpenAITeacher(**{**settings, **changes})


def requests_for(spec: OpenAITeacher, count: int) -> list[Request]:
    identity, sampling = teacher_identity(spec), Sampling.of(spec)
    return [
        make_request(identity, [{"role": "user", "content": f"q{n}"}], sampling, prompt_id=f"p{n}")
        for n in range(count)
    ]


def ask(spec: OpenAITeacher, count: int = 1) -> tuple[list[Response], list[Unfinished]]:
    responses: list[Response] = []
    teacher = EndpointTeacher(spec, backoff_s=0.01)
    unfinished = teacher.answer(requests_for(spec, count), responses.append)
    return responses, unfinished


def test_request_carries_messages_and_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIG_KEY", KEY)
    with StubEndpoint() as stub:
        spec = spec_for(
            stub,
            max_new_tokens=9,
            sampling_temperature=0.5,
            top_p=0.9,
            seed=3,
            api_key_env="BIG_KEY",
        )
        responses, _ = ask(spec)
    assert stub.requests == [
        {
            "model": "big",
            "messages": [{"role": "user", "content": "q0"}],
            "max_tokens": 9,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 3,
        }
    ]
    assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"
    (response,) = responses
    assert (response.text, response.state, response.model_reported) == ("fine", "ok", "big")
    assert (response.prompt_tokens, response.completion_tokens) == (7, 2)


def test_requests_in_flight_reach_the_limit_and_never_pass_it() -> None:
    with StubEndpoint(default=Reply(delay_s=0.03)) as stub:
        responses, unfinished = ask(spec_for(stub, concurrency=4), 24)
    assert (len(responses), unfinished) == (24, [])
    assert len({response.request.request_hash for response in responses}) == 24
    assert stub.max_in_flight == 4


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        (Reply(text=None), "empty"),
        (Reply(text=" \n"), "empty"),
        (Reply(text="half a", finish_reason="length"), "truncated"),
        (Reply(text="half a", finish_reason="content_filter"), "failed"),
    ],
)
def test_state_says_what_the_response_is(reply: Reply, state: str) -> None:
    with StubEndpoint([reply]) as stub:
        responses, _ = ask(spec_for(stub))
    assert [response.state for response in responses] == [state]


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "valid key into the variable 'BIG_KEY'"),
        (403, "Let the key in the variable 'BIG_KEY'"),
        (404, r"Correct teacher\.model \('big'\)"),
        (302, r"Correct teacher\.base_url"),
    ],
)
def test_refusal_of_the_whole_run_costs_one_request(
    status: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIG_KEY", KEY)
    with StubEndpoint(default=Reply(status=status, error=f"no entry for {KEY}")) as stub:
        with pytest.raises(TeacherError, match=f"status {status}: no entry.*{advice}"):
            ask(spec_for(stub, api_key_env="BIG_KEY", concurrency=16), 50)
        assert stub.num_requests == 1


def test_key_revoked_midway_stops_what_is_in_flight_and_keeps_what_was_handed_over() -> None:
    script = [Reply()] * 5 + [Reply(status=401, error="revoked")]
    responses: list[Response] = []
    with StubEndpoint(script, default=Reply(delay_s=5)) as stub:
        spec = spec_for(stub)
        start = time.monotonic()
        with pytest.raises(TeacherError, match="revoked"):
            EndpointTeacher(spec).answer(requests_for(spec, 50), responses.append)
        assert time.monotonic() - start < 3
        assert stub.num_requests <= 6 + spec.concurrency
    assert len(responses) == 5


@pytest.mark.parametrize("status", [400, 413, 422])
def test_refused_row_fails_with_the_servers_reason_and_is_not_asked_again(status: int) -> None:
    with StubEndpoint([Reply(), Reply(status=status, error="prompt too long")]) as stub:
        responses, unfinished = ask(spec_for(stub, concurrency=1), 3)
        assert stub.num_requests == 3
    assert [response.state for response in responses] == ["ok", "failed", "ok"]
    assert responses[1].error == f"status {status}: prompt too long"
    assert unfinished == []


def test_endpoint_that_refuses_every_request_ends_the_run_and_keeps_none_as_failed() -> None:
    with StubEndpoint(default=Reply(status=400, error="unknown parameter max_tokens")) as stub:
        with pytest.raises(TeacherError, match=r"refused the first 8 requests.*max_tokens"):
            ask(spec_for(stub), 100)
        assert stub.num_requests < 20


def test_few_refused_rows_are_handed_over_even_when_nothing_was_answered() -> None:
    with StubEndpoint(default=Reply(status=400)) as stub:
        responses, _ = ask(spec_for(stub), 3)
    assert [response.state for response in responses] == ["failed"] * 3


@pytest.mark.parametrize(
    "fault",
    [
        *[Reply(status=status) for status in (408, 409, 429, 500, 503)],
        Reply(body="<html>busy</html>"),
        Reply(body='{"choices": []}'),
        Reply(reset=True),
    ],
    ids=lambda fault: str(fault.body or fault.status if not fault.reset else "reset"),
)
def test_passing_fault_is_tried_again(fault: Reply) -> None:
    with StubEndpoint([fault, fault]) as stub:
        responses, unfinished = ask(spec_for(stub, max_attempts=3))
        assert stub.num_requests == 3
    assert [(response.state, response.attempts) for response in responses] == [("ok", 3)]
    assert unfinished == []


def test_row_that_times_out_is_tried_again() -> None:
    with StubEndpoint([Reply(delay_s=2)]) as stub:
        responses, _ = ask(spec_for(stub, timeout_s=0.2))
    assert [response.attempts for response in responses] == [2]


def test_row_out_of_attempts_is_left_unfinished_and_the_others_go_on() -> None:
    def respond(body: dict[str, Any]) -> Reply:
        is_second = body["messages"][0]["content"] == "q1"
        return Reply(status=503, error="overloaded") if is_second else Reply()

    with StubEndpoint(respond=respond) as stub:
        responses, unfinished = ask(spec_for(stub, max_attempts=3), 6)
        assert stub.num_requests == 5 + 3
    assert len(responses) == 5
    (left,) = unfinished
    assert (left.request.prompt_id, left.error) == ("p1", "status 503: overloaded")


def _in_two_seconds() -> str:
    # HTTP dates hold whole seconds, so two ahead are at least one.
    return email.utils.format_datetime(
        datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2), usegmt=True
    )


@pytest.mark.parametrize("header", [lambda: "1", _in_two_seconds], ids=["seconds", "date"])
def test_retry_after_is_waited_for_by_every_worker(header: Callable[[], str]) -> None:
    with StubEndpoint([Reply(status=429, headers={"Retry-After": header()})]) as stub:
        start = time.monotonic()
        responses, _ = ask(spec_for(stub), 8)
        assert 0.9 < time.monotonic() - start < 8
        assert stub.num_requests == 9
    assert len(responses) == 8


def test_unreachable_endpoint_ends_the_run_after_one_rows_attempts() -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        spec = OpenAITeacher(
            model="big", base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1", max_attempts=4
        )
        start = time.monotonic()
        with pytest.raises(TeacherError, match=r"no answer in 4 attempts.*Start the endpoint"):
            ask(spec, 1000)
    assert time.monotonic() - start < 5


def test_endpoint_that_hangs_ends_the_run_after_three_rows() -> None:
    with StubEndpoint(default=Reply(delay_s=30)) as stub:
        with pytest.raises(TeacherError, match="no response within"):
            ask(spec_for(stub, timeout_s=0.1, max_attempts=2), 1000)
        assert stub.num_requests == 6


def test_endpoint_that_goes_away_midway_ends_the_run() -> None:
    stub = StubEndpoint(default=Reply(delay_s=0.01))
    with stub:
        spec = spec_for(stub, max_attempts=3)
        responses: list[Response] = []
        leave = threading.Event()

        def on_response(response: Response) -> None:
            responses.append(response)
            leave.set()

        errors: list[BaseException] = []

        def run() -> None:
            try:
                teacher = EndpointTeacher(spec, backoff_s=0.05)
                teacher.answer(requests_for(spec, 3000), on_response)
            except TeacherError as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert leave.wait(10)
    thread.join(20)
    assert "gave no answer" in str(errors[0])
    assert responses


def test_unset_key_variable_is_named_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BIG_KEY", raising=False)
    with StubEndpoint() as stub:
        with pytest.raises(RecipeError, match="'BIG_KEY'"):
            ask(spec_for(stub, api_key_env="BIG_KEY"))
        assert stub.num_requests == 0


@pytest.mark.parametrize(
    "fault",
    [
        Reply(status=401, error=f"bad key {KEY}"),
        Reply(status=400, error=f"bad key {KEY}"),
        Reply(status=500, error=f"bad key {KEY}"),
        Reply(body=f"<p>{KEY}</p>"),
    ],
    ids=["401", "400", "500", "body"],
)
def test_key_is_in_no_error_log_or_response(
    fault: Reply, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BIG_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    said = ""
    with StubEndpoint(default=fault) as stub:
        spec = spec_for(stub, api_key_env="BIG_KEY", max_attempts=2)
        teacher = open_teacher(spec)
        said += f"{spec!r} {teacher!r} {vars(teacher)!r} {teacher.identity!r}"
        try:
            said += repr(ask(spec))
        except TeacherError:
            said += traceback.format_exc()
    assert "bad key" in said or "<p>" in said
    assert KEY not in said
    assert KEY not in caplog.text


@pytest.mark.parametrize("url", ["http://", "http://:80/v1"])
def test_address_without_a_host_is_refused(url: str) -> None:
    with pytest.raises(RecipeError, match="base_url is not a URL"):
        ask(OpenAITeacher(model="big", base_url=url))


def test_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(RecipeError, match="user or a password") as caught:
        ask(OpenAITeacher(model="big", base_url="http://me:hunter2@127.0.0.1/v1"))
    assert "hunter2" not in str(caught.value)


def test_error_of_the_receiver_ends_the_run() -> None:
    def full(_: Response) -> None:
        raise StoreError("disk full")

    with StubEndpoint() as stub:
        spec = spec_for(stub)
        with pytest.raises(StoreError, match="disk full"):
            EndpointTeacher(spec).answer(requests_for(spec, 50), full)
        assert stub.num_requests <= 1 + spec.concurrency


def test_works_inside_a_running_event_loop() -> None:
    async def notebook(stub: StubEndpoint) -> int:
        return len(ask(spec_for(stub), 3)[0])

    with StubEndpoint() as stub:
        assert asyncio.run(notebook(stub)) == 3


def test_identity_names_who_serves_what_and_not_where() -> None:
    here = OpenAITeacher(model="big", base_url="http://here/v1", concurrency=1, timeout_s=1)
    there = OpenAITeacher(model="big", base_url="http://there/v1", api_key_env="K")
    assert teacher_identity(here) == teacher_identity(there)
    assert requests_for(here, 1) == requests_for(there, 1)
    for change in ({"model": "other"}, {"provider": "other"}, {"weights": "fp8"}):
        changed = here.model_copy(update=change)
        assert requests_for(changed, 1)[0].request_hash != requests_for(here, 1)[0].request_hash


def test_sample_index_is_part_of_the_request_and_prompt_id_is_not() -> None:
    sampling = Sampling(8, 1.0, 1.0, 0)

    def request_hash(**changes: Any) -> str:
        return make_request({"kind": "x"}, [], sampling, **changes).request_hash

    assert request_hash(prompt_id="a") == request_hash(prompt_id="b")
    assert request_hash(sample_index=1) != request_hash()
