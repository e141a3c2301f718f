"""Generation: every response is paid for once, kept at once, and sealed only when all are there."""

import collections
import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from distillery import generation
from distillery.fingerprint import canonical_json, sha256
from distillery.generation import (
    ChunkCounts,
    collect_responses,
    generate_chunk,
    generation_stage,
    plan_chunks,
)
from distillery.ledger import Ledger
from distillery.local_model import LocalModel
from distillery.stage import StageResult
from distillery.store import Store
from distillery.teacher import teacher_identity
from distillery.teacher.transformers import release_models
from schemas.errors import TeacherError
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef
from schemas.teacher import OpenAITeacher, TransformersTeacher
from tests.fixtures_models import make_tiny_model
from tests.stub_endpoint import Reply, StubEndpoint

PROMPT_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("split", pa.string()),
        ("messages", pa.string()),
        ("reference", pa.string()),
        ("content_hash", pa.string()),
        ("source_row", pa.int64()),
    ]
)


@pytest.fixture
def store(tmp_path: Path) -> StoreSpec:
    return StoreSpec(root=str(tmp_path / "store"))


def write_prompts(store: StoreSpec, rows: list[tuple[str, str]], *, batch: int = 4) -> DatasetRef:
    """Store prompts given as (split, content); p0, p1, ... in row groups of ``batch`` rows."""
    full = []
    for n, (split, content) in enumerate(rows):
        messages = canonical_json([{"role": "user", "content": content}])
        full.append((f"p{n}", split, messages, None, sha256(messages), n + 1))

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(full), batch):
            columns = zip(*full[start : start + batch], strict=True)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, PROMPT_SCHEMA, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=PROMPT_SCHEMA)

    opened = Store(store.root)
    return opened.write_rows("prompts/x/y", batches(), PROMPT_SCHEMA, fingerprint="f" * 64)


def train_prompts(store: StoreSpec, count: int) -> DatasetRef:
    return write_prompts(store, [("train", f"q{n}") for n in range(count)])


def endpoint(stub: StubEndpoint, **changes: Any) -> OpenAITeacher:
    settings: dict[str, Any] = {"model": "big", "base_url": stub.base_url, "concurrency": 2}
    return OpenAITeacher(**{**settings, **changes})


def run_all(
    prompts: DatasetRef, teacher: Any, store: StoreSpec, *, chunk_rows: int = 3, force: bool = False
) -> tuple[StageResult, list[ChunkCounts]]:
    chunks = plan_chunks(prompts, chunk_rows, store)
    counts = [generate_chunk(chunk, teacher, store) for chunk in chunks]
    stage = generation_stage(prompts, teacher)
    execution = ExecutionSpec(force=(StageName.GENERATE_RESPONSES,) if force else ())
    return collect_responses(stage, prompts, teacher, store, execution, counts), counts


def rows_of(result: StageResult, store: StoreSpec) -> list[dict[str, Any]]:
    batches = Store(store.root).batches(result.dataset("responses"))
    return [row for batch in batches for row in batch.to_pylist()]


def test_chunks_cover_training_and_validation_rows_once_and_in_order(store: StoreSpec) -> None:
    splits = ["train", "gold", "train", "train", "test", "validation", "gold", "train", "test"]
    prompts = write_prompts(store, [(s, f"q{n}") for n, s in enumerate(splits)], batch=2)
    chunks = plan_chunks(prompts, 2, store)
    assert [(c.start, c.stop, c.num_rows) for c in chunks] == [(0, 3, 2), (3, 6, 2), (7, 8, 1)]
    with StubEndpoint() as stub:
        for chunk in chunks:
            generate_chunk(chunk, endpoint(stub, concurrency=1), store)
    asked = [body["messages"][0]["content"] for body in stub.requests]
    assert asked == ["q0", "q2", "q3", "q5", "q7"]


def test_output_has_one_row_per_prompt_in_order_with_its_own_response(store: StoreSpec) -> None:
    rows = [("train", "a"), ("test", "b"), ("validation", "c"), ("train", "d"), ("gold", "e")]
    prompts = write_prompts(store, rows)

    def respond(body: dict[str, Any]) -> Reply:
        return Reply(text=body["messages"][0]["content"].upper())

    with StubEndpoint(respond=respond) as stub:
        result, _ = run_all(prompts, endpoint(stub), store)
    written = rows_of(result, store)
    assert [(r["prompt_id"], r["split"], r["response"], r["state"]) for r in written] == [
        ("p0", "train", "A", "ok"),
        ("p2", "validation", "C", "ok"),
        ("p3", "train", "D", "ok"),
    ]
    assert {(r["prompt_tokens"], r["completion_tokens"]) for r in written} == {(7, 2)}
    assert result.manifest.counts == {"ok": 3, "from_ledger": 0, "asked": 3}
    assert result.manifest.facts == {"models_reported": ["big"]}


