"""The endpoint teacher: retries what passes, stops at once at what does not, and keeps its key."""

import asyncio
import dataclasses
import datetime
import email.utils
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from distillery.data.chat import Message
from distillery.teacher import (
    Response,
    ResponseSchema,
    Sampling,
    make_request,
    teacher_identity,
)
from distillery.teacher.http.chat_api import request_json
from distillery.teacher.http.openai import EndpointTeacher
from distillery.teacher.protocol import kept
from schemas.errors import RecipeError, StoreError, TeacherError
from schemas.task import JsonFormat, TaskSpec
from schemas.teacher import OpenAITeacher
from tests.fixtures_endpoint import answer, ask, requests_for, spec_for
from tests.stub_endpoint import STANDS_STILL, Reply, StubEndpoint
from tests.waiting import wait_until

KEY = "sk-planted-7f3a9c"


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
        responses = ask(spec)
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
    all_at_once = Reply(delay_s=0.03, when=lambda: stub.max_in_flight >= 4)
    with StubEndpoint(default=all_at_once) as stub:
        responses = ask(spec_for(stub, concurrency=4), 24)
    assert len(responses) == 24
    assert len({response.request.request_hash for response in responses}) == 24
    assert stub.max_in_flight == 4


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        (Reply(text=None), "empty"),
        (Reply(text=" \n"), "empty"),
        (Reply(text="half a", finish_reason="length"), "truncated"),
        (Reply(text="half a", finish_reason="content_filter"), "refused"),
    ],
)
def test_state_says_what_the_response_is(reply: Reply, state: str) -> None:
    with StubEndpoint(default=reply) as stub:
        responses = ask(spec_for(stub))
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
    status: int, advice: str, monkeypatch: pytest.MonkeyPatch, patient: None
) -> None:
    monkeypatch.setenv("BIG_KEY", KEY)
    with StubEndpoint(default=Reply(status=status, error=f"no entry for {KEY}")) as stub:
        with pytest.raises(TeacherError, match=f"status {status}: no entry.*{advice}"):
            ask(spec_for(stub, api_key_env="BIG_KEY", concurrency=16), 50)
        assert stub.num_requests == 1


def test_key_revoked_midway_stops_what_is_in_flight_and_keeps_what_was_handed_over() -> None:
    responses: list[Response] = []
    revoked = Reply(status=401, error="revoked", when=lambda: len(responses) == 5)
    with StubEndpoint([Reply()] * 5 + [revoked], default=STANDS_STILL) as stub:
        spec = spec_for(stub)
        start = time.monotonic()
        with pytest.raises(TeacherError, match="revoked"):
            answer(spec, requests_for(spec, 50), responses.append)
        assert time.monotonic() - start < spec.timeout_s / 2
        assert stub.num_requests <= 6 + spec.concurrency
    assert len(responses) == 5


@pytest.mark.parametrize("status", [400, 413, 422])
def test_refused_row_fails_with_the_servers_reason_and_is_not_asked_again(status: int) -> None:
    with StubEndpoint([Reply(), Reply(status=status, error="prompt too long")]) as stub:
        responses = ask(spec_for(stub, concurrency=1), 3)
        assert stub.num_requests == 3
    assert [response.state for response in responses] == ["ok", "refused", "ok"]
    assert responses[1].error == f"status {status}: prompt too long"


def test_endpoint_that_refuses_every_request_ends_the_run_and_keeps_none_as_failed() -> None:
    with StubEndpoint(default=Reply(status=400, error="unknown parameter max_tokens")) as stub:
        with pytest.raises(TeacherError, match=r"refused the first \d+ requests.*max_tokens"):
            ask(spec_for(stub), 100)
        assert stub.num_requests < 20


def test_refusals_that_come_before_the_first_slow_answer_end_nothing() -> None:
    def respond(body: dict[str, Any]) -> Reply:
        is_refused = int(body["messages"][0]["content"][1:]) % 3 == 0
        return Reply(status=400) if is_refused else Reply(delay_s=0.3)

    with StubEndpoint(respond=respond) as stub:
        responses = ask(spec_for(stub, concurrency=64), 60)
    assert Counter(response.state for response in responses) == {"ok": 40, "refused": 20}


def test_few_refused_rows_are_handed_over_even_when_nothing_was_answered() -> None:
    with StubEndpoint(default=Reply(status=400)) as stub:
        responses = ask(spec_for(stub), 3)
    assert [response.state for response in responses] == ["refused"] * 3


