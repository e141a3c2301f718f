"""What a reply means, whatever its status says: each fault costs as few requests as it can."""

import json
from collections import Counter
from typing import Any

import pytest

from distillery.teacher.http.replies import retry_after_s
from schemas.errors import TeacherError
from tests.fixtures_endpoint import answer, ask, requests_for, spec_for
from tests.stub_endpoint import Reply, StubEndpoint

pytestmark = pytest.mark.usefixtures("patient")


def states(stub: StubEndpoint, count: int = 40, **changes: Any) -> Counter[str]:
    return Counter(response.state for response in ask(spec_for(stub, **changes), count))


def as_200(error: dict[str, Any]) -> Reply:
    """An error in a body whose status says that all is well, as gateways send it."""
    return Reply(body=json.dumps({"error": {"message": "upstream", **error}}))


# -- of the run --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 403])
def test_a_quota_that_is_used_up_ends_the_run_at_once(status: int) -> None:
    facts = {"type": "insufficient_quota", "code": "insufficient_quota"}
    reply = Reply(status=status, error="You exceeded your current quota", error_facts=facts)
    with StubEndpoint(default=reply) as stub:
        with pytest.raises(TeacherError, match=r"current quota.*Top up the account"):
            ask(spec_for(stub), 40)
        assert stub.num_requests == 1


def test_a_402_within_a_200_ends_the_run_at_once() -> None:
    with StubEndpoint(default=as_200({"code": 402})) as stub:
        with pytest.raises(TeacherError, match=r"status 402: upstream.*Top up the account"):
            ask(spec_for(stub), 40)
        assert stub.num_requests == 1


@pytest.mark.parametrize(
    ("changes", "param", "words", "advice"),
    [
        (
            {},
            "max_tokens",
            "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "Set teacher.max_tokens_field to max_completion_tokens.",
        ),
        (
            {},
            "temperature",
            "'temperature' does not support 0 with this model. Only the default (1) is.",
            "Set teacher.sampling_temperature to a value that it takes.",
        ),
        ({}, "max_tokens", "max_tokens is too large: 256", "Lower teacher.max_new_tokens, or"),
        (
            {"sampling_temperature": 1},
            "seed",
            "Unknown parameter: 'seed'.",
            "Set teacher.extra_body.seed to what it takes; null leaves the field out.",
        ),
        (
            {"extra_body": {"reasoning_effort": "none"}},
            "reasoning_effort",
            "'none' is not one of 'low', 'high'",
            "Set teacher.extra_body.reasoning_effort to what it takes",
        ),
    ],
    ids=["max_tokens", "temperature", "too large", "seed", "extra_body"],
)
def test_a_parameter_that_is_not_taken_ends_the_run_after_one_request_and_is_named(
    changes: dict[str, Any], param: str, words: str, advice: str
) -> None:
    facts = {"type": "invalid_request_error", "param": param, "code": "unsupported_parameter"}
    with StubEndpoint(default=Reply(status=400, error=words, error_facts=facts)) as stub:
        with pytest.raises(TeacherError) as caught:
            ask(spec_for(stub, **changes), 40)
        assert stub.num_requests == 1
    assert words in str(caught.value)
    assert f"about {param!r}" in str(caught.value)
    assert advice in str(caught.value)


# -- of one request ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "facts",
    [
        {"code": "content_filter", "param": "prompt"},
        {"code": "content_policy_violation"},
        {"code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}},
        {"code": "context_length_exceeded", "param": "messages"},
        {"code": "x", "param": "max_tokens", "message": "too large, as the prompt has 9 tokens"},
    ],
    ids=["filter", "policy", "inner", "context", "limit of a long prompt"],
)
def test_refusals_of_prompts_end_no_run_however_many_come_first(facts: dict[str, Any]) -> None:
    def respond(body: dict[str, Any]) -> Reply:
        is_refused = int(body["messages"][0]["content"][1:]) < most
        return Reply(status=400, error_facts=facts) if is_refused else Reply()

    most = 3 if "max_tokens" in facts.values() else 30
    with StubEndpoint(respond=respond) as stub:
        assert states(stub) == {"refused": most, "ok": 40 - most}
        # What may be about the settings is asked once more while nothing is answered.
        assert 40 <= stub.num_requests <= (43 if most == 3 else 40)


def test_a_prompt_that_azure_filters_out_is_refused() -> None:
    body = json.dumps({"choices": [], "prompt_filter_results": [{"prompt_index": 0}]})
    with StubEndpoint(default=Reply(body=body)) as stub:
        responses = ask(spec_for(stub), 40)
        assert stub.num_requests == 40
    assert {(r.state, r.error) for r in responses} == {
        ("refused", "the prompt was stopped by the content filter")
    }


# -- of its pace -------------------------------------------------------------------------------


def test_a_429_within_a_200_is_waited_for() -> None:
    with StubEndpoint([as_200({"code": 429})] * 3) as stub:
        spec = spec_for(stub, max_attempts=1)
        responses: list[Any] = []
        num_429 = answer(spec, requests_for(spec, 10), responses.append)
        assert stub.num_requests == 13
    assert Counter(response.state for response in responses) == {"ok": 10}
    assert num_429 == 3


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "40"}, 0.04),
        ({"retry-after-ms": "40", "retry-after": "1"}, 0.04),
        ({"retry-after": "1", "x-ratelimit-remaining-requests": "0"}, 1.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1.5s"}, 1.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "250ms"}, 0.25),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "2"}, 2.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1h2m"}, 5.0),
        ({"x-ratelimit-remaining-requests": "7", "x-ratelimit-reset-requests": "1s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_the_finest_figure_says_how_long_to_wait(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after_s(headers) == seconds


# -- passing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Reply(body='{"choices": null}'),
        as_200({}),
        as_200({"code": 503}),
        as_200({"code": "server_error"}),
        *[Reply(text="half a", finish_reason=reason) for reason in ("abort", "error")],
    ],
    ids=["null", "error", "503", "word", "abort", "finished with error"],
)
def test_what_passes_is_asked_again(fault: Reply) -> None:
    with StubEndpoint([Reply(), fault, fault]) as stub:
        responses = ask(spec_for(stub), 10)
        assert stub.num_requests == 12
    assert {(response.state, response.text) for response in responses} == {("ok", "fine")}


def test_what_was_paid_for_a_response_that_broke_off_is_billed() -> None:
    with StubEndpoint([Reply(text="half a", finish_reason="abort")]) as stub:
        (response,) = ask(spec_for(stub))
    assert (response.billed_prompt_tokens, response.billed_completion_tokens) == (14, 4)
    assert (response.prompt_tokens, response.completion_tokens) == (7, 2)