def test_second_run_asks_nothing_even_when_the_stage_is_forced(store: StoreSpec) -> None:
    prompts = train_prompts(store, 7)
    with StubEndpoint() as stub:
        teacher = endpoint(stub)
        first, _ = run_all(prompts, teacher, store)
        again, counts = run_all(prompts, teacher, store, force=True)
        assert stub.num_requests == 7
    assert again.manifest.counts == {"ok": 7, "from_ledger": 7, "asked": 0}
    assert rows_of(again, store) == rows_of(first, store)
    assert sum(chunk.from_ledger for chunk in counts) == 7


def test_ledger_hit_needs_neither_endpoint_nor_key(
    store: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = train_prompts(store, 2)
    with StubEndpoint() as stub:
        run_all(prompts, endpoint(stub), store)
    monkeypatch.delenv("NO_KEY", raising=False)
    gone = OpenAITeacher(model="big", base_url="http://127.0.0.1:1/v1", api_key_env="NO_KEY")
    assert run_all(prompts, gone, store)[0].reused


def test_duplicated_prompts_are_asked_once_and_each_get_a_row(store: StoreSpec) -> None:
    prompts = write_prompts(store, [("train", c) for c in "aabab"])
    with StubEndpoint() as stub:
        result, counts = run_all(prompts, endpoint(stub), store)
        assert stub.num_requests == 2
    assert [row["prompt_id"] for row in rows_of(result, store)] == ["p0", "p1", "p2", "p3", "p4"]
    assert [(c.num_rows, c.asked, c.from_ledger) for c in counts] == [(3, 2, 1), (2, 0, 2)]


def test_two_runs_at_once_pay_for_every_prompt_once(store: StoreSpec) -> None:
    prompts = train_prompts(store, 12)
    (chunk,) = plan_chunks(prompts, 100, store)
    with StubEndpoint(default=Reply(delay_s=0.02)) as stub:
        teacher = endpoint(stub)
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(generate_chunk, chunk, teacher, store) for _ in range(2)]
            counts = [run.result(timeout=30) for run in runs]
        asked = collections.Counter(body["messages"][0]["content"] for body in stub.requests)
    assert set(asked.values()) == {1}
    assert sum(count.asked for count in counts) == 12
    assert [count.by_state for count in counts] == [{"ok": 12}] * 2


def test_request_that_a_dead_run_claimed_is_taken_over_when_its_claim_expires(
    store: StoreSpec,
) -> None:
    prompts = train_prompts(store, 2)
    (chunk,) = plan_chunks(prompts, 2, store)
    with StubEndpoint() as stub, Ledger.open(store) as ledger:
        teacher = endpoint(stub)
        request, _ = generation._chunk_requests(chunk, teacher, Store(store.root))
        ledger.claim([request.request_hash], "dead", 1.0)
        start = time.monotonic()
        counts = generate_chunk(chunk, teacher, store)
    assert time.monotonic() - start > 0.9
    assert (counts.asked, counts.by_state) == (2, {"ok": 2})


def _generate_slowly(root: str, base_url: str, prompts: str) -> None:
    generation.CLAIM_TTL_S = 1.0
    store = StoreSpec(root=root)
    teacher = OpenAITeacher(model="big", base_url=base_url, concurrency=1)
    (chunk,) = plan_chunks(DatasetRef.model_validate_json(prompts), 1000, store)
    generate_chunk(chunk, teacher, store)


def test_run_killed_midway_keeps_its_responses_and_the_next_asks_only_the_rest(
    store: StoreSpec,
) -> None:
    prompts = train_prompts(store, 40)
    with StubEndpoint(default=Reply(delay_s=0.1)) as stub:
        context = multiprocessing.get_context("spawn")
        child = context.Process(
            target=_generate_slowly, args=(store.root, stub.base_url, prompts.model_dump_json())
        )
        child.start()
        while stub.num_requests < 6:
            assert child.is_alive()
            time.sleep(0.02)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join(10)
        sent = stub.num_requests
        stub.default = Reply()
        result, counts = run_all(prompts, endpoint(stub), store, chunk_rows=1000)
        # Only the one request that was in flight is sent again.
        assert stub.num_requests <= 40 + 1
    assert sent - 1 <= counts[0].from_ledger <= sent
    assert result.manifest.counts["ok"] == 40


def test_unfinished_rows_leave_the_stage_unsealed_and_the_next_run_asks_only_them(
    store: StoreSpec,
) -> None:
    prompts = train_prompts(store, 6)
    down = True

    def respond(body: dict[str, Any]) -> Reply:
        is_second = body["messages"][0]["content"] in ("q1", "q4")
        return Reply(status=503, error="overloaded") if down and is_second else Reply()

    with StubEndpoint(respond=respond) as stub:
        teacher = endpoint(stub, max_attempts=1)
        with pytest.raises(TeacherError) as caught:
            run_all(prompts, teacher, store)
        message = str(caught.value)
        assert "2 of 6 prompts have no response yet, the first of them ['p1', 'p4']" in message
        assert "Last error: 'status 503: overloaded'" in message
        assert "The 4 finished responses are kept. Run again: only the missing" in message
        stage = generation_stage(prompts, teacher)
        assert Store(store.root).find(stage.name, stage.fingerprint) is None
        down = False
        before = stub.num_requests
        result, _ = run_all(prompts, teacher, store)
        assert stub.num_requests == before + 2
    assert result.manifest.counts == {"ok": 6, "from_ledger": 4, "asked": 2}


