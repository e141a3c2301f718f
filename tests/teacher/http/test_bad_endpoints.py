"""Endpoints and prompts that misbehave: the row or the run says how, and nothing finished is lost.

Tests of the key plant one that JSON and URLs write otherwise.
"""

import json
import logging
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distillery.data.loading import load_prompts
from distillery.data.validation import validate_prompts
from distillery.storage.store import Store
from distillery.teacher.http import keys
from schemas.data import ColumnMap, DataSpec, FileSource
from schemas.errors import TeacherError
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef
from schemas.teacher import OpenAITeacher
from tests.fixtures_generation import (
    TASK,
    answer,
    contents,
    endpoint,
    is_sealed,
    ledger_rows,
    rows_of,
    run_all,
    train_prompts,
    write_prompts,
)
from tests.flying_time import let_time_fly
from tests.ports import free_port
from tests.stub_endpoint import STANDS_STILL, Reply, StubEndpoint
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("quick_retries")

KEY = "sk-planted/0123+4567=="
HTML = Reply(body="<html><h1>Welcome to   nginx!</h1></html>")
NO_COMPLETION = "a body that is not a chat completion: <html><h1>Welcome to nginx!</h1></html>"
HUGE = Reply(body=b" " * (5 * 2**20))


def content_of(body: dict[str, Any]) -> str:
    text: str = body["messages"][0]["content"]
    return text


def only_q1(bad: Reply) -> Callable[[dict[str, Any]], Reply]:
    return lambda body: bad if content_of(body) == "q1" else Reply()


# -- bodies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        pytest.param(HTML, NO_COMPLETION, id="html"),
        pytest.param(Reply(body=b""), "a body that is not a chat completion: ", id="nothing"),
        pytest.param(Reply(body=b"\xff\xfe\x00"), "not a chat completion: ", id="no text"),
        pytest.param(Reply(body="[" * 100_000), "not a chat completion: [[[", id="deep"),
        pytest.param(Reply(body="null"), "not a chat completion: null", id="null"),
        pytest.param(Reply(choices=[]), "not a chat completion: {", id="no choices"),
        pytest.param(Reply(choices=[{"index": 0}]), "not a chat completion: {", id="no message"),
        pytest.param(Reply(text=["a"]), "not a chat completion: {", id="text of parts"),  # type: ignore[arg-type]
        pytest.param(
            Reply(body='{"error": {"message": "overloaded"}}'),
            "a body that is not a chat completion: overloaded",
            id="an error as 200",
        ),
        pytest.param(Reply(close_after=20), "connection lost (", id="closes within the body"),
        pytest.param(Reply(close_after=0), "connection lost (", id="closes before the body"),
        pytest.param(Reply(endless=b'{"choices": ['), "no response within 120 s", id="endless"),
        pytest.param(Reply(endless=b" " * 2**20), "a body of more than 4,", id="endless and fast"),
        pytest.param(HUGE, "a body of more than 4,", id="huge"),
    ],
)
def test_row_whose_body_is_broken_says_so_and_the_others_are_kept(
    store: StoreSpec, monkeypatch: pytest.MonkeyPatch, bad: Reply, told: str
) -> None:
    prompts = train_prompts(store, 4)
    with StubEndpoint(respond=only_q1(bad)) as stub, monkeypatch.context() as patched:
        let_time_fly(patched, hangs=lambda content: content == "q1" and "within" in told)
        teacher = endpoint(stub, max_attempts=2)
        with pytest.raises(TeacherError, match=r"1 of 4 prompts .* \['p1'\].*The 3 finished"):
            run_all(prompts, teacher, store)
        assert contents(stub) == {"q0": 1, "q1": 2, "q2": 1, "q3": 1}
        row = ledger_rows(prompts, teacher, store)["p1"]
        assert (row.state, row.attempts, row.text) == ("failed", 2, "")
        assert row.error is not None and told in row.error
        assert len(row.error) < 500
    with StubEndpoint() as stub:
        result = run_all(prompts, endpoint(stub), store)
        assert contents(stub) == {"q1": 1}
    assert result.manifest.counts == {"ok": 4, "from_ledger": 3, "asked": 1}