@pytest.mark.parametrize(
    "fault",
    [
        *[Reply(status=status) for status in (408, 409, 500, 503)],
        Reply(body="<html>busy</html>"),
        Reply(body='{"choices": []}'),
        Reply(reset=True),
    ],
    ids=lambda fault: str(fault.body or fault.status if not fault.reset else "reset"),
)
def test_passing_fault_is_tried_again(fault: Reply) -> None:
    with StubEndpoint([fault, fault]) as stub:
        responses = ask(spec_for(stub, max_attempts=3))
        assert stub.num_requests == 3
    assert [(response.state, response.attempts) for response in responses] == [("ok", 3)]


def test_429s_use_up_no_attempts() -> None:
    limited = Reply(status=429, headers={"Retry-After": "0"})
    with StubEndpoint([limited] * 4) as stub:
        responses = ask(spec_for(stub, max_attempts=2))
        assert stub.num_requests == 5
    assert [response.state for response in responses] == ["ok"]


def test_row_that_times_out_is_tried_again() -> None:
    with StubEndpoint([STANDS_STILL]) as stub:
        (response,) = ask(spec_for(stub, timeout_s=0.3))
        # On a busy machine the next answer may be late, too.
        assert response.attempts == stub.num_requests >= 2
    assert response.state == "ok"


def test_row_out_of_attempts_is_handed_over_as_failed_and_the_others_go_on() -> None:
    def respond(body: dict[str, Any]) -> Reply:
        is_second = body["messages"][0]["content"] == "q1"
        return Reply(status=500, error="broken") if is_second else Reply()

    with StubEndpoint(respond=respond) as stub:
        responses = ask(spec_for(stub, max_attempts=3), 6)
        assert stub.num_requests == 5 + 3
    assert [r.state for r in responses].count("ok") == 5
    (failed,) = [response for response in responses if response.state == "failed"]
    assert (failed.request.prompt_id, failed.error) == ("p1", "status 500: broken")
    assert (failed.attempts, failed.text) == (3, "")


def test_slot_of_a_failing_row_goes_to_another_while_it_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "distillery.teacher.http.connection.random.uniform", lambda least, most: most
    )
    order: list[str] = []

    def respond(body: dict[str, Any]) -> Reply:
        content = body["messages"][0]["content"]
        order.append(content)
        return Reply(status=500) if content == "q1" and order.count("q1") == 1 else Reply()

    with StubEndpoint(respond=respond) as stub:
        spec = spec_for(stub, concurrency=1)
        answer(spec, requests_for(spec, 4), lambda _: None, backoff_s=0.5)
    assert order[:3] == ["q0", "q1", "q2"]
    assert order.count("q1") == 2


def test_empty_response_is_asked_three_times_in_all() -> None:
    with StubEndpoint(default=Reply(text="")) as stub:
        responses = ask(spec_for(stub))
        assert stub.num_requests == 3
    assert [(r.state, r.attempts) for r in responses] == [("empty", 3)]
    assert (responses[0].billed_prompt_tokens, responses[0].billed_completion_tokens) == (21, 6)


SCHEMA = ResponseSchema('{"required":["label"],"type":"object"}', "json_schema")


def ask_structured(stub: StubEndpoint, mode: Any = "json_schema") -> Response:
    spec = spec_for(stub)
    schema = dataclasses.replace(SCHEMA, mode=mode)
    request = make_request(
        teacher_identity(spec),
        [{"role": "user", "content": "q"}],
        Sampling.of(spec),
        response_schema=schema,
    )
    responses: list[Response] = []
    answer(spec, [request], responses.append)
    (response,) = responses
    return response


@pytest.mark.parametrize(
    ("mode", "sent"),
    [
        (
            "json_schema",
            {
                "type": "json_schema",
                "json_schema": {
                    "name": "response",
                    "schema": {"required": ["label"], "type": "object"},
                    "strict": True,
                },
            },
        ),
        ("json_object", {"type": "json_object"}),
        ("validate", None),
    ],
)
def test_endpoint_is_told_of_the_schema_as_it_understands_it(mode: str, sent: object) -> None:
    with StubEndpoint(default=Reply(text='{"label": 1}')) as stub:
        response = ask_structured(stub, mode)
    assert stub.requests[0].get("response_format") == sent
    assert (response.state, response.repaired) == ("ok", False)


def test_the_teacher_gets_the_properties_in_the_recipes_order() -> None:
    """vLLM writes them in the schema's order: with sorted keys, an answer before its reason."""
    properties = {"reason": {"type": "string"}, "answer": {"type": "string"}}
    teacher = OpenAITeacher(model="m", base_url="http://host/v1")
    hashes = set()
    for names in (["reason", "answer"], ["answer", "reason"]):
        ordered = {"properties": {name: properties[name] for name in names}, "required": names}
        json_format = JsonFormat(json_schema=ordered)
        task = TaskSpec(name="t", type="classification", answer_format=json_format)
        schema = ResponseSchema.of(teacher, task)
        request = make_request({}, [], Sampling.of(teacher), response_schema=schema)
        body = request_json(teacher, request, [])
        assert list(body["response_format"]["json_schema"]["schema"]["properties"]) == names
        hashes.add(request.request_hash)
    assert len(hashes) == 2


