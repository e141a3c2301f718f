"""The stage scores all rows that fit, goes on where it was, and is reused."""

import functools
import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillery.data.chat import Message
from distillery.models.vocabulary import tokenizer_hash
from distillery.objectives.soft.local import LocalScorer
from distillery.objectives.soft.stage import score_soft_targets, scoring_stage
from distillery.objectives.soft.stored import read_meta, read_targets
from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from schemas.budget import PriceSpec
from schemas.errors import TeacherError, TrainingError
from schemas.examples import FixedExamples
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef
from schemas.teacher import OpenAITeacher
from schemas.training import TrainingSpec
from tests.fixtures_generation import write_prompts
from tests.fixtures_models import make_tiny_model
from tests.fixtures_scores import (
    CONTEXT,
    INLINE,
    PROMPTS,
    STAGE,
    TASK,
    TOP_4,
    changed,
    local_teacher,
    put_rows,
    rows_to_score,
    score_here,
    soft_of,
    tokenizer_of,
)
from tests.stub_endpoint import Reply
from tests.stub_vllm import StubVllm

pytestmark = pytest.mark.usefixtures("one_thread")


def _fingerprint(
    folder: Path, training: TrainingSpec = TOP_4, rows: str = "rows", **named: Any
) -> str:
    ref = DatasetRef(uri="rows", fingerprint=rows, num_rows=1, columns=())
    return scoring_stage(ref, PROMPTS, local_teacher(folder, **named), TASK, training).fingerprint


def test_only_what_is_stored_is_in_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    same = _fingerprint(folder)
    for training in (
        changed(TOP_4, divergence="reverse_kl"),
        changed(TOP_4, soft_weight=0.9, hard_weight=0.0),
        TOP_4.model_copy(update={"seed": 9, "learning_rate": 1.0, "epochs": 1.0}),
    ):
        assert _fingerprint(folder, training) == same
    assert _fingerprint(folder, batch_size=1, seed=5, max_new_tokens=9) == same
    others = [
        _fingerprint(folder, changed(TOP_4, k=5)),
        _fingerprint(folder, changed(TOP_4, distillation_temperature=1.0)),
        _fingerprint(folder, rows="other rows"),
        _fingerprint(folder, dtype="bfloat16"),
        _fingerprint(folder, system_prompt="Be brief."),
        _fingerprint(folder, examples=FixedExamples()),
        _fingerprint(make_tiny_model(tmp_path / "other", seed=1)),
    ]
    assert len({same, *others}) == 1 + len(others)


def _run(spec: StoreSpec, rows: DatasetRef, folder: Path, **named: Any) -> StageResult:
    return score_soft_targets(
        rows, PROMPTS, local_teacher(folder), TASK, TOP_4, spec, INLINE, **named
    )


def test_the_stage_scores_all_rows_that_fit_and_is_reused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillery.objectives.soft.stage._CHUNK_ROWS", 3)
    asked = rows_to_score()
    asked.insert(2, asked[0]._replace(prompt_id="long", response="and " * CONTEXT))
    spec = StoreSpec(root=str(tmp_path))
    rows = put_rows(spec, asked)
    told: list[tuple[int, int]] = []
    result = _run(spec, rows, folder, on_progress=lambda *now: told.append(now))
    assert told == [(3, 8), (6, 8), (8, 8)]

    read = list(read_targets(Store(spec.root), result.dataset("soft_targets")))
    asked.pop(2)
    scored = score_here(folder, TOP_4, asked)
    assert [row[:3] for row in read] == [row[:3] for row in scored]
    for found, row in zip(read, scored, strict=True):
        assert np.array_equal(found.ids_NK, np.sort(row.ids_NK))
        np.testing.assert_allclose(found.log_rest_N, row.log_rest_N, atol=1e-5)
    manifest = result.manifest
    num_tokens = sum(len(row.response_ids) for row in scored)
    assert manifest.counts == {
        "rows": 7,
        "response_tokens": num_tokens,
        "left_out_too_long": 1,
        "left_out_not_written": 0,
    }
    assert manifest.facts["left_out_first_ids"] == ["long"]
    rest_N = np.concatenate([row.log_rest_N for row in scored])
    assert manifest.facts["mean_kept_mass"] == pytest.approx(1 - np.exp(rest_N).mean(), rel=1e-5)
    meta = read_meta(Store(spec.root), result.dataset("soft_targets"))
    assert manifest.facts["soft_targets"] == meta.model_dump(mode="json")
    assert (meta.k, meta.distillation_temperature) == (4, 2.0)
    assert meta.tokenizer_hash == tokenizer_hash(tokenizer_of(folder))

    monkeypatch.setattr(LocalScorer, "score", None)
    assert _run(spec, rows, folder).reused


