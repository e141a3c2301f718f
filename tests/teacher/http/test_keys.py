"""A key is read by its name, and is nowhere but in the header that carries it."""

import json
import logging
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distillery.teacher.http import keys
from distillery.teacher.http.keys import read_key, redact, register_secret_reader
from schemas.errors import RecipeError
from schemas.teacher import OpenAITeacher
from tests.fixtures_recipe import load, make_recipe, scripted_teacher
from tests.stub_endpoint import Reply, StubEndpoint

KEY = "sk-planted/0123+4567="


def _teacher(**fields: Any) -> OpenAITeacher:
    return OpenAITeacher(model="m", base_url="http://host/v1", **fields)


@pytest.fixture
def no_reader() -> Iterator[None]:
    """Restores what the flows of other tests have registered."""
    before = keys._read_secret
    keys._read_secret = None
    yield
    keys._read_secret = before


def test_a_teacher_without_a_key_has_none() -> None:
    assert read_key(_teacher()) is None


def test_a_key_comes_from_the_environment_without_its_newline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("A_KEY", f"{KEY}\n")
    assert read_key(_teacher(api_key_env="A_KEY")) == KEY


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, r"variable 'A_KEY' \(teacher.api_key_env\) is not set. Export the key"),
        ("  ", "is not set"),
        ("naïve", "characters that no HTTP header can carry. Export the key alone"),
        ("two\nlines", "characters that no HTTP header can carry"),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, value: str | None, told: str
) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("A_KEY", value)
    with pytest.raises(RecipeError, match=told) as caught:
        read_key(_teacher(api_key_env="A_KEY"))
    assert value is None or not value.strip() or value not in str(caught.value)


def test_a_secret_needs_someone_who_can_read_it(no_reader: None) -> None:
    with pytest.raises(RecipeError, match=r"'a-key' \(teacher.api_key_secret\) cannot be read"):
        read_key(_teacher(api_key_secret="a-key"))


def test_a_secret_is_read_by_its_name(no_reader: None) -> None:
    register_secret_reader({"a-key": f" {KEY} ", "empty": ""}.__getitem__)
    assert read_key(_teacher(api_key_secret="a-key")) == KEY
    with pytest.raises(RecipeError, match=r"the secret 'empty' .* is not set. Save the key"):
        read_key(_teacher(api_key_secret="empty"))


def test_a_key_has_one_place() -> None:
    with pytest.raises(ValidationError, match="which one counts"):
        _teacher(api_key_env="A_KEY", api_key_secret="a-key")


def test_a_key_in_place_of_a_secrets_name_is_refused_and_not_repeated() -> None:
    pasted = "sk-0123456789abcdef"
    raw = {"kind": "openai", "model": "m", "base_url": "http://host/v1", "api_key_secret": pasted}
    with pytest.raises(RecipeError, match="begins with 'sk-'") as caught:
        load({"teacher": raw})
    assert pasted not in str(caught.value)


def test_the_key_is_no_part_of_what_a_teacher_is() -> None:
    from distillery.teacher import teacher_identity

    bare = teacher_identity(_teacher())
    assert teacher_identity(_teacher(api_key_env="A_KEY")) == bare
    assert teacher_identity(_teacher(api_key_secret="a-key")) == bare


@pytest.mark.parametrize(
    "form",
    [
        str,
        urllib.parse.quote,
        urllib.parse.quote_plus,
    ],
)
def test_a_key_is_cut_out_of_what_a_server_says(form: Callable[[str], str]) -> None:
    shown = redact(f"no such key: {form(KEY)}!", KEY)
    assert form(KEY) not in shown and KEY not in shown
    assert shown.startswith("no such key: ") and shown.endswith("[key]!")


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8), st.text(), st.text()
)
def test_no_text_keeps_a_key(key: str, before: str, after: str) -> None:
    assert key not in redact(before + key + after, key).replace("[key]", "\0")


def test_text_without_the_key_stays_as_it_is() -> None:
    assert redact("no such model", KEY) == redact("no such model", None) == "no such model"


# -- Prefect secrets ---------------------------------------------------------------------------


