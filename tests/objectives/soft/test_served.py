"""Soft targets from a served vLLM: the right numbers, whatever the server does meanwhile."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillery.data.chat import Message
from distillery.objectives.soft import vllm_client
from distillery.objectives.soft.served import ServedScorer, check_served
from distillery.objectives.soft.stored import ScoredRow, ScoringRow
from distillery.objectives.soft.vllm_api import (
    LEAST_REST,
    CannotShow,
    log_rest,
    read_probabilities,
    read_tokens,
    tokenize_url,
)
from distillery.teacher.http.endpoint import Endpoint
from distillery.teacher.http.replies import PassingFault
from schemas.errors import DistilleryError, RecipeError, TeacherError, TrainingError
from schemas.objectives import SoftTargets
from schemas.teacher import OpenAITeacher
from tests.fixtures_models import make_tiny_model
from tests.stub_endpoint import Reply
from tests.stub_vllm import LOG_PROBS, StubVllm, render

K = 8
KEY = "sk-planted-7f3a9c-and-some-more"


def rows_of(count: int) -> list[ScoringRow]:
    return [
        ScoringRow(f"p{n}", "train", [Message(role="user", content=f"q{n}")], f"answer {n} é")
        for n in range(count)
    ]


def score(teacher: OpenAITeacher, rows: list[ScoringRow], k: int = K) -> list[ScoredRow]:
    scorer = ServedScorer(teacher, SoftTargets(k=k), backoff_s=0.01)
    try:
        return list(scorer.score(rows))
    finally:
        scorer.close()


def check(teacher: OpenAITeacher, **spec: Any) -> None:
    (row,) = rows_of(1)
    check_served(teacher, SoftTargets(**{"k": K, **spec}), row, [*row.response.encode(), 258])


def assert_right(scored: list[ScoredRow], rows: list[ScoringRow], k: int = K) -> None:
    """Every row is there, in order, with what the stub's model gives by a dense softmax."""
    assert [row.prompt_id for row in scored] == [row.prompt_id for row in rows]
    for got, row in zip(scored, rows, strict=True):
        prompt = render([{"role": m["role"], "content": m["content"]} for m in row.messages], True)
        answer = [*row.response.encode(), 258]
        assert list(got.response_ids) == answer
        dense_NV = LOG_PROBS[[prompt[-1], *answer[:-1]]]
        ids_NK = np.argsort(-dense_NV, axis=1)[:, :k]
        assert (got.ids_NK == ids_NK).all()
        best_NK = np.take_along_axis(dense_NV, ids_NK, axis=1)
        np.testing.assert_allclose(got.log_probs_NK, best_NK, atol=1e-5)
        rest_N = np.log1p(-np.exp(best_NK).sum(1))
        np.testing.assert_allclose(got.log_rest_N, rest_N, atol=1e-3)


# -- the numbers ---------------------------------------------------------------------------------


def test_scores_are_the_servers_probabilities_at_the_response_in_order() -> None:
    rows = rows_of(40)
    with StubVllm() as server:
        assert_right(score(server.spec(), rows), rows)


def test_meta_claims_nothing_that_a_server_does_not_tell() -> None:
    with StubVllm() as server:
        scorer = ServedScorer(server.spec(), SoftTargets(k=K))
        scorer.close()
    meta = scorer.meta
    assert meta.tokenizer_hash is None
    assert (meta.distillation_temperature, meta.k) == (1.0, K)


def completion(*positions: dict[int, tuple[float, int]]) -> bytes:
    """Return a reply with one choice; an entry is (log-probability, rank)."""
    shown = [
        {
            token: {"logprob": p, "rank": rank, "decoded_token": "t"}
            for token, (p, rank) in at.items()
        }
        for at in positions
    ]
    return json.dumps({"choices": [{"index": 0, "prompt_logprobs": [None, *shown]}]}).encode()