def test_model_that_declines_to_keep_to_a_schema_is_not_asked_again() -> None:
    message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    with StubEndpoint(default=Reply(body=body)) as stub:
        response = ask_structured(stub)
        assert stub.num_requests == 1
    assert (response.state, response.error) == ("refused", "declined: I cannot help with that.")


def test_response_that_breaks_its_schema_is_repaired_once() -> None:
    with StubEndpoint([Reply(text="{}"), Reply(text='{"label": 1}')]) as stub:
        response = ask_structured(stub)
        assert stub.num_requests == 2
    roles = [message["role"] for message in stub.requests[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert "'label' is a required property" in stub.requests[1]["messages"][-1]["content"]
    assert (response.state, response.text, response.repaired) == ("ok", '{"label": 1}', True)
    assert response.billed_prompt_tokens == 14


def test_response_that_stays_broken_is_malformed_and_says_why() -> None:
    with StubEndpoint(default=Reply(text="{}")) as stub:
        response = ask_structured(stub)
        assert stub.num_requests == 2
    assert (response.state, response.repaired) == ("malformed", True)
    assert response.error == "at $: 'label' is a required property"


def _in_two_seconds() -> str:
    # HTTP dates hold whole seconds, so two ahead are at least one.
    return email.utils.format_datetime(
        datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2), usegmt=True
    )


@pytest.mark.parametrize("header", [lambda: "1", _in_two_seconds], ids=["seconds", "date"])
def test_retry_after_is_waited_for_by_every_worker(header: Callable[[], str]) -> None:
    def respond(_: dict[str, Any]) -> Reply:
        if stub.num_requests > 1:
            return Reply()
        limited_at.append(time.monotonic())
        return Reply(status=429, headers={"Retry-After": header()})

    limited_at: list[float] = []
    with StubEndpoint(respond=respond) as stub:
        responses = ask(spec_for(stub), 8)
        assert 0.9 < time.monotonic() - limited_at[0] < 60
        assert stub.num_requests == 9
    assert len(responses) == 8


def test_unreachable_endpoint_ends_the_run_after_one_rows_attempts() -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        spec = OpenAITeacher(
            model="big", base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1", max_attempts=4
        )
        with pytest.raises(TeacherError, match=r"no answer in 4 attempts.*Start the endpoint"):
            ask(spec, 1000)


def test_endpoint_that_hangs_from_the_start_ends_the_run(patient: None) -> None:
    with StubEndpoint(default=STANDS_STILL) as stub:
        with pytest.raises(TeacherError, match=r"no answer in 2 attempts.*no response within"):
            ask(spec_for(stub, timeout_s=0.1, max_attempts=2), 1000)
        assert stub.num_requests == 2


def test_endpoint_that_takes_its_time_with_the_first_response_is_not_left_idle() -> None:
    def respond(body: dict[str, Any]) -> Reply:
        takes_its_time = Reply(when=lambda: len(order) == 39)
        return takes_its_time if body["messages"][0]["content"] == "q0" else Reply()

    order: list[str] = []
    with StubEndpoint(respond=respond) as stub:
        spec = spec_for(stub)
        answer(spec, requests_for(spec, 40), lambda r: order.append(r.request.prompt_id))
    assert order[-1] == "p0"


def test_endpoint_that_only_fails_meets_few_requests_and_ends_the_run(patient: None) -> None:
    with StubEndpoint(default=Reply(status=500)) as stub:
        with pytest.raises(TeacherError, match="has answered nothing for more than"):
            ask(spec_for(stub, concurrency=64, max_outage_s=1.0, max_attempts=100), 150)
        assert stub.num_requests < 40


def test_endpoint_that_goes_away_midway_ends_the_run_after_the_outage_that_is_borne() -> None:
    with StubEndpoint([Reply()], default=STANDS_STILL) as stub:
        spec = spec_for(stub, max_attempts=3, max_outage_s=0.5)
        responses: list[Response] = []
        leave = threading.Event()

        def on_response(response: Response) -> None:
            responses.append(response)
            leave.set()

        errors: list[BaseException] = []

        def run() -> None:
            try:
                answer(spec, requests_for(spec, 300), on_response)
            except TeacherError as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert leave.wait(60)
    thread.join(60)
    assert "has answered nothing for more than teacher.max_outage_s=0.5" in str(errors[0])
    assert "Run again: only the missing ones are asked" in str(errors[0])
    assert responses


def test_outage_within_the_limit_loses_no_row_and_no_attempt() -> None:
    down = threading.Event()

    def respond(_: dict[str, Any]) -> Reply:
        if len(stub.requests) == 20:
            down.set()
            threading.Timer(0.4, down.clear).start()
        return Reply(reset=True) if down.is_set() else Reply()

    with StubEndpoint(respond=respond) as stub:
        responses = ask(spec_for(stub, max_attempts=60, max_outage_s=30), 60)
    assert [response.state for response in responses] == ["ok"] * 60


def test_batches_of_several_threads_share_one_channel_and_its_limit(patient: None) -> None:
    def respond(_: dict[str, Any]) -> Reply:
        is_first = stub.num_requests == 1
        return Reply(delay_s=0.02, when=lambda: is_first or stub.max_in_flight >= 5)

    with StubEndpoint(respond=respond) as stub:
        spec = spec_for(stub, concurrency=5)
        identity, sampling = teacher_identity(spec), Sampling.of(spec)
        teacher = EndpointTeacher(spec)

        def run(thread: int) -> None:
            contents = [Message(role="user", content=f"{thread} {n}") for n in range(20)]
            teacher.answer(
                [make_request(identity, [content], sampling) for content in contents],
                lambda _: kept(),
            )

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, range(4)))
        teacher.close()
        assert stub.num_requests == 80
        assert stub.max_in_flight == 5


