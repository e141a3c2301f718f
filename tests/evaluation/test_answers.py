from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from distillery.evaluation.answers import evaluate_models, evaluation_stage
from distillery.evaluation.comparison import measurements_of, read_scores
from distillery.storage.store import Store
from schemas.errors import RecipeError, StageError, TeacherError
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.frames import ScoreFrame, check_frame
from schemas.refs import ModelRef
from schemas.student import FromScratchStudent, PretrainedStudent
from schemas.task import TaskKind, TaskSpec
from schemas.teacher import OpenAITeacher, TransformersTeacher
from tests.fixtures_comparison import prompt_frame, seal_prompts
from tests.fixtures_models import make_tiny_model
from tests.stub_endpoint import Reply, StubEndpoint

NUM_ROWS = 7
TASK = TaskSpec(name="tickets", type=TaskKind.CLASSIFICATION)
EVALUATION = EvaluationSpec(
    max_new_tokens=4,
    latency_rows=5,
    latency_warmup=1,
    throughput_rows=6,
    throughput_batch_size=4,
    context_tokens=64,
)
FROM_SCRATCH = FromScratchStudent(num_layers=1, hidden_size=8, intermediate_size=16, num_heads=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they save on models of a thousand parameters."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "teacher", num_layers=3, seed=1)


@pytest.fixture
def store(tmp_path: Path) -> StoreSpec:
    return StoreSpec(root=str(tmp_path / "store"))


def model_ref(store: StoreSpec, name: str, *, seed: int) -> ModelRef:
    ref = ModelRef(
        uri=f"train_{name}/{name}/attempt/model", fingerprint=f"{name}-1", num_parameters=1
    )
    if not (folder := Path(store.root, ref.uri)).is_dir():
        make_tiny_model(folder, num_layers=1, hidden_size=8, seed=seed)
    return ref


def arguments(store: StoreSpec, teacher: Any, **changed: Any) -> dict[str, Any]:
    return {
        "prompts": seal_prompts(store, prompt_frame(NUM_ROWS)),
        "teacher": teacher,
        "student": FROM_SCRATCH,
        "baseline": model_ref(store, "baseline", seed=2),
        "student_model": model_ref(store, "student", seed=3),
        "task": TASK,
        "evaluation": EVALUATION,
        "store": store,
        "execution": ExecutionSpec(),
        **changed,
    }


def hosted(stub: StubEndpoint) -> OpenAITeacher:
    return OpenAITeacher(model="big", base_url=stub.base_url, concurrency=2, max_attempts=1)


def scores_frame(store: StoreSpec, result: Any) -> pd.DataFrame:
    frame = Store(store.root).dataset(result.dataset("scores")).to_table().to_pandas()
    return check_frame(frame, ScoreFrame)


def test_three_local_models_answer_every_test_row(store: StoreSpec, teacher_folder: Path) -> None:
    teacher = TransformersTeacher(model=str(teacher_folder), dtype="float32", device="cpu")
    seen: list[tuple[int, int]] = []
    result = evaluate_models(
        **arguments(store, teacher), on_progress=lambda done, total: seen.append((done, total))
    )
    frame = scores_frame(store, result)
    assert frame.groupby("model").size().to_dict() == {
        "teacher": NUM_ROWS,
        "baseline": NUM_ROWS,
        "student": NUM_ROWS,
    }
    assert frame["score"].notna().all()
    assert seen == [(7, 21), (14, 21), (21, 21)]
    assert result.manifest.counts["teacher_asked"] == NUM_ROWS

    measured = measurements_of(result.dataset("scores"), Store(store.root))
    teacher_model, student_model = measured.models["teacher"], measured.models["student"]
    assert teacher_model.num_parameters and student_model.num_parameters
    assert teacher_model.weight_bytes == 4 * teacher_model.num_parameters
    assert teacher_model.kv_cache_bytes == 2 * 3 * 1 * 8 * 4 * 64
    assert student_model.identity == "student-1"
    for model in measured.models.values():
        assert model.performance.latency_p50_s and model.performance.queries_per_hour
        assert (model.performance.latency_rows, model.performance.throughput_rows) == (5, 6)


def test_unchanged_rerun_is_reused_and_a_new_student_does_not_pay_the_teacher_again(
    store: StoreSpec, teacher_folder: Path
) -> None:
    teacher = TransformersTeacher(model=str(teacher_folder), dtype="float32", device="cpu")
    first = evaluate_models(**arguments(store, teacher))
    second = evaluate_models(**arguments(store, teacher))
    assert second.reused and second.manifest == first.manifest
    other = ModelRef(
        uri=model_ref(store, "student", seed=3).uri, fingerprint="student-2", num_parameters=1
    )
    third = evaluate_models(**arguments(store, teacher, student_model=other))
    assert not third.reused
    assert third.manifest.counts["teacher_asked"] == 0
    forced = ExecutionSpec(force=(StageName.EVALUATE_MODELS,))
    assert not evaluate_models(**arguments(store, teacher, execution=forced)).reused


def test_pretrained_student_is_its_own_baseline(store: StoreSpec, teacher_folder: Path) -> None:
    teacher = TransformersTeacher(model=str(teacher_folder), dtype="float32", device="cpu")
    student = PretrainedStudent(model=str(teacher_folder), dtype="float32")
    result = evaluate_models(**arguments(store, teacher, student=student, baseline=None))
    frame = scores_frame(store, result)
    answers = frame.pivot(index="prompt_id", columns="model", values="answer")
    assert (answers["baseline"] == answers["teacher"]).all()


def test_student_from_scratch_without_gold_rows_has_no_baseline(store: StoreSpec) -> None:
    with StubEndpoint(default=Reply(text="yes")) as stub:
        result = evaluate_models(**arguments(store, hosted(stub), baseline=None))
    assert set(read_scores(result.dataset("scores"), Store(store.root))) == {"teacher", "student"}


def test_hosted_teacher_is_scored_and_timed_but_its_size_is_not_known(store: StoreSpec) -> None:
    with StubEndpoint(default=Reply(text="Yes.")) as stub:
        result = evaluate_models(**arguments(store, hosted(stub)))
    scores = read_scores(result.dataset("scores"), Store(store.root))
    assert scores["teacher"].tolist() == [1.0] * NUM_ROWS
    assert all(request["temperature"] == 0 for request in stub.requests)
    teacher = measurements_of(result.dataset("scores"), Store(store.root)).models["teacher"]
    assert teacher.hosted and teacher.name == "big"
    assert teacher.num_parameters is None and teacher.weight_bytes is None
    assert teacher.performance.latency_p50_s and teacher.performance.tokens_per_s
    # scores, warm-up, latency, throughput; no batch is spent on warming up
    assert stub.num_requests == NUM_ROWS + 1 + 5 + 6


def test_tokens_that_an_endpoint_does_not_count_are_unknown_not_none(store: StoreSpec) -> None:
    with StubEndpoint(default=Reply(text="yes", usage=None)) as stub:
        result = evaluate_models(**arguments(store, hosted(stub)))
    speed = measurements_of(result.dataset("scores"), Store(store.root)).models["teacher"]
    assert speed.performance.queries_per_hour
    assert speed.performance.tokens_per_s is None


def test_refused_prompt_is_unscored_not_wrong(store: StoreSpec) -> None:
    def respond(body: dict[str, Any]) -> Reply:
        refused = "alert(3)" in body["messages"][-1]["content"]
        return Reply(status=400, error="too long") if refused else Reply(text="yes")

    with StubEndpoint(respond=respond) as stub:
        result = evaluate_models(**arguments(store, hosted(stub)))
    frame = scores_frame(store, result).query("model == 'teacher'").set_index("prompt_id")
    assert frame["score"].isna().sum() == 1
    assert pd.isna(frame.at["test-003", "score"]) and pd.isna(frame.at["test-003", "answer"])
    assert result.manifest.counts["teacher_unscored"] == 1


def test_truncated_answer_is_wrong(store: StoreSpec) -> None:
    with StubEndpoint(default=Reply(text="yes", finish_reason="length")) as stub:
        result = evaluate_models(**arguments(store, hosted(stub)))
    scores = read_scores(result.dataset("scores"), Store(store.root))
    assert scores["teacher"].tolist() == [0.0] * NUM_ROWS


def test_passing_failure_leaves_the_stage_unsealed_and_keeps_the_answers(store: StoreSpec) -> None:
    down = {"now": True}

    def respond(body: dict[str, Any]) -> Reply:
        failing = down["now"] and "alert(3)" in body["messages"][-1]["content"]
        return Reply(status=503) if failing else Reply(text="yes")

    with StubEndpoint(respond=respond) as stub:
        given = arguments(store, hosted(stub))
        with pytest.raises(TeacherError, match="1 of 7 test prompts have no answer"):
            evaluate_models(**given)
        assert Store(store.root).list_folders("evaluate_models") in ([], [_fingerprint(given)])
        down["now"] = False
        result = evaluate_models(**given)
    assert not result.reused and result.manifest.counts["teacher_asked"] == 1


def _fingerprint(given: dict[str, Any]) -> str:
    read = {key: value for key, value in given.items() if key not in ("store", "execution")}
    return evaluation_stage(**read).fingerprint


def test_fingerprint_holds_what_changes_the_figures_and_nothing_else(
    store: StoreSpec, teacher_folder: Path
) -> None:
    teacher = TransformersTeacher(model=str(teacher_folder), dtype="float32")
    given = arguments(store, teacher)
    reference = _fingerprint(given)

    def changed(name: str, /, **fields: Any) -> str:
        return _fingerprint({**given, name: given[name].model_copy(update=fields)})

    for name, fields in [
        ("evaluation", {"batch_size": 1}),
        ("evaluation", {"bootstrap_samples": 100, "confidence": 0.9, "seed": 1}),
        ("teacher", {"batch_size": 1, "device": "cpu", "seed": 1, "max_new_tokens": 1}),
        ("task", {"name": "other"}),
    ]:
        assert changed(name, **fields) == reference, (name, fields)
    for name, fields in [
        ("evaluation", {"max_new_tokens": 5}),
        ("evaluation", {"throughput_batch_size": 5}),
        ("teacher", {"dtype": "bfloat16"}),
        ("student_model", {"fingerprint": "student-9"}),
        ("baseline", {"fingerprint": "baseline-9"}),
        ("prompts", {"fingerprint": "0" * 64}),
    ]:
        assert changed(name, **fields) != reference, (name, fields)


def test_no_test_rows_is_an_error_not_an_empty_table(store: StoreSpec) -> None:
    frame = prompt_frame(2).assign(split="train")
    with StubEndpoint() as stub:
        given = arguments(store, hosted(stub), prompts=seal_prompts(store, frame))
        with pytest.raises(StageError, match="have no test rows"):
            evaluate_models(**given)
    assert stub.num_requests == 0


def test_task_without_a_metric_is_refused_before_anyone_is_asked(store: StoreSpec) -> None:
    with StubEndpoint() as stub:
        given = arguments(store, hosted(stub), task=TaskSpec(name="t", type=TaskKind.QA))
        with pytest.raises(RecipeError, match="is not yet supported"):
            evaluate_models(**given)
    assert stub.num_requests == 0