def test_the_prompts_own_token_is_left_out_unless_it_is_among_the_k_best() -> None:
    outside = {7: (-5.0, 90), 1: (-1.0, 1), 2: (-2.0, 2)}
    inside = {2: (-2.0, 2), 1: (-1.0, 1)}
    found = read_probabilities(completion(outside, inside), [0, 7, 2], 1, 2)
    assert found.ids_NK.tolist() == [[1, 2], [1, 2]]
    assert found.log_probs_NK.tolist() == [[-1.0, -2.0], [-1.0, -2.0]]


def test_rest_of_the_mass_is_finite_where_rounding_leaves_none() -> None:
    above_1 = np.array([[0.0, -16.0], [1e-6, -20.0]], np.float32)
    assert log_rest(above_1).tolist() == [np.float32(np.log(LEAST_REST))] * 2
    spread = np.log(np.array([[0.5, 0.3], [0.2, 0.1]], np.float32))
    np.testing.assert_allclose(np.exp(log_rest(spread)), [0.2, 0.7], rtol=1e-6)


@pytest.mark.parametrize("broken", [np.log(2.0), np.nan])
def test_numbers_that_are_not_log_probabilities_are_refused(broken: float) -> None:
    with pytest.raises(CannotShow, match="--logprobs-mode raw_logprobs"):
        log_rest(np.array([[broken, -1.0]], np.float32))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"choices": null}',
        b'{"choices": [{"index": 0, "prompt_logprobs": 3}]}',
        b'{"choices": [{"index": 0, "prompt_logprobs": [null, null]}]}',
        b'{"choices": [{"index": 0, "prompt_logprobs": [null, {"5": null}]}]}',
        b'{"choices": [{"index": 0, "prompt_logprobs": [null, {"5": {"logprob": -1}}]}]}',
        completion({2**40: (-1.0, 1), 1: (-1.0, 2)}),
        completion({1: (-1.0, 1), 2: (-2.0, 2)}),  # without the token that was sent
        completion({5: (-1.0, 1), 2: (-2.0, 2)}, {5: (-1.0, 1), 2: (-2.0, 2)}),
    ],
)
def test_a_body_that_does_not_answer_the_request_is_asked_for_again(content: bytes) -> None:
    with pytest.raises(PassingFault):
        read_probabilities(content, [4, 5], 1, 2)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"tokens": []}', b'{"tokens": ["a"]}'])
def test_a_body_without_token_ids_is_asked_for_again(content: bytes) -> None:
    with pytest.raises(PassingFault, match="without token ids"):
        read_tokens(content)


# -- what does not fit, and what passes -----------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        [
            Reply(status=503),
            Reply(status=429, headers={"Retry-After": "0"}),
            Reply(reset=True),
            Reply(status=500, error="out of memory"),
            Reply(body="<html>"),
        ],
        [Reply(close_after=20), Reply(delay_s=1.0), Reply(endless=b" " * 2**16)],
    ],
)
def test_passing_faults_of_a_row_are_asked_again(
    script: list[Reply], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_client, "_SLACK_BYTES", 2**17)
    rows = rows_of(1)
    with StubVllm(script=script) as server:
        assert_right(score(server.spec(max_attempts=5, timeout_s=0.3), rows), rows)
    assert len(server.completions) == 1 + len(script)


def test_a_fault_that_does_not_pass_ends_the_scoring_and_names_the_row() -> None:
    with (
        StubVllm(fail=lambda body: Reply(status=503, error="loading")) as server,
        pytest.raises(TeacherError, match=r"'p0' in 3 attempts.*loading"),
    ):
        score(server.spec(max_attempts=3), rows_of(1))
    assert len(server.completions) == 3


