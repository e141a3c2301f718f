"""What is odd about responses: thoughts are split off, ends are explained, or it is said."""

import logging
from collections import Counter
from typing import Any

import pytest

from schemas.errors import TeacherError
from tests.fixtures_endpoint import ask, spec_for
from tests.stub_endpoint import Reply, StubEndpoint

pytestmark = pytest.mark.usefixtures("patient")


# -- thoughts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "thoughts"),
    [
        (Reply(text="<think>Money?</think>\n\nrefund"), "Money?"),
        (Reply(text="Money?\n</think>\n\nrefund"), "Money?"),
        (Reply(text="refund", message_facts={"reasoning_content": "Money?"}), "Money?"),
        (Reply(text="refund", message_facts={"reasoning": "Money?"}), "Money?"),
        (Reply(text="<think>\n\n</think>\n\nrefund"), None),
        (Reply(text="refund", message_facts={"reasoning": None}), None),
    ],
    ids=["tags", "end alone", "reasoning_content", "reasoning", "empty", "null"],
)
def test_thoughts_are_split_off_the_response(reply: Reply, thoughts: str | None) -> None:
    with StubEndpoint(default=reply) as stub:
        responses = ask(spec_for(stub), 40)
        assert stub.num_requests == 40
    assert {(r.state, r.text, r.reasoning) for r in responses} == {("ok", "refund", thoughts)}


def reasoned(tokens: int) -> dict[str, Any]:
    details = {"reasoning_tokens": tokens}
    return {"prompt_tokens": 7, "completion_tokens": tokens, "completion_tokens_details": details}


@pytest.mark.parametrize(
    "reply",
    [
        Reply(text=None, message_facts={"reasoning": "Money? Or"}),
        Reply(text=None, message_facts={"reasoning_content": "Money?"}, finish_reason="length"),
        Reply(text="<think>Money? Or", finish_reason="length"),
        Reply(text="", finish_reason="length", usage=reasoned(64)),
    ],
    ids=["reasoning", "cut", "tags", "hidden"],
)
def test_an_endpoint_that_only_thinks_is_found_out_by_three_requests(reply: Reply) -> None:
    with StubEndpoint(default=reply) as stub:
        with pytest.raises(TeacherError) as caught:
            ask(spec_for(stub, max_new_tokens=64), 40)
        assert stub.num_requests == 3
    assert "spent the first 3 responses on reasoning and wrote no text" in str(caught.value)
    assert "Raise teacher.max_new_tokens (now 64), or turn the reasoning" in str(caught.value)


def test_a_response_without_text_among_others_ends_nothing() -> None:
    thinks = Reply(text=None, message_facts={"reasoning": "Or"}, finish_reason="length")
    with StubEndpoint([Reply(), *[thinks] * 5]) as stub:
        responses = ask(spec_for(stub), 10)
        assert stub.num_requests == 10
    assert Counter(response.state for response in responses) == {"ok": 5, "truncated": 5}


# -- ends --------------------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_a_response_without_a_finish_reason_is_asked_again_and_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cut = Reply(text="half a", finish_reason=None)
    with StubEndpoint([Reply(), cut, Reply(), cut]) as stub:
        responses = ask(spec_for(stub, concurrency=1), 10)
        assert stub.num_requests == 12
    assert {(response.state, response.text) for response in responses} == {("ok", "fine")}
    (warning,) = warnings(caplog)
    assert "gave a response without a finish_reason, so it may be cut off" in warning


def test_an_endpoint_that_never_gives_a_finish_reason_costs_two_requests_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with StubEndpoint(default=Reply(finish_reason=None)) as stub:
        responses = ask(spec_for(stub, concurrency=1), 40)
        assert stub.num_requests == 42
    assert Counter(response.state for response in responses) == {"ok": 40}
    assert len(warnings(caplog)) == 1