def test_refused_empty_and_truncated_rows_are_final_and_counted(store: StoreSpec) -> None:
    prompts = train_prompts(store, 4)
    script = [
        Reply(),
        Reply(status=400, error="too long"),
        Reply(text=""),
        Reply(text="half", finish_reason="length"),
    ]
    with StubEndpoint(script) as stub:
        result, _ = run_all(prompts, endpoint(stub, concurrency=1), store, chunk_rows=10)
        assert stub.num_requests == 4
    expected = {"ok": 1, "failed": 1, "empty": 1, "truncated": 1}
    assert result.manifest.counts == {**expected, "from_ledger": 0, "asked": 4}
    failed = rows_of(result, store)[1]
    assert (failed["state"], failed["response"]) == ("failed", "")


def test_responses_before_a_fatal_error_are_kept(store: StoreSpec) -> None:
    prompts = train_prompts(store, 6)
    script = [Reply()] * 3 + [Reply(status=401, error="revoked")]
    with StubEndpoint(script) as stub:
        teacher = endpoint(stub, concurrency=1)
        with pytest.raises(TeacherError, match="revoked"):
            run_all(prompts, teacher, store, chunk_rows=10)
        result, _ = run_all(prompts, teacher, store, chunk_rows=10)
    assert result.manifest.counts == {"ok": 6, "from_ledger": 3, "asked": 3}


def test_progress_counts_rows_up_to_all(store: StoreSpec) -> None:
    prompts = write_prompts(store, [("train", c) for c in "abca"])
    (chunk,) = plan_chunks(prompts, 10, store)
    seen: list[tuple[int, int]] = []
    with StubEndpoint() as stub:
        teacher = endpoint(stub, concurrency=1)
        generate_chunk(chunk, teacher, store, on_progress=lambda done, of: seen.append((done, of)))
    assert seen == [(2, 4), (3, 4), (4, 4)]


def test_fingerprint_changes_with_teacher_and_sampling_and_not_with_where_it_runs(
    store: StoreSpec,
) -> None:
    prompts = train_prompts(store, 1)
    teacher = OpenAITeacher(model="big", base_url="http://a/v1")
    fingerprint = generation_stage(prompts, teacher).fingerprint

    def changed(**update: Any) -> bool:
        stage = generation_stage(prompts, teacher.model_copy(update=update))
        return stage.fingerprint != fingerprint

    assert not changed(base_url="http://b/v1", concurrency=1, timeout_s=1.0, max_attempts=1)
    assert not changed(top_p=0.5, seed=1), "greedy decoding draws nothing"
    for update in (
        {"model": "other"},
        {"max_new_tokens": 5},
        {"sampling_temperature": 0.5},
        {"sampling_temperature": 0.7, "top_p": 0.5},
        {"sampling_temperature": 0.7, "seed": 1},
    ):
        assert changed(**update)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield make_tiny_model(tmp_path_factory.mktemp("teacher") / "tiny")
    release_models()


def local_teacher(folder: Path, **changes: Any) -> TransformersTeacher:
    settings: dict[str, Any] = {"dtype": "float32", "max_new_tokens": 6, "batch_size": 2}
    return TransformersTeacher(model=str(folder), **{**settings, **changes})


def test_local_teacher_answers_what_its_model_answers(store: StoreSpec, model_folder: Path) -> None:
    prompts = train_prompts(store, 5)
    result, _ = run_all(prompts, local_teacher(model_folder), store)
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
    teacher = local_teacher(model_folder)
    with ThreadPoolExecutor(3) as pool:
        chunks = plan_chunks(prompts, 2, store)
        counts = list(pool.map(lambda chunk: generate_chunk(chunk, teacher, store), chunks))
    assert len(loads) == 1
    assert sum(count.asked for count in counts) == 6


def test_folder_moved_elsewhere_is_the_same_teacher_and_changed_weights_are_another(
    model_folder: Path, tmp_path: Path
) -> None:
    import shutil

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
        "from distillery import generation\n"
        "from schemas.teacher import TransformersTeacher\n"
        f"generation.teacher_identity(TransformersTeacher(model={str(model_folder)!r}))\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_ledger_row_holds_what_was_asked_of_whom(store: StoreSpec) -> None:
    prompts = train_prompts(store, 1)
    with StubEndpoint() as stub:
        teacher = endpoint(stub)
        result, _ = run_all(prompts, teacher, store)
    (row,) = rows_of(result, store)
    with Ledger.open(store) as ledger:
        kept = ledger.get([row["request_hash"]])[row["request_hash"]]
    identity, request = json.loads(kept.teacher), json.loads(kept.request)
    assert identity == teacher_identity(teacher)
    assert request["messages"] == [{"role": "user", "content": "q0"}]
    assert sha256({"teacher": identity, **request}) == kept.request_hash
    assert dataclasses.asdict(kept)["model_reported"] == "big"