def test_a_row_that_is_refused_is_named_with_what_the_server_said() -> None:
    poisoned = render([{"role": "user", "content": "q3"}], True)

    def fail(body: dict[str, Any]) -> Reply | None:
        hit = body["prompt"][: len(poisoned)] == poisoned
        return Reply(status=400, error="Token id 9999 is out of vocabulary") if hit else None

    with (
        StubVllm(fail=fail) as server,
        pytest.raises(TeacherError, match=r"'p3'.*Token id 9999 is out of vocabulary"),
    ):
        score(server.spec(), rows_of(6))


def test_a_server_that_is_not_there_ends_the_scoring() -> None:
    with StubVllm() as server:
        teacher = server.spec(max_attempts=2)
    with pytest.raises(TeacherError, match=r"'p0' in 2 attempts"):
        score(teacher, rows_of(2))


def test_a_rate_limit_is_waited_for_no_longer_than_the_recipe_says() -> None:
    limited = Reply(status=429, headers={"Retry-After": "60"})
    with StubVllm(fail=lambda body: limited) as server, pytest.raises(TeacherError, match="max_ou"):
        score(server.spec(max_outage_s=1), rows_of(1))


def test_rows_longer_than_the_servers_context_are_left_out() -> None:
    rows = rows_of(3)
    rows[1] = rows[1]._replace(response="x" * 200)
    with StubVllm(max_model_len=100) as server:
        assert_right(score(server.spec(), rows), [rows[0], rows[2]])


def test_a_row_that_fills_the_context_leaves_no_room_for_the_token_that_must_be_written() -> None:
    rows = rows_of(1)
    num_tokens = (
        len(render([{"role": "user", "content": "q0"}], True)) + len("answer 0 é".encode()) + 1
    )
    with StubVllm(max_model_len=num_tokens) as server:
        assert score(server.spec(), rows) == []
    with StubVllm(max_model_len=num_tokens + 1) as server:
        assert_right(score(server.spec(), rows), rows)


def test_a_consumer_that_stops_early_leaves_nothing_under_way() -> None:
    with StubVllm() as server:
        scorer = ServedScorer(server.spec(), SoftTargets(k=K))
        with contextlib.closing(scorer.score(rows_of(500))) as scores:
            first = next(scores)
        scorer.close()
        assert first.prompt_id == "p0"
        assert len(server.completions) < 50


# -- what is under way at once ---------------------------------------------------------------------


def test_no_more_requests_are_in_flight_than_the_teacher_allows() -> None:
    with StubVllm() as server:
        score(server.spec(concurrency=2), rows_of(30))
        assert server.stub.max_in_flight <= 2


# -- the server's tokens ---------------------------------------------------------------------------