def test_body_that_broke_once_is_asked_for_again(store: StoreSpec) -> None:
    prompts = train_prompts(store, 8)
    broken = [HTML, Reply(close_after=9), HUGE, Reply(endless=b" " * 2**20), Reply(reset=True)]
    with StubEndpoint([Reply(), *broken]) as stub:
        result = run_all(prompts, endpoint(stub), store)
        assert stub.num_requests == 8 + 5
    assert result.manifest.counts["ok"] == 8
    facts: Any = result.manifest.facts["generation"]
    assert facts["retries"] == 5


def test_endpoint_that_only_sends_html_ends_the_run_with_its_words(store: StoreSpec) -> None:
    prompts = train_prompts(store, 100)
    with StubEndpoint(default=HTML) as stub:
        teacher = endpoint(stub, max_attempts=50, max_outage_s=0.5)
        with pytest.raises(TeacherError) as caught:
            run_all(prompts, teacher, store)
        assert stub.num_requests < 20
    assert "has answered nothing for more than teacher.max_outage_s=0.5" in str(caught.value)
    assert "Welcome to nginx!" in str(caught.value)


def test_another_models_name_is_warned_of_once_and_recorded(
    store: StoreSpec, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = train_prompts(store, 6)

    def respond(body: dict[str, Any]) -> Reply:
        return Reply(model="small" if content_of(body) in ("q1", "q4") else "org/big")

    with StubEndpoint(respond=respond) as stub:
        teacher = endpoint(stub)
        result = run_all(prompts, teacher, store)
    warned = [record.getMessage() for record in caplog.records if "answers as" in record.message]
    assert len(warned) == 1
    assert "answers as model 'small', not as teacher.model='big'" in warned[0]
    facts: Any = result.manifest.facts["generation"]
    assert facts["models_reported"] == ["org/big", "small"]
    assert result.manifest.counts["ok"] == 6
    assert ledger_rows(prompts, teacher, store)["p4"].model_reported == "small"


def choice(index: int | None, text: str | None, reason: str = "stop") -> dict[str, Any]:
    said = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return said if index is None else {"index": index, **said}


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": None, "completion_tokens": None},
        {"prompt_tokens": "7", "completion_tokens": 2.5},
        {"prompt_tokens": -7, "completion_tokens": -2},
        {"prompt_tokens": True, "completion_tokens": False},
    ],
    ids=["missing", "empty", "null", "of other types", "negative", "booleans"],
)
def test_usage_that_says_nothing_is_estimated_and_marked_unknown(
    store: StoreSpec, usage: dict[str, Any] | None
) -> None:
    prompts = train_prompts(store, 2, prefix="x" * 39)
    with StubEndpoint(default=Reply(text="y" * 40, usage=usage)) as stub:
        teacher = endpoint(stub)
        result = run_all(prompts, teacher, store)
    written = rows_of(result, store)
    assert {(r["prompt_tokens"], r["completion_tokens"]) for r in written} == {(0, 0)}
    row = ledger_rows(prompts, teacher, store)["p0"]
    assert (row.prompt_tokens, row.completion_tokens) == (None, None)
    assert (row.billed_prompt_tokens, row.billed_completion_tokens) == (10, 10)
    facts: Any = result.manifest.facts["generation"]
    assert (facts["prompt_tokens"], facts["completion_tokens"]) == (20, 20)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\0b", "a\ufffdb"),
        ("half \ud83d", "half \ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\u2028\r\n\x1b[0m|", "\x1b[0m|"),
        ("z" * 2**20, "z" * 2**20),
    ],
    ids=["nul", "half an emoji", "emoji", "control", "1 MB"],
)
def test_odd_text_of_a_response_is_kept_as_far_as_it_can_be(
    store: StoreSpec, text: str, kept: str
) -> None:
    prompts = train_prompts(store, 2)
    with StubEndpoint(default=Reply(text=text, model="big\0\ud83d")) as stub:
        result = run_all(prompts, endpoint(stub), store)
    written = [(row["state"], row["response"]) for row in rows_of(result, store)]
    assert written == [("ok", kept)] * 2


