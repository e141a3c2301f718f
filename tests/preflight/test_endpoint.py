"""What an endpoint can be asked before anything is paid for."""

import datetime
from typing import Any

import pytest

from distillery.preflight.endpoint import check_endpoint, shutdown_date
from schemas.errors import RecipeError, TeacherError
from schemas.task import JsonFormat, TaskSpec
from schemas.teacher import OpenAITeacher
from tests.ports import free_port
from tests.stub_batches import StubAnthropic, StubOpenAI
from tests.stub_endpoint import Reply, StubEndpoint, listing

TASK = TaskSpec(name="questions", type="classification")
STRICT = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "string"}}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def teacher(stub: StubEndpoint | None = None, **changes: Any) -> OpenAITeacher:
    address = stub.base_url if stub else f"http://127.0.0.1:{free_port()}/v1"
    return OpenAITeacher(**{"model": "big", "base_url": address, **changes})


def test_a_model_that_is_listed_passes_with_one_get() -> None:
    with StubEndpoint(models=listing("small", "big")) as stub:
        assert check_endpoint(teacher(stub), TASK) == []
        assert (stub.gets, stub.num_requests) == (["models"], 0)


@pytest.mark.parametrize("listed", ["big:latest", "models/big"])
def test_a_model_is_found_under_the_names_that_servers_give_it(listed: str) -> None:
    with StubEndpoint(models=listing(listed)) as stub:
        assert check_endpoint(teacher(stub), TASK) == []


def test_a_model_that_is_not_known_is_refused_and_those_that_are_are_named() -> None:
    with StubEndpoint(models=listing(*(f"m{n}" for n in range(8)))) as stub:
        with pytest.raises(RecipeError) as caught:
            check_endpoint(teacher(stub), TASK)
        assert stub.gets == ["models", "models/big"]
    assert "does not know teacher.model 'big'; it lists 'm0', 'm1'" in str(caught.value)
    assert "'m4' and 3 more. Correct teacher.model." in str(caught.value)


@pytest.mark.parametrize("provider", ["azure-ai-foundry", "llama.cpp"])
def test_a_list_of_other_names_refuses_nothing(provider: str) -> None:
    with StubEndpoint(models=listing("gpt")) as stub:
        assert check_endpoint(teacher(stub, provider=provider), TASK) == []


@pytest.mark.parametrize(
    "models", [None, Reply(status=405), Reply(body="<html>"), Reply(body='{"data": null}')]
)
def test_an_endpoint_without_a_list_is_no_problem(models: Reply | None) -> None:
    with StubEndpoint(models=models) as stub:
        assert check_endpoint(teacher(stub), TASK) == []


@pytest.mark.parametrize("status", [403, 429, 503])
def test_a_list_that_cannot_be_read_now_is_warned_of(status: int) -> None:
    with StubEndpoint(models=Reply(status=status, error="no")) as stub:
        (warning,) = check_endpoint(teacher(stub), TASK)
    assert f"does not list its models ('status {status}: no')" in warning


def test_a_refused_key_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIG_KEY", "sk-planted/0123+4567=")
    refused = Reply(status=401, error="no such key: sk-planted/0123+4567=")
    with StubEndpoint(models=refused) as stub, pytest.raises(TeacherError) as caught:
        check_endpoint(teacher(stub, api_key_env="BIG_KEY"), TASK)
    assert "Put a valid key into the variable 'BIG_KEY'" in str(caught.value)
    assert "planted" not in str(caught.value)


def test_a_key_that_is_not_set_is_named_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BIG_KEY", raising=False)
    with pytest.raises(RecipeError, match="'BIG_KEY'"):
        check_endpoint(teacher(api_key_env="BIG_KEY"), TASK)


def test_an_endpoint_that_is_not_there_is_told_in_one_sentence() -> None:
    with pytest.raises(TeacherError, match=r"does not answer .*Start it, or correct") as caught:
        check_endpoint(teacher(), TASK)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("days", "told"),
    [(-1, "ended on"), (0, "ends on"), (29, "ends on"), (400, "ends on"), (None, None)],
)
def test_a_model_whose_end_is_announced_is_warned_of(days: int | None, told: str | None) -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    date = None if days is None else str(today + datetime.timedelta(days=days))
    with StubEndpoint(models=listing("big", shutdown_date=date)) as stub:
        warnings = check_endpoint(teacher(stub), TASK)
    assert len(warnings) == (told is not None)
    assert told is None or f"teacher.model 'big' {told} {date}" in warnings[0]


@pytest.mark.parametrize(("date", "found"), [("2027-01-14", True), ("soon", False), (None, False)])
def test_the_announced_end_of_a_model_is_told(date: str | None, found: bool) -> None:
    with StubEndpoint(models=listing("big", shutdown_date=date)) as stub:
        told = shutdown_date(teacher(stub))
    assert told == (datetime.date(2027, 1, 14) if found else None)


def with_schema(schema: dict[str, Any]) -> TaskSpec:
    return TaskSpec(name="t", type="classification", answer_format=JsonFormat(json_schema=schema))


LOOSE: list[tuple[dict[str, Any], str]] = [
    ({**STRICT, "additionalProperties": True}, "$.additionalProperties is not false"),
    ({**STRICT, "required": ["a"]}, "$.properties.b is not required"),
    (
        {**STRICT, "$defs": {"x": {"type": "object"}}},
        "$.$defs.x.additionalProperties is not false",
    ),
    ({"anyOf": [STRICT]}, "$ is not of type object"),
]


@pytest.mark.parametrize(("schema", "told"), LOOSE)
def test_a_schema_that_openai_would_refuse_is_told(schema: dict[str, Any], told: str) -> None:
    task = with_schema(schema)
    with StubEndpoint(models=listing("big")) as stub:
        with pytest.raises(RecipeError) as caught:
            check_endpoint(teacher(stub, provider="openai"), task)
        assert f"({told})" in str(caught.value)
        (warning,) = check_endpoint(teacher(stub), task)
        assert f"({told})" in warning and "'vllm' takes such schemas" in warning
        assert check_endpoint(teacher(stub, structured_output="json_object"), task) == []


def test_a_strict_schema_passes() -> None:
    with StubEndpoint(models=listing("big")) as stub:
        assert check_endpoint(teacher(stub, provider="openai"), with_schema(STRICT)) == []


@pytest.mark.parametrize(
    ("stub_class", "provider", "listed"),
    [(StubOpenAI, "openai", "batches"), (StubAnthropic, "anthropic", "messages/batches")],
)
def test_a_provider_without_batches_is_refused(stub_class: Any, provider: str, listed: str) -> None:
    with stub_class() as stub:
        assert check_endpoint(teacher(stub, provider=provider, batch=True), TASK) == []
        assert stub.made == []
    with stub_class(has_batches=False) as stub, pytest.raises(RecipeError) as caught:
        check_endpoint(teacher(stub, provider=provider, batch=True), TASK)
    assert f"takes no batches (status 404 for '{listed}')" in str(caught.value)
    assert "Set teacher.batch to false" in str(caught.value)