def test_a_prefect_secret_is_read_and_one_that_is_not_there_is_named(prefect_server: str) -> None:
    from prefect.blocks.system import Secret

    from tasks.secrets import read_secret

    Secret(value=KEY).save("planted-key", overwrite=True)
    assert read_secret("planted-key") == KEY
    with pytest.raises(RecipeError, match=r"no Prefect secret block 'no-such-key'.*Create"):
        read_secret("no-such-key")


# -- a planted key, and an endpoint that tells everyone ------------------------------------------


def _everything_prefect_keeps() -> str:
    """Return artifacts, logs, states and parameters of all runs so far, as one text."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        kept: list[Any] = [
            *client.read_artifacts(),
            *client.read_flow_runs(),
            *client.read_task_runs(),
        ]
    return "\n".join(item.model_dump_json() for item in kept)


def _answer(raw: dict[str, Any]) -> Any:
    """Return the state of the flow `answer_prompts` on a recipe."""
    from flows.answer_prompts import answer_prompts

    recipe = load(raw)
    names = ("task", "data", "teacher", "store", "execution")
    return answer_prompts(**{name: getattr(recipe, name) for name in names}, return_state=True)


def _quoting(headers: dict[str, str]) -> str:
    """Return an error that quotes the key, also as a URL does."""
    key = headers["Authorization"].removeprefix("Bearer ")
    return f"refused: {headers['Authorization']} {urllib.parse.quote(key, safe='')}"


def _refusal(quoted: str) -> Reply:
    return Reply(status=400, error=quoted)


# What else an endpoint may say is tried without Prefect in test_bad_endpoints.py.
@pytest.mark.parametrize(
    ("fault", "always"),
    [(lambda quoted: Reply(status=500, error=quoted), True), (_refusal, False)],
    ids=["500 always", "400 at times"],
)
def test_a_planted_key_is_nowhere(
    fault: Callable[[str], Reply],
    always: bool,
    tmp_path: Path,
    prefect_server: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PLANTED_KEY", KEY)
    texts = _traces(fault, always, {"api_key_env": "PLANTED_KEY"}, tmp_path, caplog, capfd)
    _assert_clean(texts)


def test_a_planted_secret_is_nowhere(
    tmp_path: Path,
    prefect_server: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from prefect.blocks.system import Secret

    Secret(value=KEY).save("planted-key", overwrite=True)
    named = {"api_key_secret": "planted-key"}
    _assert_clean(_traces(_refusal, False, named, tmp_path, caplog, capfd))


def _traces(
    fault: Callable[[str], Reply],
    always: bool,
    named: dict[str, str],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> dict[str, str]:
    """Return all that a run leaves behind whose endpoint quotes the key in its errors."""

    def respond(body: dict[str, Any]) -> Reply:
        seen = endpoint.headers[-1]
        number = sum(r["messages"] == body["messages"] for r in endpoint.requests)
        is_fault = always or (len(endpoint.requests) % 10 == 5 and number == 1)
        return fault(_quoting(seen)) if is_fault else scripted_teacher(body)

    caplog.set_level(logging.DEBUG)
    with StubEndpoint(respond=respond) as endpoint:
        limits = {"max_attempts": 2, "max_outage_s": 1.0, "timeout_s": 5.0}
        raw = make_recipe(folder, endpoint.base_url, teacher=named | limits)
        raw["data"]["train"]["max_rows"] = 60
        state = _answer(raw)
        said = repr(state.result(raise_on_failure=False)) + str(state.message)
    assert any(KEY in headers["Authorization"] for headers in endpoint.headers)

    output = capfd.readouterr()
    texts = {
        "error": said,
        "log": caplog.text,
        "output": output.out + output.err,
        "Prefect": _everything_prefect_keeps(),
    }
    files = [file for file in (folder / "store").rglob("*") if file.is_file()]
    assert files
    return texts | {str(file): file.read_bytes().decode("latin-1") for file in files}


def _assert_clean(texts: dict[str, str]) -> None:
    for form in keys._forms(KEY):
        for where, text in texts.items():
            assert form not in text and json.dumps(form)[1:-1] not in text, where