# -- prompts ---------------------------------------------------------------------------------------


def test_prompt_longer_than_the_context_is_refused_with_the_endpoints_words(
    store: StoreSpec,
) -> None:
    words = "This model's maximum context length is 8 tokens. Your messages have 99."
    prompts = train_prompts(store, 3)
    with StubEndpoint(respond=only_q1(Reply(status=400, error=words))) as stub:
        teacher = endpoint(stub)
        result = run_all(prompts, teacher, store)
        assert stub.num_requests == 3
    assert [row["state"] for row in rows_of(result, store)] == ["ok", "refused", "ok"]
    assert ledger_rows(prompts, teacher, store)["p1"].error == f"status 400: {words}"


ODD = {
    "nul": "before\0after",
    "emoji": "smile \U0001f600",
    "control": "a\x1b[31m\u2028\r\n\x7fb",
    "large": "word " * (2**20 // 5),
    "quotes": '"}]\\" \\u0000 {braces}',
}


def write_data(path: Path, rows: list[str]) -> DataSpec:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    columns = ColumnMap(id="id", messages="messages" if "messages" in rows[0] else None)
    return DataSpec(
        train=FileSource(path=str(path), columns=columns),
        validation_fraction=0.3,
        max_invalid_fraction=0.9,
    )


def valid_prompts(data: DataSpec, store: StoreSpec) -> tuple[DatasetRef, dict[int, str]]:
    """Return the prompts of a file, and why which of them were put aside."""
    execution = ExecutionSpec()
    loaded = load_prompts(TASK, data, store, execution).dataset("prompts")
    result = validate_prompts(loaded, TASK, data, store, execution)
    batches = Store(store.root).batches(result.dataset("quarantined"))
    aside = {row["source_row"]: row["detail"] for batch in batches for row in batch.to_pylist()}
    return result.dataset("prompts"), aside


@pytest.mark.parametrize("as_messages", [False, True], ids=["text", "messages"])
def test_odd_prompts_go_all_the_way_to_parquet(
    store: StoreSpec, tmp_path: Path, as_messages: bool
) -> None:
    def as_row(name: str, text: str) -> str:
        if not as_messages:
            return json.dumps({"id": name, "text": text})
        messages = json.dumps([{"role": "user", "content": text}])
        return json.dumps({"id": name, "messages": messages})

    plain = {f"plain{n}": f"plain {n}" for n in range(20)}  # some of them are for validation
    surrogate = as_row("half", "half \ud83d of an emoji")
    rows = [surrogate, *(as_row(*row) for row in (plain | ODD).items())]
    prompts, aside = valid_prompts(write_data(tmp_path / "train.jsonl", rows), store)
    assert list(aside) == [1], "half an emoji is put aside and nothing else"

    def respond(body: dict[str, Any]) -> Reply:
        return Reply(text=f"{len(content_of(body))} characters")

    with StubEndpoint(respond=respond) as stub:
        result = run_all(prompts, endpoint(stub), store)
        assert set(contents(stub)) == {*plain.values(), *ODD.values()}
    written = {row["prompt_id"]: row for row in rows_of(result, store)}
    assert set(written) == {*plain, *ODD}
    for name, text in ODD.items():
        assert json.loads(written[name]["messages"])[0]["content"] == text
        assert written[name]["response"] == f"{len(text)} characters"


# -- the key ---------------------------------------------------------------------------------------


def everywhere(store: StoreSpec, prompts: DatasetRef, teacher: OpenAITeacher) -> str:
    """Return all that a run has left behind, as one text."""
    said = "\n".join(map(repr, ledger_rows(prompts, teacher, store).values()))
    files = [file for file in Path(store.root).rglob("*") if file.is_file()]
    return said + "\n".join(file.read_bytes().decode("latin-1") for file in files)


def quoting(make: Callable[[str], Reply]) -> Callable[[dict[str, Any]], Reply]:
    """Answer q0 well, and the others with the key in every way in which one may write it."""
    forms = [f"Bearer {KEY}", *keys._forms(KEY)]

    def respond(body: dict[str, Any]) -> Reply:
        return Reply() if content_of(body) == "q0" else make(" ".join(forms))

    return respond


def escaped(quoted: str) -> Reply:
    """A completion in JSON that writes / as \\/, as PHP does, and + as a number."""
    body = json.dumps({"choices": [choice(0, quoted)], "model": quoted})
    return Reply(body=body.replace("/", "\\/").replace("+", "\\u002b"))


@pytest.mark.parametrize(
    "make",
    [
        lambda quoted: Reply(text=quoted),
        escaped,
        lambda quoted: Reply(model=quoted, finish_reason=quoted),
        lambda quoted: Reply(choices=[{"message": quoted}]),
        lambda quoted: Reply(body=f"<pre>{quoted}</pre>"),
        lambda quoted: Reply(status=400, error=quoted),
        lambda quoted: Reply(status=400, body=json.dumps({"error": quoted}).replace("/", "\\/")),
        lambda quoted: Reply(status=400, body="x" * 270 + f" Bearer {KEY}"),
        lambda quoted: Reply(status=401, error=quoted),
        lambda quoted: Reply(status=429, error=quoted, headers={"Retry-After": "9999"}),
        lambda quoted: Reply(status=500, error=quoted),
        lambda quoted: Reply(text="not JSON", finish_reason="content_filter", model=quoted),
    ],
    ids=[
        *("a response", "an escaped response", "its model and reason", "a broken completion"),
        *("html", "400", "an escaped 400", "400, cut within it", "401", "429", "500", "filtered"),
    ],
)
def test_planted_key_is_nowhere(
    make: Callable[[str], Reply],
    store: StoreSpec,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PLANTED_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    prompts = train_prompts(store, 3)
    with StubEndpoint(respond=quoting(make)) as stub:
        teacher = endpoint(stub, api_key_env="PLANTED_KEY", max_attempts=2)
        try:
            said = repr(run_all(prompts, teacher, store))
        except TeacherError:
            said = traceback.format_exc()
        assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"
    left = said + caplog.text + everywhere(store, prompts, teacher)
    assert "q0" in left
    assert KEY[:8] not in left
    for form in {KEY, *keys._forms(KEY)}:
        assert form not in left and json.dumps(form)[1:-1] not in left
        assert form.replace("/", "\\/") not in left


@pytest.mark.parametrize("key", ["ollama", "prompt_tokens", "1", "EMPTY", "lm-studio"])
def test_key_that_is_a_common_word_leaves_responses_as_they_are(
    store: StoreSpec, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("PLANTED_KEY", key)
    prompts = train_prompts(store, 1)
    text = "EMPTY 1: ollama, like lm-studio, says prompt_tokens"
    with StubEndpoint(default=Reply(text=text)) as stub:
        (row,) = rows_of(run_all(prompts, endpoint(stub, api_key_env="PLANTED_KEY"), store), store)
    assert (row["state"], row["prompt_tokens"], row["completion_tokens"]) == ("ok", 7, 2)
    assert row["response"] == text


# -- going away ------------------------------------------------------------------------------------


def test_wait_that_is_asked_for_beyond_the_outage_borne_ends_the_run(store: StoreSpec) -> None:
    prompts = train_prompts(store, 8)
    daily = Reply(status=429, headers={"Retry-After": "3600"}, error="daily quota reached")
    with StubEndpoint([Reply()] * 3, default=daily) as stub:
        teacher = endpoint(stub, concurrency=1, max_outage_s=10)
        with pytest.raises(TeacherError) as caught:
            run_all(prompts, teacher, store)
        assert stub.num_requests == 4, "nothing was waited for"
        assert "lets nothing in for 3,600 s ('status 429: daily quota reached')" in str(
            caught.value
        )
        assert "Responses so far are kept" in str(caught.value)
        stub.default = Reply()
        result = run_all(prompts, teacher, store)
    assert result.manifest.counts == {"ok": 8, "from_ledger": 3, "asked": 5}


def goes_away(store: StoreSpec, teacher_of: Callable[[StubEndpoint], OpenAITeacher]) -> Any:
    """Return the run, begun in a thread, whose endpoint closes its port midway."""
    prompts = train_prompts(store, 60)
    errors: list[BaseException | None] = []

    def run() -> None:
        try:
            answer(prompts, teacher, store)
        except BaseException as error:
            errors.append(error)
        else:
            errors.append(None)

    def respond(_: dict[str, Any]) -> Reply:
        return Reply() if stub.num_requests <= 12 else STANDS_STILL

    with StubEndpoint(respond=respond, port=free_port()) as stub:
        teacher = teacher_of(stub)
        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: stub.num_requests == 12 + teacher.concurrency)
    return prompts, teacher, stub, thread, errors


@pytest.mark.parametrize(
    "fault", [None, Reply(status=503), Reply(reset=True)], ids=["refuses", "503", "resets"]
)
def test_endpoint_that_comes_back_in_time_loses_no_row(
    store: StoreSpec, fault: Reply | None
) -> None:
    prompts, teacher, stub, thread, errors = goes_away(
        store, lambda stub: endpoint(stub, concurrency=4, max_attempts=6)
    )
    sent = contents(stub)
    if fault is not None:  # a proxy answers for it
        with StubEndpoint(default=fault, port=stub.port) as proxy:
            wait_until(lambda: proxy.num_requests >= 5)
    else:
        time.sleep(0.3)
    with StubEndpoint(port=stub.port) as back:
        thread.join(60)
        assert not thread.is_alive()
        assert errors == [None]
        asked_again = [content for content in contents(back) if content in sent]
        assert len(asked_again) <= 4, "more than what was in flight was asked again"
        assert run_all(prompts, teacher, store).manifest.counts["ok"] == 60


def test_endpoint_that_goes_away_for_good_ends_the_run_and_what_is_there_is_kept(
    store: StoreSpec,
) -> None:
    prompts, teacher, stub, thread, errors = goes_away(
        store, lambda stub: endpoint(stub, concurrency=4, max_outage_s=0.5)
    )
    thread.join(60)
    assert not thread.is_alive()
    (error,) = errors
    assert isinstance(error, TeacherError)
    assert "has answered nothing for more than teacher.max_outage_s=0.5" in str(error)
    rows = ledger_rows(prompts, teacher, store)
    assert {row.state for row in rows.values()} == {"ok"}
    assert len(contents(stub)) - 4 <= len(rows) < 60
    assert not is_sealed(prompts, teacher, store)
    with StubEndpoint(port=stub.port) as back:
        result = run_all(prompts, teacher, store)
        assert back.num_requests == 60 - len(rows)
    assert result.manifest.counts["ok"] == 60


def test_address_of_something_else_ends_the_run_at_once(store: StoreSpec) -> None:
    prompts = write_prompts(store, [("train", "q")])
    with StubEndpoint() as stub:
        teacher = endpoint(stub, base_url=stub.base_url + "/v2")
        with pytest.raises(TeacherError, match=r"status 404.*Correct teacher\.model \('big'\)"):
            run_all(prompts, teacher, store)