def test_told_requests_per_minute_are_kept() -> None:
    with StubEndpoint() as stub:
        spec = spec_for(stub, requests_per_minute=1200)  # 20 per second, and 20 saved up
        start = time.monotonic()
        assert len(ask(spec, 50)) == 50
        assert time.monotonic() - start > 1.3


def test_told_tokens_per_minute_are_kept() -> None:
    with StubEndpoint() as stub:  # 9 tokens each
        spec = spec_for(stub, tokens_per_minute=9 * 1200, max_new_tokens=2)
        start = time.monotonic()
        assert len(ask(spec, 50)) == 50
        assert time.monotonic() - start > 1.3


def test_unset_key_variable_is_named_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BIG_KEY", raising=False)
    with StubEndpoint() as stub:
        with pytest.raises(RecipeError, match="'BIG_KEY'"):
            ask(spec_for(stub, api_key_env="BIG_KEY"))
        assert stub.num_requests == 0


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
            answer(spec, requests_for(spec, 50), full)
        assert stub.num_requests <= 1 + spec.concurrency


@pytest.mark.parametrize("num_requests", [4, 100], ids=["all in flight", "more waiting"])
def test_caller_is_told_when_the_teacher_is_closed_under_it(num_requests: int) -> None:
    with StubEndpoint([Reply()], default=STANDS_STILL) as stub, ThreadPoolExecutor(1) as pool:
        spec = spec_for(stub)
        teacher = EndpointTeacher(spec)
        asking = pool.submit(teacher.answer, requests_for(spec, num_requests), lambda _: kept())
        wait_until(lambda: stub.num_requests >= 4 or asking.done())
        teacher.close()
        with pytest.raises(TeacherError, match="closed while it was being asked"):
            asking.result(60)
        assert stub.num_requests < 8


def test_works_inside_a_running_event_loop() -> None:
    async def notebook(stub: StubEndpoint) -> int:
        return len(ask(spec_for(stub), 3))

    with StubEndpoint() as stub:
        assert asyncio.run(notebook(stub)) == 3


def test_identity_names_who_serves_what_and_not_where() -> None:
    here = OpenAITeacher(model="big", base_url="http://here/v1", concurrency=1, timeout_s=1)
    there = OpenAITeacher(model="big", base_url="http://there/v1", api_key_env="K")
    assert teacher_identity(here) == teacher_identity(there)
    assert requests_for(here, 1) == requests_for(there, 1)
    changes: list[dict[str, Any]] = [{"model": "other"}, {"provider": "other"}, {"weights": "fp8"}]
    for change in [*changes, {"extra_body": {"reasoning": "high"}}]:
        changed = here.model_copy(update=change)
        assert requests_for(changed, 1)[0].request_hash != requests_for(here, 1)[0].request_hash


def test_sample_index_is_part_of_the_request_and_prompt_id_is_not() -> None:
    sampling = Sampling(8, 1.0, 1.0, 0)

    def request_hash(**changes: Any) -> str:
        return make_request({"kind": "x"}, [], sampling, **changes).request_hash

    assert request_hash(prompt_id="a") == request_hash(prompt_id="b")
    assert request_hash(sample_index=1) != request_hash()


def test_longer_limit_is_the_same_request() -> None:
    def request_hash(max_new_tokens: int) -> str:
        return make_request({"kind": "x"}, [], Sampling(max_new_tokens, 0, 1, 0)).request_hash

    assert request_hash(8) == request_hash(16)
