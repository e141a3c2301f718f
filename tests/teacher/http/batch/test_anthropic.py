"""Anthropic's batches: the same work in another format."""

from typing import Any

import pytest

from distillery.teacher import ResponseSchema
from schemas.errors import TeacherError
from schemas.teacher import OpenAITeacher
from tests.stub_batches import UNANSWERED, Fate, StubAnthropic
from tests.stub_endpoint import Reply
from tests.teacher.http.batch.conftest import Ask

KEY = "sk-ant-planted-7f3a9c"


def spec_for(stub: StubAnthropic, **changes: Any) -> OpenAITeacher:
    settings = {
        "model": "big",
        "provider": "anthropic",
        "base_url": stub.base_url,
        "batch": True,
        "max_attempts": 3,
    }
    return OpenAITeacher(**{**settings, **changes})


def test_system_turn_stands_apart_and_the_key_has_a_header_of_its_own(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAUDE_KEY", KEY)
    with StubAnthropic() as stub:
        spec = spec_for(stub, api_key_env="CLAUDE_KEY", max_new_tokens=9)
        rows, _ = ask(spec, "q0", system="Be brief.")
    [made] = stub.made
    assert made.requests == [
        {
            "custom_id": rows["q0"].request_hash,
            "params": {
                "model": "big",
                "max_tokens": 9,
                "messages": [{"role": "user", "content": "q0"}],
                "temperature": 0.0,
                "system": "Be brief.",
            },
        }
    ]
    for headers in stub.headers:
        assert headers["x-api-key"] == KEY
        assert headers["anthropic-version"] == "2023-06-01"
        assert "Authorization" not in headers
    row = rows["q0"]
    assert (row.state, row.text, row.finish_reason) == ("ok", "re q0", "end_turn")
    assert (row.prompt_tokens, row.completion_tokens) == (7, 2)


def test_schema_is_asked_for_and_null_leaves_a_field_out(ask: Ask) -> None:
    schema = ResponseSchema('{"type":"object"}', "json_schema")
    with StubAnthropic(answers=lambda *_: Reply(text="{}")) as stub:
        ask(spec_for(stub, extra_body={"temperature": None}), "q0", schema=schema)
    params = stub.made[0].requests[0]["params"]
    described = {"type": "json_schema", "schema": {"type": "object"}}
    assert params["output_config"] == {"format": described}
    assert "temperature" not in params


@pytest.mark.parametrize(
    ("reply", "state", "text", "reasoning"),
    [
        (Reply(text="cut", finish_reason="max_tokens"), "truncated", "cut", None),
        (
            Reply(text="cut", finish_reason="model_context_window_exceeded"),
            "truncated",
            "cut",
            None,
        ),
        (Reply(text="no", finish_reason="refusal"), "refused", "", None),
        (
            Reply(message_facts={"blocks": [{"type": "thinking", "thinking": "hm"}]}),
            "ok",
            "fine",
            "hm",
        ),
        (
            Reply(status=400, error="bad prompt", error_facts={"type": "invalid_request_error"}),
            "refused",
            "",
            None,
        ),
    ],
)
def test_message_says_how_it_ended(
    ask: Ask, reply: Reply, state: str, text: str, reasoning: str | None
) -> None:
    with StubAnthropic(answers=lambda *_: reply) as stub:
        rows, _ = ask(spec_for(stub), "q0")
    row = rows["q0"]
    assert (row.state, row.text, row.reasoning) == (state, text, reasoning)


def test_expired_and_broken_requests_are_asked_again(ask: Ask) -> None:
    def answers(content: str, n: int) -> Reply:
        broken = {"q0": UNANSWERED, "q1": Reply(status=500, error_facts={"type": "api_error"})}
        return broken.get(content, Reply()) if n == 1 else Reply(text="fine")

    with StubAnthropic(answers=answers) as stub:
        rows, _ = ask(spec_for(stub), "q0", "q1", "q2")
    assert stub.asked == {"q0": 2, "q1": 2, "q2": 1}
    assert {row.state for row in rows.values()} == {"ok"}


def test_batch_whose_creation_was_not_heard_of_is_found_by_what_it_holds(ask: Ask) -> None:
    with StubAnthropic(fates=[Fate(num_polls=0), Fate(loses_reply=True)]) as stub:
        other = {"custom_id": "another's", "params": {"messages": [{"content": "x"}]}}
        stub.poll(stub.make([other], {}))  # of another's, of the same size
        made = stub.make
        rows_of: list[Any] = []

        def and_end(requests: Any, metadata: Any) -> Any:
            rows_of.append(made(requests, metadata))
            rows_of[0].status = "completed"
            return rows_of[-1]

        stub.make = and_end  # type: ignore[method-assign]
        rows, _ = ask(spec_for(stub), "q0")
    assert rows["q0"].text == "re q0"
    assert stub.asked["q0"] == 1


def test_cancelled_batch_keeps_what_it_has(ask: Ask) -> None:
    def answers(content: str, n: int) -> Reply:
        return UNANSWERED if (content, n) == ("q1", 1) else Reply(text="fine")

    with StubAnthropic(fates=[Fate("cancelled")], answers=answers) as stub:
        with pytest.raises(TeacherError, match=r"was told to cancel batch 'batch_0'"):
            ask(spec_for(stub), "q0", "q1")
        _, totals = ask(spec_for(stub), "q0", "q1")
    assert (totals.asked, stub.asked["q0"]) == (1, 1)


def test_wrong_model_ends_the_run(ask: Ask) -> None:
    missing = Reply(status=404, error="model: big", error_facts={"type": "not_found_error"})
    with StubAnthropic(answers=lambda *_: missing) as stub:
        with pytest.raises(TeacherError, match=r"Correct teacher.model \('big'\)"):
            ask(spec_for(stub), "q0")
        assert stub.asked["q0"] == 1


def test_results_are_read_at_the_host_that_was_named_by_the_recipe(ask: Ask) -> None:
    with StubAnthropic() as stub:
        stub.base_url, real = "http://elsewhere.example/v1", stub.base_url
        rows, _ = ask(spec_for(stub, base_url=real), "q0")
    assert rows["q0"].text == "re q0"