class Killed(BaseException):
    """Stands for the end of the process."""


def _die(*_: int) -> None:
    raise Killed


def _numbers(spec: StoreSpec, result: StageResult) -> list[Any]:
    rows = read_targets(Store(spec.root), result.dataset("soft_targets"))
    return [
        [part.tolist() if isinstance(part, np.ndarray) else part for part in row] for row in rows
    ]


def test_a_killed_stage_goes_on_where_it_was(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("distillery.objectives.soft.stage._CHUNK_ROWS", 3)
    asked = rows_to_score()
    asked.insert(1, asked[0]._replace(prompt_id="long", response="and " * CONTEXT))
    spec, alone = (StoreSpec(root=str(tmp_path / name)) for name in ("store", "alone"))
    rows = put_rows(spec, asked)
    run = functools.partial(
        score_soft_targets, rows, PROMPTS, local_teacher(folder), TASK, TOP_4, spec, INLINE
    )
    with pytest.raises(Killed):
        run(on_progress=_die)
    scored = _spy_on_scores(monkeypatch)
    with caplog.at_level(logging.INFO, "distillery"):
        result = run()
    assert "3 rows had been scored before" in caplog.messages
    assert scored == [row.prompt_id for row in asked[3:]]
    assert result.manifest.facts["rows_scored_before"] == 3
    assert result.manifest.facts["left_out_first_ids"] == ["long"]

    whole = score_soft_targets(
        put_rows(alone, asked), PROMPTS, local_teacher(folder), TASK, TOP_4, alone, INLINE
    )
    assert whole.manifest.facts["rows_scored_before"] == 0
    assert _numbers(spec, result) == _numbers(alone, whole)
    assert result.manifest.facts["mean_kept_mass"] == pytest.approx(
        whole.manifest.facts["mean_kept_mass"], rel=1e-6
    )
    kept = Store(spec.root).list_folders(f"{STAGE.name}/{result.manifest.fingerprint}")
    assert kept == [result.manifest.attempt]


def _spy_on_scores(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    scored: list[str] = []
    score = LocalScorer.score

    def spy(self: LocalScorer, rows: Any) -> Any:
        scored.extend(row.prompt_id for row in rows)
        return score(self, rows)

    monkeypatch.setattr(LocalScorer, "score", spy)
    return scored


def test_kept_scores_of_other_responses_or_of_a_damaged_file_are_not_taken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("distillery.objectives.soft.stage._CHUNK_ROWS", 3)
    asked, spec = rows_to_score(), StoreSpec(root=str(tmp_path))
    with pytest.raises(Killed):
        _run(spec, put_rows(spec, asked), folder, on_progress=_die)
    # The stage before was done again and gave something else.
    asked[0] = asked[0]._replace(response="yes, today")
    rows = put_rows(spec, asked)
    scored = _spy_on_scores(monkeypatch)
    with pytest.raises(Killed):
        _run(spec, rows, folder, on_progress=_die)
    assert scored == [row.prompt_id for row in asked[:3]]
    for file in tmp_path.rglob("*.arrow"):
        content = bytearray(file.read_bytes())
        content[-len(content) // 3] ^= 1
        file.write_bytes(content)
    result = _run(spec, rows, folder)
    assert scored[3:] == [row.prompt_id for row in asked]
    assert "is damaged; its rows are scored again" in caplog.text
    assert result.manifest.counts["rows"] == len(asked)


def test_a_forced_stage_takes_nothing_that_was_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillery.objectives.soft.stage._CHUNK_ROWS", 3)
    asked, spec = rows_to_score(), StoreSpec(root=str(tmp_path))
    rows = put_rows(spec, asked)
    with pytest.raises(Killed):
        _run(spec, rows, folder, on_progress=_die)
    scored = _spy_on_scores(monkeypatch)
    forced = ExecutionSpec(force=(StageName.SCORE_SOFT_TARGETS,))
    result = score_soft_targets(rows, PROMPTS, local_teacher(folder), TASK, TOP_4, spec, forced)
    assert scored == [row.prompt_id for row in asked]
    assert result.manifest.facts["rows_scored_before"] == 0


def test_chunks_of_long_responses_have_fewer_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, spec = rows_to_score(), StoreSpec(root=str(tmp_path))
    longest = max(len(row.response) for row in asked)
    monkeypatch.setattr("distillery.objectives.soft.stage._CHUNK_CHARS", longest * 4)  # k = 4
    told: list[tuple[int, int]] = []
    _run(spec, put_rows(spec, asked), folder, on_progress=lambda *now: told.append(now))
    done = [0, *(now for now, _ in told)]
    sizes = [len(asked[start:stop]) for start, stop in itertools.pairwise(done)]
    assert sum(sizes) == len(asked)
    for start, size in zip(done, sizes, strict=False):
        assert size == 1 or sum(len(r.response) for r in asked[start : start + size]) <= longest
    assert len(sizes) > 1


def test_a_teacher_that_no_row_fits_is_an_error(folder: Path, tmp_path: Path) -> None:
    spec = StoreSpec(root=str(tmp_path))
    rows = put_rows(spec, [rows_to_score(1)[0]._replace(response="and " * CONTEXT)])
    with pytest.raises(TeacherError, match="none of 1 rows fits the context of teacher"):
        _run(spec, rows, folder)
    assert Store(spec.root).list_folders(f"{STAGE.name}") in ([], [_folder_of(rows, folder)])


def test_a_row_that_the_teacher_cannot_write_is_left_out_and_more_end_the_stage(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, asked = StoreSpec(root=str(tmp_path)), rows_to_score()
    dirty = asked[0]._replace(prompt_id="dirty", response="stop at <|end|> here")
    rows = put_rows(spec, [*asked[:2], dirty, *asked[2:]])
    monkeypatch.setattr("distillery.objectives.soft.stage._CHUNK_ROWS", 3)
    with pytest.raises(Killed):
        _run(spec, rows, folder, on_progress=_die)
    result = _run(spec, rows, folder)
    counts = result.manifest.counts
    facts: Any = result.manifest.facts
    assert facts["rows_scored_before"] == 3
    assert (counts["rows"], counts["left_out_too_long"]) == (len(asked), 0)
    assert counts["left_out_not_written"] == 1
    assert "'<|end|>', a special token" in facts["not_written"]["dirty"]
    read = read_targets(Store(spec.root), result.dataset("soft_targets"))
    assert [row.prompt_id for row in read] == [row.prompt_id for row in asked]
    assert "1 rows cannot be written by the teacher and have no soft targets" in caplog.text
    rows = put_rows(spec, [dirty, *asked, dirty._replace(prompt_id="dirty too")], "more")
    with pytest.raises(TrainingError, match=r"2 of 9 rows cannot be learnt, first 'dirty': the re"):
        _run(spec, rows, folder)


def _folder_of(rows: DatasetRef, folder: Path) -> str:
    return scoring_stage(rows, PROMPTS, local_teacher(folder), TASK, TOP_4).fingerprint


def test_a_served_teacher_is_asked_through_its_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distillery.objectives.soft import served

    made: list[Any] = []

    def opened(*given: Any) -> Any:
        made.append(given)
        raise TeacherError("asked")

    monkeypatch.setattr(served, "ServedScorer", opened)
    spec = StoreSpec(root=str(tmp_path))
    teacher = OpenAITeacher(model="m", base_url="http://127.0.0.1:1/v1")
    with pytest.raises(TeacherError, match="asked"):
        score_soft_targets(
            put_rows(spec, rows_to_score(1)), PROMPTS, teacher, TASK, TOP_4, spec, INLINE
        )
    assert made == [(teacher, soft_of(TOP_4))]


def test_what_a_served_teacher_read_is_counted_over_all_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillery.objectives.soft.stage._CHUNK_ROWS", 2)
    spec = StoreSpec(root=str(tmp_path))
    rows = put_rows(spec, rows_to_score(5))
    price = PriceSpec(prompt_per_million=1e6, completion_per_million=1e6)
    untempered = changed(TOP_4, distillation_temperature=1.0)
    num_asked = 0

    def die(body: dict[str, Any]) -> Reply | None:
        nonlocal num_asked
        num_asked += 1
        return Reply(status=400, error="died") if num_asked == 3 else None

    with StubVllm(fail=die) as server:
        teacher = server.spec(price=price, concurrency=1)
        score = functools.partial(
            score_soft_targets, rows, PROMPTS, teacher, TASK, untempered, spec, INLINE
        )
        with pytest.raises(TeacherError, match="died"):
            score()
        made = score().manifest
        asked = {tuple(body["prompt"]) for body in server.completions}
    num_tokens = sum(map(len, asked))
    assert made.facts["rows_scored_before"] == 2
    assert made.facts["served"] == {
        "requests": rows.num_rows,
        "prompt_tokens": num_tokens,
        "completion_tokens": rows.num_rows,
    }
    assert (made.cost, made.currency) == (num_tokens + rows.num_rows, "USD")


def test_the_teacher_scores_behind_its_own_prompt(folder: Path, tmp_path: Path) -> None:
    """Against rows in which that prompt is written out."""
    spec = StoreSpec(root=str(tmp_path))
    shown = write_prompts(spec, [("gold", "is it on its way?", "no")])
    told = local_teacher(folder, system_prompt="Be brief.", examples=FixedExamples(num_examples=1))
    before = [
        Message(role="system", content="Be brief."),
        Message(role="user", content="is it on its way?"),
        Message(role="assistant", content="no"),
    ]
    asked = [row for row in rows_to_score() if len(row.messages[0]["content"]) < 40]
    written = [row._replace(messages=[*before, *row.messages]) for row in asked]
    assert len(asked) > 2
    scores = [
        score_soft_targets(put_rows(spec, rows, name), prompts, teacher, TASK, TOP_4, spec, INLINE)
        for name, rows, prompts, teacher in (
            ("as they are", asked, shown, told),
            ("written out", written, PROMPTS, local_teacher(folder)),
        )
    ]
    found, expected = [
        list(read_targets(Store(spec.root), done.dataset("soft_targets"))) for done in scores
    ]
    assert [row.prompt_id for row in found] == [row.prompt_id for row in asked]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.response_ids == theirs.response_ids
        np.testing.assert_array_equal(ours.ids_NK, theirs.ids_NK)
        np.testing.assert_allclose(ours.log_probs_NK, theirs.log_probs_NK, atol=1e-3)


def test_the_flow_returns_the_soft_targets_and_shows_what_is_kept(
    folder: Path, tmp_path: Path, prefect_server: str
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    from flows.score_soft_targets import score_soft_targets as flow

    spec = StoreSpec(root=str(tmp_path))
    rows = put_rows(spec, rows_to_score())
    ref = flow(spec, INLINE, rows, PROMPTS, local_teacher(folder), TASK, TOP_4)
    assert ref.num_rows == 7
    with get_client(sync_client=True) as client:
        key = ArtifactFilterKey(any_=["soft-targets"])
        (artifact,) = client.read_artifacts(artifact_filter=ArtifactFilter(key=key))
    assert "| kept per token | 4 likeliest tokens |" in str(artifact.data)
    assert "| mass on them, mean |" in str(artifact.data)
