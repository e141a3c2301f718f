"""Generation: every response is paid for once, kept at once, and sealed only when all are there."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from distillery.models.local import LocalModel
from distillery.storage.fingerprint import sha256
from distillery.teacher import teacher_identity
from distillery.teacher.collection import collect_responses
from distillery.teacher.generation import (
    generate_chunk,
    generation_stage,
    open_session,
    plan_chunks,
)
from distillery.teacher.local import release_models
from distillery.teacher.session import Totals
from schemas.errors import TeacherError
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef
from schemas.task import JsonFormat, TaskSpec
from schemas.teacher import OpenAITeacher, TransformersTeacher
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
from tests.fixtures_models import make_tiny_model
from tests.flying_time import let_time_fly
from tests.stub_endpoint import STANDS_STILL, Reply, StubEndpoint
from tests.waiting import wait_until

spawn = multiprocessing.get_context("spawn")


def content_of(body: dict[str, Any]) -> str:
    text: str = body["messages"][0]["content"]
    return text


# -- chunks and output -------------------------------------------------------------------------


def test_chunks_cover_training_and_validation_rows_once_and_in_order(store: StoreSpec) -> None:
    splits = ["train", "gold", "train", "train", "test", "validation", "gold", "train", "test"]
    prompts = write_prompts(store, [(s, f"q{n}") for n, s in enumerate(splits)], batch=2)
    chunks = plan_chunks(prompts, 2, store)
    assert [(c.start, c.stop, c.num_rows) for c in chunks] == [(0, 3, 2), (3, 6, 2), (7, 8, 1)]
    with StubEndpoint() as stub:
        answer(prompts, endpoint(stub, concurrency=1), store, chunk_rows=2)
    asked = [content_of(body) for body in stub.requests]
    assert asked == ["q0", "q2", "q3", "q5", "q7"]


def test_output_has_one_row_per_prompt_in_order_with_its_own_response(store: StoreSpec) -> None:
    rows = [("train", "a"), ("test", "b"), ("validation", "c"), ("train", "d"), ("gold", "e")]
    prompts = write_prompts(store, [*rows])
    with StubEndpoint(respond=lambda body: Reply(text=content_of(body).upper())) as stub:
        result = run_all(prompts, endpoint(stub), store, chunk_rows=2)
    written = rows_of(result, store)
    assert [(r["prompt_id"], r["split"], r["response"], r["state"]) for r in written] == [
        ("p0", "train", "A", "ok"),
        ("p2", "validation", "C", "ok"),
        ("p3", "train", "D", "ok"),
    ]
    assert {(r["prompt_tokens"], r["completion_tokens"]) for r in written} == {(7, 2)}
    assert {(r["sample_index"], r["agreement"], r["repaired"]) for r in written} == {
        (0, None, False)
    }
    assert result.manifest.counts == {"ok": 3, "from_ledger": 0, "asked": 3}
    facts: Any = result.manifest.facts["generation"]
    assert facts["models_reported"] == ["big"]
    assert (facts["prompt_tokens"], facts["completion_tokens"]) == (21, 6)
    assert facts["cost"] is None, "no price is known"
    assert facts["seconds"] > 0 and facts["rows_per_s"] == pytest.approx(3 / facts["seconds"])


def test_the_time_of_a_stage_has_that_of_the_asking_in_it(store: StoreSpec) -> None:
    prompts, totals = train_prompts(store, 1), Totals(seconds=3600.0)
    with StubEndpoint() as stub:
        teacher = endpoint(stub)
        answer(prompts, teacher, store)
    stage = generation_stage(prompts, teacher, TASK)
    made = collect_responses(stage, prompts, teacher, TASK, store, ExecutionSpec(), totals)
    assert made.manifest.timings_s["asking"] == 3600
    assert 3600 < made.manifest.timings_s["total"] < 3700


def test_thoughts_of_the_teacher_stand_beside_its_responses(store: StoreSpec) -> None:
    texts = {"a": "<think>\nMoney?\n</think>\n\nrefund", "b": "refund"}
    prompts = write_prompts(store, [("train", "a"), ("train", "b")])
    with StubEndpoint(respond=lambda body: Reply(text=texts[content_of(body)])) as stub:
        written = rows_of(run_all(prompts, endpoint(stub), store), store)
    assert [(row["response"], row["reasoning"]) for row in written] == [
        ("refund", "Money?"),
        ("refund", None),
    ]


def test_second_run_asks_nothing_even_when_the_stage_is_forced(store: StoreSpec) -> None:
    prompts = train_prompts(store, 7)
    with StubEndpoint() as stub:
        teacher = endpoint(stub)
        first = run_all(prompts, teacher, store, chunk_rows=3)
        again = run_all(prompts, teacher, store, chunk_rows=3, force=True)
        assert stub.num_requests == 7
    assert again.manifest.counts == {"ok": 7, "from_ledger": 7, "asked": 0}
    assert rows_of(again, store) == rows_of(first, store)
    facts: Any = again.manifest.facts["generation"]
    assert (facts["seconds"], facts["rows_per_s"], facts["prompt_tokens"]) == (None, None, 0)


def test_ledger_hit_needs_neither_endpoint_nor_key(
    store: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = train_prompts(store, 2)
    with StubEndpoint() as stub:
        run_all(prompts, endpoint(stub), store)
    monkeypatch.delenv("NO_KEY", raising=False)
    gone = OpenAITeacher(model="big", base_url="http://127.0.0.1:1/v1", api_key_env="NO_KEY")
    assert run_all(prompts, gone, store).reused


def test_new_rows_among_old_ones_are_the_only_ones_asked(store: StoreSpec) -> None:
    old = [("train", f"q{n}") for n in range(12)]
    new = [("train", f"new{n}") for n in range(3)]
    with StubEndpoint() as stub:
        run_all(write_prompts(store, [*old]), endpoint(stub), store)
        mixed = [*new[:1], *old[6:], *new[1:], *old[:6]]
        result = run_all(write_prompts(store, [*mixed]), endpoint(stub), store)
        assert stub.num_requests == 15
    assert result.manifest.counts == {"ok": 15, "from_ledger": 12, "asked": 3}


def test_progress_counts_rows_up_to_all(store: StoreSpec) -> None:
    prompts = write_prompts(store, [("train", c) for c in "abca"])
    (chunk,) = plan_chunks(prompts, 10, store)
    seen: list[tuple[int, int]] = []
    with (
        StubEndpoint() as stub,
        open_session(prompts, endpoint(stub, concurrency=1), TASK, store) as session,
    ):
        generate_chunk(
            chunk,
            session,
            TASK,
            on_progress=lambda done: seen.append((done, session.activity().limit)),
        )
    assert seen == [(2, 1), (3, 1), (4, 1)]


def test_fingerprint_changes_with_teacher_and_sampling_and_not_with_where_it_runs(
    store: StoreSpec,
) -> None:
    prompts = train_prompts(store, 1)
    teacher = OpenAITeacher(model="big", base_url="http://a/v1")
    fingerprint = generation_stage(prompts, teacher, TASK).fingerprint

    def changed(**update: Any) -> bool:
        other = OpenAITeacher.model_validate(teacher.model_dump() | update)
        return generation_stage(prompts, other, TASK).fingerprint != fingerprint

    assert not changed(base_url="http://b/v1", concurrency=1, timeout_s=1.0, max_attempts=1)
    assert not changed(budget={"max_tokens": 5}, requests_per_minute=3, api_key_env="K")
    assert not changed(top_p=0.5, seed=1), "greedy decoding draws nothing"
    assert not changed(structured_output="validate"), "the task has no schema"
    assert not changed(samples={"num_samples": 1, "choice": {"kind": "json"}})
    for update in (
        {"model": "other"},
        {"max_new_tokens": 5},
        {"extra_body": {"top_k": 1}},
        {"sampling_temperature": 0.5},
        {"sampling_temperature": 0.7, "top_p": 0.5},
        {"sampling_temperature": 0.7, "seed": 1},
        {"sampling_temperature": 0.7, "samples": {"num_samples": 2}},
    ):
        assert changed(**update), update


def test_ledger_row_holds_what_was_asked_of_whom(store: StoreSpec) -> None:
    prompts = train_prompts(store, 1)
    with StubEndpoint() as stub:
        teacher = endpoint(stub, price={"prompt_per_million": 1e6, "completion_per_million": 1e6})
        (row,) = rows_of(run_all(prompts, teacher, store), store)
    kept = ledger_rows(prompts, teacher, store)["p0"]
    assert kept.request_hash == row["request_hash"]
    identity, request = json.loads(kept.teacher), json.loads(kept.request)
    assert identity == teacher_identity(teacher)
    assert request["messages"] == [{"role": "user", "content": "q0"}]
    assert sha256({"teacher": identity, **request}) == kept.request_hash
    assert (kept.model_reported, kept.attempts, kept.finish_reason) == ("big", 1, "stop")
    assert (kept.cost, kept.currency) == (9.0, "USD")
    assert kept.latency_s > 0


# -- once ----------------------------------------------------------------------------------------


def test_duplicated_prompts_are_asked_once_and_each_get_a_row(store: StoreSpec) -> None:
    prompts = write_prompts(store, [("train", c) for c in "aabab"])
    with StubEndpoint() as stub:
        result = run_all(prompts, endpoint(stub), store, chunk_rows=3)
        assert stub.num_requests == 2
    assert [row["prompt_id"] for row in rows_of(result, store)] == ["p0", "p1", "p2", "p3", "p4"]
    assert result.manifest.counts == {"ok": 5, "from_ledger": 3, "asked": 2}


def test_duplicates_in_chunks_that_run_at_once_are_asked_once(store: StoreSpec) -> None:
    prompts = write_prompts(store, [("train", f"q{n % 8}") for n in range(24)])
    chunks = plan_chunks(prompts, 6, store)
    with (
        StubEndpoint(default=Reply(delay_s=0.05)) as stub,
        open_session(prompts, endpoint(stub, concurrency=8), TASK, store) as session,
        ThreadPoolExecutor(len(chunks)) as pool,
    ):
        counts = list(pool.map(lambda chunk: generate_chunk(chunk, session, TASK), chunks))
        assert set(contents(stub).values()) == {1}
    assert counts == [{"ok": 6}] * 4
    assert (session.totals.asked, session.totals.from_ledger) == (8, 16)


def test_two_runs_at_once_pay_for_every_prompt_once(store: StoreSpec) -> None:
    prompts = train_prompts(store, 12)
    with StubEndpoint(default=Reply(delay_s=0.02)) as stub:
        teacher = endpoint(stub)
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(answer, prompts, teacher, store) for _ in range(2)]
            totals = [run.result(timeout=120) for run in runs]
        assert set(contents(stub).values()) == {1}
    assert sorted(total.asked for total in totals) == [0, 12]
    assert [total.asked + total.from_ledger for total in totals] == [12, 12]


_barrier: Barrier


def _meet(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _answer_with_others(store: StoreSpec, base_url: str, prompts: str, backwards: bool) -> int:
    ref = DatasetRef.model_validate_json(prompts)
    teacher = OpenAITeacher(model="big", base_url=base_url, concurrency=8)
    chunks = plan_chunks(ref, 10, store)
    with open_session(ref, teacher, TASK, store) as session:
        _barrier.wait(120)
        for chunk in reversed(chunks) if backwards else chunks:
            assert generate_chunk(chunk, session, TASK) == {"ok": chunk.num_rows}
        return session.totals.asked


def test_two_processes_at_once_pay_for_every_prompt_once(store: StoreSpec) -> None:
    prompts = train_prompts(store, 60)

    def both_ask() -> bool:
        asked = {int(content[1:]) // 10 for content in contents(stub)}
        return {0, 5} <= asked  # each has claimed its first chunk

    with (
        StubEndpoint(default=Reply(delay_s=0.05, when=both_ask)) as stub,
        ProcessPoolExecutor(2, spawn, initializer=_meet, initargs=(spawn.Barrier(2),)) as pool,
    ):
        runs = [
            pool.submit(
                _answer_with_others, store, stub.base_url, prompts.model_dump_json(), backwards
            )
            for backwards in (False, True)
        ]
        asked = [run.result(timeout=300) for run in runs]
        assert set(contents(stub).values()) == {1}
        assert len(contents(stub)) == 60
        assert stub.max_in_flight <= 8 + 8
        result = run_all(prompts, endpoint(stub), store)
        assert stub.num_requests == 60
    assert sum(asked) == 60 and min(asked) >= 10
    assert result.manifest.counts == {"ok": 60, "from_ledger": 60, "asked": 0}


# -- kill -9 -------------------------------------------------------------------------------------


def _answer_until_killed(store: StoreSpec, base_url: str, prompts: str) -> None:
    teacher = OpenAITeacher(model="big", base_url=base_url, concurrency=4)
    answer(DatasetRef.model_validate_json(prompts), teacher, store)


def test_run_killed_midway_goes_on_at_once_and_asks_only_the_rest(store: StoreSpec) -> None:
    prompts = train_prompts(store, 60)
    is_killed = False

    def respond(_: dict[str, Any]) -> Reply:
        return Reply() if is_killed or stub.num_requests <= 10 else STANDS_STILL

    with StubEndpoint(respond=respond) as stub:
        child = spawn.Process(
            target=_answer_until_killed, args=(store, stub.base_url, prompts.model_dump_json())
        )
        child.start()
        wait_until(lambda: stub.num_requests == 14 or not child.is_alive(), within_s=120)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join(60)
        sent = contents(stub)
        assert len(sent) == 14
        is_killed = True
        result = run_all(prompts, endpoint(stub), store)
        asked = contents(stub)
    asked_again = [content for content in asked if asked[content] > 1]
    assert set(asked.values()) <= {1, 2} and len(asked) == 60
    assert len(asked_again) <= 4, "more than what was in flight was asked again"
    assert set(asked_again) <= set(sent)
    assert result.manifest.counts["ok"] == 60
    assert result.manifest.counts["from_ledger"] == len(sent) - len(asked_again)


# -- the end of a run ----------------------------------------------------------------------------


def test_unfinished_rows_leave_the_stage_unsealed_and_the_next_run_asks_only_them(
    store: StoreSpec, quick_retries: None
) -> None:
    prompts = train_prompts(store, 6)
    down = True

    def respond(body: dict[str, Any]) -> Reply:
        is_broken = content_of(body) in ("q1", "q4")
        return Reply(status=500, error="overloaded") if down and is_broken else Reply()

    with StubEndpoint(respond=respond) as stub:
        teacher = endpoint(stub, max_attempts=1)
        with pytest.raises(TeacherError) as caught:
            run_all(prompts, teacher, store, chunk_rows=3)
        message = str(caught.value)
        assert "2 of 6 prompts have no response yet, the first of them ['p1', 'p4']" in message
        assert "Last error: 'status 500: overloaded'" in message
        assert "The 4 finished responses are kept. Run again: only the missing" in message
        assert not is_sealed(prompts, teacher, store)
        down = False
        before = stub.num_requests
        result = run_all(prompts, teacher, store)
        assert stub.num_requests == before + 2
    assert result.manifest.counts == {"ok": 6, "from_ledger": 4, "asked": 2}


def test_row_that_fails_in_three_runs_is_failed_and_the_stage_seals(
    store: StoreSpec, quick_retries: None
) -> None:
    prompts = train_prompts(store, 6)

    def respond(body: dict[str, Any]) -> Reply:
        return Reply(status=500, error="boom") if content_of(body) == "q1" else Reply()

    with StubEndpoint(respond=respond) as stub:
        teacher = endpoint(stub, max_attempts=2)
        for run in (1, 2):
            with pytest.raises(TeacherError, match=r"1 of 6 .* \['p1'\].*status 500: boom"):
                run_all(prompts, teacher, store)
            assert not is_sealed(prompts, teacher, store)
            row = ledger_rows(prompts, teacher, store)["p1"]
            assert (row.state, row.failed_runs, row.attempts) == ("failed", run, 2 * run)
        result = run_all(prompts, teacher, store)
        assert contents(stub)["q1"] == 6
        assert stub.num_requests == 5 + 6
        again = run_all(prompts, teacher, store, force=True)
        assert stub.num_requests == 5 + 6, "a final row is not asked again"
    assert result.manifest.counts == {"ok": 5, "failed": 1, "from_ledger": 5, "asked": 1}
    assert again.manifest.counts["failed"] == 1
    failed = rows_of(result, store)[1]
    assert (failed["prompt_id"], failed["state"], failed["response"]) == ("p1", "failed", "")


def test_run_whose_endpoint_is_down_counts_as_no_failure_of_a_row(
    store: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_time_fly(monkeypatch)
    prompts = train_prompts(store, 3)
    with StubEndpoint(default=Reply(status=503, error="loading")) as stub:
        teacher = endpoint(stub, max_attempts=2)
        for _ in range(4):
            with pytest.raises(TeacherError, match=r"3 of 3 prompts have no response.*loading"):
                run_all(prompts, teacher, store)
        rows = ledger_rows(prompts, teacher, store)
        assert {(row.state, row.failed_runs) for row in rows.values()} == {("failed", 0)}
        stub.default = Reply()
        result = run_all(prompts, teacher, store)
    assert result.manifest.counts == {"ok": 3, "from_ledger": 0, "asked": 3}


def test_refused_empty_and_truncated_rows_are_final_and_counted(store: StoreSpec) -> None:
    prompts = train_prompts(store, 4)
    replies = {
        "q0": Reply(),
        "q1": Reply(status=400, error="too long"),
        "q2": Reply(text=""),
        "q3": Reply(text="half", finish_reason="length"),
    }
    with StubEndpoint(respond=lambda body: replies[content_of(body)]) as stub:
        teacher = endpoint(stub)
        result = run_all(prompts, teacher, store)
        assert contents(stub) == {"q0": 1, "q1": 1, "q2": 3, "q3": 1}
        run_all(prompts, teacher, store, force=True)
        assert stub.num_requests == 6
    states = {"ok": 1, "refused": 1, "empty": 1, "truncated": 1}
    assert result.manifest.counts == {**states, "from_ledger": 0, "asked": 4}
    written = [(row["state"], row["response"]) for row in rows_of(result, store)]
    assert written == [("ok", "fine"), ("refused", ""), ("empty", ""), ("truncated", "half")]
    assert ledger_rows(prompts, teacher, store)["p1"].error == "status 400: too long"


def test_responses_before_a_fatal_error_are_kept(store: StoreSpec) -> None:
    prompts = train_prompts(store, 6)
    script = [Reply()] * 3 + [Reply(status=401, error="revoked")]
    with StubEndpoint(script) as stub:
        teacher = endpoint(stub, concurrency=1)
        with pytest.raises(TeacherError, match="revoked"):
            run_all(prompts, teacher, store)
        result = run_all(prompts, teacher, store)
    assert result.manifest.counts == {"ok": 6, "from_ledger": 3, "asked": 3}


# -- several samples -----------------------------------------------------------------------------


def sampled(stub: StubEndpoint, num_samples: int, choice: dict[str, Any]) -> OpenAITeacher:
    samples = {"num_samples": num_samples, "choice": choice}
    return endpoint(stub, sampling_temperature=0.7, seed=10, samples=samples)


def test_each_sample_is_paid_once_and_the_majority_chooses(store: StoreSpec) -> None:
    prompts = train_prompts(store, 2)
    texts = {10: "refund", 11: "Repair.", 12: "repair"}
    with StubEndpoint(respond=lambda body: Reply(text=texts[body["seed"]])) as stub:
        teacher = sampled(stub, 3, {"kind": "majority"})
        result = run_all(prompts, teacher, store)
        assert sorted((content_of(b), b["seed"]) for b in stub.requests) == [
            (content, seed) for content in ("q0", "q1") for seed in texts
        ]
        run_all(prompts, teacher, store, force=True)
        assert stub.num_requests == 6
    for row in rows_of(result, store):
        assert (row["response"], row["sample_index"]) == ("Repair.", 1)
        assert row["agreement"] == pytest.approx(2 / 3)
    assert result.manifest.counts == {"ok": 2, "from_ledger": 0, "asked": 6}


def test_more_samples_pay_only_for_those_that_are_new(store: StoreSpec) -> None:
    prompts = train_prompts(store, 2)
    with StubEndpoint(respond=lambda body: Reply(text=str(body["seed"]))) as stub:
        run_all(prompts, sampled(stub, 2, {"kind": "majority"}), store)
        result = run_all(prompts, sampled(stub, 5, {"kind": "majority"}), store)
        assert stub.num_requests == 10
    assert result.manifest.counts == {"ok": 2, "from_ledger": 4, "asked": 6}
    # What they all cost counts, whoever paid for them and when.
    assert result.manifest.facts["bill"] == {
        "responses": 10,
        "prompt_tokens": 70,
        "completion_tokens": 20,
    }


def test_row_with_a_missing_sample_is_unsealed_and_only_that_sample_asked_again(
    store: StoreSpec, quick_retries: None
) -> None:
    prompts = train_prompts(store, 3)
    down = True

    def respond(body: dict[str, Any]) -> Reply:
        is_broken = down and (content_of(body), body["seed"]) == ("q1", 11)
        return Reply(status=500) if is_broken else Reply(text="same")

    with StubEndpoint(respond=respond) as stub:
        teacher = sampled(stub, 3, {"kind": "majority"})
        teacher = teacher.model_copy(update={"max_attempts": 1})
        with pytest.raises(TeacherError, match=r"1 of 3 .* \['p1'\].*The 2 finished"):
            run_all(prompts, teacher, store)
        assert not is_sealed(prompts, teacher, store)
        before, down = stub.num_requests, False
        result = run_all(prompts, teacher, store)
        assert [(content_of(b), b["seed"]) for b in stub.requests[before:]] == [("q1", 11)]
    assert {row["agreement"] for row in rows_of(result, store)} == {1.0}


# -- structured output ---------------------------------------------------------------------------


def test_broken_responses_are_repaired_once_and_then_malformed(store: StoreSpec) -> None:
    schema = {"type": "object", "required": ["label"]}
    task = TaskSpec(
        name="json", type="classification", answer_format=JsonFormat(json_schema=schema)
    )
    prompts = train_prompts(store, 3)

    def respond(body: dict[str, Any]) -> Reply:
        is_repair = len(body["messages"]) > 1
        if content_of(body) == "q0" or (content_of(body) == "q1" and is_repair):
            return Reply(text='{"label": 1}')
        return Reply(text="{}")

    with StubEndpoint(respond=respond) as stub:
        teacher = endpoint(stub)
        result = run_all(prompts, teacher, store, task=task)
        assert contents(stub) == {"q0": 1, "q1": 2, "q2": 2}
        assert all(b["response_format"]["type"] == "json_schema" for b in stub.requests)
        run_all(prompts, teacher, store, task=task, force=True)
        assert stub.num_requests == 5
    written = [(row["state"], row["response"], row["repaired"]) for row in rows_of(result, store)]
    good = '{"label": 1}'
    assert written == [("ok", good, False), ("ok", good, True), ("malformed", "{}", True)]
    rows = ledger_rows(prompts, teacher, store, task)
    assert {key: (row.repaired, row.attempts) for key, row in rows.items()} == {
        "p0": (False, 1),
        "p1": (True, 2),
        "p2": (True, 2),
    }
    assert rows["p2"].error == "at $: 'label' is a required property"
    assert (rows["p1"].prompt_tokens, rows["p1"].billed_prompt_tokens) == (7, 14)
    facts: Any = result.manifest.facts["generation"]
    assert (facts["repaired"], facts["prompt_tokens"]) == (2, 35)


# -- a local teacher -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield make_tiny_model(tmp_path_factory.mktemp("teacher") / "tiny")
    release_models()


def local_teacher(folder: Path, **changes: Any) -> TransformersTeacher:
    settings: dict[str, Any] = {"dtype": "float32", "max_new_tokens": 6, "batch_size": 2}
    return TransformersTeacher(model=str(folder), **settings | changes)


def test_local_teacher_answers_what_its_model_answers(store: StoreSpec, model_folder: Path) -> None:
    prompts = train_prompts(store, 5)
    result = run_all(prompts, local_teacher(model_folder), store, chunk_rows=3)
    conversations = [[{"role": "user", "content": f"q{n}"}] for n in range(5)]
    answers = LocalModel.load(model_folder).answer(conversations, max_new_tokens=6, batch_size=5)
    written = rows_of(result, store)
    assert [row["response"] for row in written] == [answer.text for answer in answers]
    states = ["truncated" if a.finish_reason == "length" else "ok" for a in answers]
    assert [row["state"] for row in written] == states


def test_chunks_of_one_process_share_one_load(
    store: StoreSpec, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_models()
    loads: list[str] = []
    load = LocalModel.load

    def counted(model: str, **settings: Any) -> LocalModel:
        loads.append(threading.current_thread().name)
        return load(model, **settings)

    monkeypatch.setattr(LocalModel, "load", counted)
    prompts = train_prompts(store, 6)
    chunks = plan_chunks(prompts, 2, store)
    with (
        open_session(prompts, local_teacher(model_folder), TASK, store) as session,
        ThreadPoolExecutor(3) as pool,
    ):
        list(pool.map(lambda chunk: generate_chunk(chunk, session, TASK), chunks))
    assert len(loads) == 1
    assert session.totals.asked == 6


def test_folder_moved_elsewhere_is_the_same_teacher_and_changed_weights_are_another(
    model_folder: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(model_folder, moved)
    identity = teacher_identity(local_teacher(model_folder))
    assert teacher_identity(local_teacher(moved, batch_size=9, device="cpu")) == identity
    assert teacher_identity(local_teacher(moved, dtype="bfloat16")) != identity
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    assert teacher_identity(local_teacher(moved)) != identity


def test_planning_and_identity_load_no_torch(store: StoreSpec, model_folder: Path) -> None:
    code = (
        "import sys\n"
        "from distillery.teacher import generation\n"
        "from schemas.teacher import TransformersTeacher\n"
        f"generation.teacher_identity(TransformersTeacher(model={str(model_folder)!r}))\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