def test_messages_are_rendered_as_for_a_response() -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "top_k": 5, "tools": None}
    with StubVllm() as server:
        score(server.spec(extra_body=extra), rows_of(1))
        prompt, answered = (body for body in server.stub.requests if "messages" in body)
    assert prompt == {
        "model": "big",
        "messages": [{"role": "user", "content": "q0"}],
        "add_generation_prompt": True,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert answered["messages"][-1] == {"role": "assistant", "content": "answer 0 é"}
    assert answered["add_generation_prompt"] is False


def test_a_template_that_renders_the_prompt_differently_is_refused() -> None:
    def template(messages: list[dict[str, str]], follows: bool) -> list[int]:
        return [*render(messages, follows)[:-1], 9 * follows, 257]

    with (
        StubVllm(template=template) as server,
        pytest.raises(TrainingError, match="renders the prompt of prompt_id 'p0'"),
    ):
        score(server.spec(), rows_of(1))


@pytest.mark.parametrize(
    "template",
    [
        lambda m, follows: [t for t in render(m, follows) if t != ord("w")],  # changes the response
        lambda m, follows: render(m, True) if follows else render(m, False)[:-1],  # has no end
    ],
)
def test_a_template_that_would_score_other_tokens_is_refused_beforehand(template: Any) -> None:
    with (
        StubVllm(template=template) as server,
        pytest.raises(RecipeError, match="reads the response 'answer 0 é' as the tokens"),
    ):
        check(server.spec())
    assert server.completions == []


@pytest.mark.parametrize(
    ("base_url", "root"),
    [("http://h:1/v1", ""), ("http://h:1/v1/", ""), ("http://h:1/team/v1", "/team")],
)
def test_tokens_are_asked_for_at_the_root(base_url: str, root: str) -> None:
    endpoint = Endpoint(OpenAITeacher(model="m", base_url=base_url))
    assert str(tokenize_url(endpoint)) == f"http://h:1{root}/tokenize"


# -- servers that cannot ---------------------------------------------------------------------------


def test_a_server_that_can_is_asked_for_a_few_tokens_only() -> None:
    with StubVllm() as server:
        check(server.spec())
    assert server.stub.num_requests == 3
    assert len(server.completions[0]["prompt"]) < 25


def without_probabilities(body: dict[str, Any]) -> Reply:
    return Reply(choices=[{"index": 0, "text": "x"}])


INCAPABLE = [
    ({}, 64, r"shows at most 20 tokens .*k=64.*'--max-logprobs 64', or lower .* to 20"),
    ({"paths": ["/v1/completions"]}, K, r"has no /tokenize \('status 404"),
    ({"paths": ["/tokenize"]}, K, r"has no /v1/completions \('status 404"),
    (
        {"fail": without_probabilities},
        K,
        "without prompt_logprobs",
    ),
    ({"shown": LOG_PROBS + 9}, K, "not log-probabilities"),
]


@pytest.mark.parametrize(("settings", "k", "reason"), INCAPABLE)
def test_a_server_that_cannot_show_probabilities_is_refused_with_the_reason(
    settings: dict[str, Any], k: int, reason: str
) -> None:
    with StubVllm(**settings) as server:
        with pytest.raises(RecipeError, match=reason) as probed:
            check(server.spec(), k=k)
        with pytest.raises(TeacherError, match=reason):
            score(server.spec(), rows_of(3), k)
    assert len(str(probed.value)) < 320


def test_a_server_that_refuses_tokens_as_a_prompt_is_no_source() -> None:
    refuses = Reply(status=400, error="prompt must be a string")
    with (
        StubVllm(fail=lambda body: refuses) as server,
        pytest.raises(RecipeError, match=r"refuses to show.*prompt must be a string"),
    ):
        check(server.spec())


def test_a_server_that_is_down_is_not_taken_for_one_that_cannot() -> None:
    with StubVllm() as server:
        teacher = server.spec(max_attempts=1)
    with pytest.raises(TeacherError, match="in 1 attempts"):
        check(teacher)


@pytest.mark.parametrize(
    ("teacher", "spec", "reason"),
    [
        ({"provider": "openai"}, {}, r"teacher.provider 'openai' is not vLLM"),
        ({}, {"distillation_temperature": 2.0}, r"distillation_temperature is 2, but .* T = 1"),
    ],
)
def test_what_no_server_gives_is_refused_before_anything_is_sent(
    teacher: dict[str, Any], spec: dict[str, Any], reason: str
) -> None:
    with StubVllm() as server, pytest.raises(RecipeError, match=reason):
        check(server.spec(**teacher), **spec)
    assert server.stub.num_requests == 0


# -- the key ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [302, 400, 401, 404, 500])
def test_the_key_is_sent_and_reaches_no_error_and_no_log(
    status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("BIG_KEY", KEY)
    quoted = Reply(status=status, error=f"no: Bearer {KEY}")
    with StubVllm(fail=lambda body: quoted) as server:
        teacher = server.spec(api_key_env="BIG_KEY", max_attempts=1)
        with pytest.raises(DistilleryError) as scored:
            score(teacher, rows_of(1))
        with pytest.raises(DistilleryError) as probed:
            check(teacher)
    assert {headers["Authorization"] for headers in server.stub.headers} == {f"Bearer {KEY}"}
    for caught in (scored, probed):
        assert "no: Bearer [key]" in str(caught.value)
        assert KEY not in repr(caught.getrepr(chain=True, showlocals=False))
    assert KEY not in caplog.text


# -- the real one ----------------------------------------------------------------------------------

VLLM = os.environ.get("DISTILLERY_VLLM")


@pytest.fixture
def vllm(tmp_path: Path) -> Iterator[tuple[OpenAITeacher, "subprocess.Popen[bytes]"]]:
    """A teacher served by a real vLLM, and its process."""
    assert VLLM is not None
    model = make_tiny_model(tmp_path / "model", hidden_size=64, max_length=512)  # heads of 32
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = "--host 127.0.0.1 --max-model-len 256 --max-logprobs 64 --dtype float32"
    command = [VLLM, "serve", str(model), "--port", str(port), *settings.split()]
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (tmp_path / "vllm.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=os.environ | own, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/health", process)
        base_url = f"http://127.0.0.1:{port}/v1"
        yield OpenAITeacher(model=str(model), base_url=base_url, max_attempts=2), process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_healthy(url: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        assert process.poll() is None, "vLLM ended while it started"
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError("vLLM did not start within 5 minutes")


@pytest.mark.slow
@pytest.mark.skipif(VLLM is None, reason="DISTILLERY_VLLM names no vllm executable")
def test_a_real_vllm_gives_what_a_plain_forward_pass_gives(
    vllm: tuple[OpenAITeacher, "subprocess.Popen[bytes]"],
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from distillery.models.loading import ModelFiles

    teacher, process = vllm
    chat_format, probe = ModelFiles(teacher.model).chat_format(), rows_of(1)[0]
    asked = (probe, chat_format.row(probe.messages, probe.response).response_ids)
    check_served(teacher, SoftTargets(k=64), *asked)
    with pytest.raises(RecipeError, match=r"at most 64 tokens .*k=65"):
        check_served(teacher, SoftTargets(k=65), *asked)
    with pytest.raises(TeacherError, match="does not exist"):
        check_served(teacher.model_copy(update={"model": "nobody"}), SoftTargets(k=64), *asked)

    rows = [*rows_of(50), ScoringRow("long", "train", rows_of(1)[0].messages, "x " * 400)]
    scored = score(teacher, rows, 64)
    assert [row.prompt_id for row in scored] == [row.prompt_id for row in rows[:50]]

    model = AutoModelForCausalLM.from_pretrained(teacher.model, dtype=torch.float32)
    for got, row in zip(scored, rows[:50], strict=True):
        whole = chat_format.row(row.messages, row.response)
        num_tokens = whole.num_response_tokens
        assert got.response_ids == whole.input_ids[-num_tokens:]
        with torch.no_grad():
            logits_TV = model(torch.tensor([whole.input_ids])).logits[0]
        log_p_NV = logits_TV.log_softmax(-1)[-num_tokens - 1 : -1]
        ids_NK = torch.from_numpy(got.ids_NK.astype(np.int64))
        expected_NK = log_p_NV.gather(1, ids_NK).numpy()
        np.testing.assert_allclose(got.log_probs_NK, expected_NK, atol=5e-3)
        assert (got.log_probs_NK >= log_p_NV.topk(64).values[:, -1:].numpy() - 5e-3).all()
        rest_N = 1 - log_p_NV.double().gather(1, ids_NK).exp().sum(1).numpy()
        np.testing.assert_allclose(np.exp(got.log_rest_N), rest_N, atol=1e-4)

    scorer = ServedScorer(teacher, SoftTargets(k=64), backoff_s=0.1)
    scores = scorer.score(rows_of(1200))
    try:
        next(scores)
        os.killpg(process.pid, signal.SIGKILL)
        with pytest.raises(TeacherError, match=r"in 2 attempts.*Run again"):
            list(scores)
    finally:
        scorer.close()
