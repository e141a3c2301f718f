"""Which response is final, and what is asked where none is; the same for every kind of teacher."""

import pytest

from distillery.data.chat import Message
from distillery.teacher.attempts import Attempts, repair_messages
from distillery.teacher.protocol import (
    Response,
    ResponseSchema,
    Sampling,
    make_request,
    read_response,
)

SCHEMA = ResponseSchema('{"required":["label"],"type":"object"}', "validate")


def attempts(schema: ResponseSchema | None = None) -> Attempts:
    messages = [Message(role="user", content="Which?")]
    return Attempts(make_request({}, messages, Sampling(8, 1.0, 1.0, 0), response_schema=schema))


def bring(
    asked: Attempts, text: str, reason: str = "stop", *, differs: bool = True
) -> Response | None:
    """Have one attempt bring ``text``, for 7 tokens read and 2 written."""
    asked.count += 1
    asked.spend(7, 2)
    return asked.take(read_response(asked.request, text, reason), may_differ=differs)


def test_a_response_is_final_with_what_it_took() -> None:
    final = bring(attempts(), "refund")
    assert final is not None
    assert (final.state, final.text, final.attempts, final.repaired) == ("ok", "refund", 1, False)
    assert (final.billed_prompt_tokens, final.billed_completion_tokens) == (7, 2)


@pytest.mark.parametrize(("differs", "times"), [(True, 3), (False, 1)])
def test_no_text_is_asked_for_three_times_where_it_may_differ(differs: bool, times: int) -> None:
    asked = attempts()
    brought = [bring(asked, " ", differs=differs) for _ in range(times)]
    assert brought[:-1] == [None] * (times - 1)
    assert brought[-1] is not None
    assert (brought[-1].state, brought[-1].billed_prompt_tokens) == ("empty", 7 * times)


def test_what_breaks_the_schema_is_sent_back_once_with_the_reason() -> None:
    asked = attempts(SCHEMA)
    assert bring(asked, "{}") is None
    assert [message["role"] for message in asked.messages] == ["user", "assistant", "user"]
    assert "at $: 'label' is a required property" in asked.messages[-1]["content"]
    final = bring(asked, '{"label": 1}')
    assert final is not None
    assert (final.state, final.repaired, final.attempts) == ("ok", True, 2)


def test_a_repair_that_breaks_the_schema_too_is_malformed() -> None:
    asked = attempts(SCHEMA)
    assert bring(asked, "{}") is None
    final = bring(asked, "[]")
    assert final is not None
    assert (final.state, final.text, final.repaired) == ("malformed", "[]", True)
    assert final.error == "at $: [] is not of type 'object'"


@pytest.mark.parametrize(("text", "reason"), [("", "stop"), ('{"la', "length")])
def test_a_repair_that_is_not_whole_leaves_the_broken_response(text: str, reason: str) -> None:
    asked = attempts(SCHEMA)
    assert bring(asked, "{}") is None
    final = bring(asked, text, reason)
    assert final is not None
    assert (final.state, final.text, final.repaired) == ("malformed", "{}", False)
    assert (final.attempts, final.billed_completion_tokens) == (2, 4)


def test_json_in_a_fence_is_not_paid_for_twice() -> None:
    final = bring(attempts(SCHEMA), '```json\n{"label": 1}\n```')
    assert final is not None
    assert (final.state, final.attempts) == ("ok", 1)


def test_what_failed_says_what_was_spent_on_it() -> None:
    asked = attempts()
    assert bring(asked, "") is None
    failed = asked.failed("no response within 2 s")
    assert (failed.state, failed.text, failed.attempts) == ("failed", "", 1)
    assert (failed.billed_prompt_tokens, failed.error) == (7, "no response within 2 s")


def test_a_repair_shows_the_conversation_the_response_and_what_is_wrong() -> None:
    request = attempts(SCHEMA).request
    messages = repair_messages(request, "refund", "at $: is not so")
    assert messages[:1] == request.messages
    assert messages[1] == {"role": "assistant", "content": "refund"}
    assert messages[2]["role"] == "user"
    for part in ("at $: is not so", "JSON alone", '"required":["label"]'):
        assert part in messages[2]["content"]
    assert len(messages) == 3
    assert len(request.messages) == 1  # it is hashed: it must not change


def test_a_long_response_is_cut_before_it_is_sent_back() -> None:
    echoed = repair_messages(attempts(SCHEMA).request, "x" * 1_000_000, "wrong")[1]["content"]
    assert echoed == "x" * 16_000
