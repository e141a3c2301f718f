import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from distillery.evaluation.answers import answer_questions, answers_stage
from distillery.evaluation.comparison import read_answers
from distillery.evaluation.contestants import line_up
from distillery.evaluation.performance import (
    evaluated,
    measure_performance,
    performance_stage,
    read_figures,
)
from distillery.models.loading import ModelFiles
from distillery.models.local import LocalModel
from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from distillery.teacher.http.batch.teacher import BatchTeacher
from schemas.comparison import Measurements
from schemas.contestants import ContestantSpec, TeacherContestant, TrainedContestant
from schemas.errors import StageError, TeacherError
from schemas.evaluation import EvaluationSpec
from schemas.examples import FixedExamples
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.export import ExportSpec
from schemas.refs import DatasetRef, ModelRef
from schemas.student import FromScratchStudent, PretrainedStudent, PrunedStudent, StudentSpec
from schemas.task import TaskKind, TaskSpec
from schemas.teacher import OpenAITeacher, TeacherSpec, TransformersTeacher
from tests.fixtures_comparison import TASK, prompt_frame, seal_prompts
from tests.fixtures_lineage import lineage_of
from tests.fixtures_models import make_tiny_model
from tests.stub_batches import StubOpenAI
from tests.stub_endpoint import Reply, StubEndpoint

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_ROWS = 7
EXECUTION = ExecutionSpec()
EVALUATION = EvaluationSpec(
    max_new_tokens=4,
    latency_rows=5,
    latency_warmup=1,
    throughput_rows=6,
    concurrencies=(1, 4),
    context_tokens=64,
)
FROM_SCRATCH = FromScratchStudent(num_layers=1, hidden_size=8, intermediate_size=16, num_heads=2)


def model_ref(store: StoreSpec, name: str, *, seed: int, fingerprint: str = "") -> ModelRef:
    uri = f"train_{name}/{name}/attempt{seed}/model"
    if not (folder := Path(store.root, uri)).is_dir():
        make_tiny_model(folder, num_layers=1, hidden_size=8, seed=seed)
    return ModelRef(uri=uri, fingerprint=fingerprint or f"{name}-{seed}", num_parameters=1)


@dataclass(frozen=True)
class Run:
    """What the flow `evaluate_models` does, without Prefect."""

    store: StoreSpec
    contestants: tuple[ContestantSpec, ...]
    prompts: DatasetRef
    task: TaskSpec = TASK
    evaluation: EvaluationSpec = EVALUATION
    execution: ExecutionSpec = EXECUTION

    def answer(self, name: str, **options: Any) -> StageResult:
        spec = next(one for one in self.contestants if one.name == name)
        return answer_questions(
            spec, self.prompts, self.task, self.evaluation, self.store, self.execution, **options
        )

    def measure(self) -> StageResult:
        answers = {one.name: self.answer(one.name).dataset("answers") for one in self.contestants}
        return measure_performance(
            answers,
            {},
            self.prompts,
            self.contestants,
            self.task,
            self.evaluation,
            self.store,
            self.execution,
        )

    def frame(self, name: str) -> pd.DataFrame:
        return read_answers(self.answer(name).dataset("answers"), Store(self.store.root))

    def measurements(self) -> Measurements:
        report = evaluated(self.measure()).measurements
        return read_figures(report, "measurements.json", Measurements, Store(self.store.root))


def run_of(
    store: StoreSpec,
    teacher: TeacherSpec,
    *,
    student: StudentSpec = FROM_SCRATCH,
    has_baseline: bool = True,
    champion: ModelRef | None = None,
    in_context: bool = False,
    student_seed: int = 3,
) -> Run:
    contestants = line_up(
        teacher,
        student,
        lineage_of(
            model_ref(store, "student", seed=student_seed),
            baseline=model_ref(store, "baseline", seed=2) if has_baseline else None,
        ),
        champion,
        ExportSpec(),
        EvaluationSpec(in_context_student=in_context),
    )
    return Run(store, contestants, seal_prompts(store, prompt_frame(NUM_ROWS)))


def hosted(stub: StubEndpoint, **fields: Any) -> OpenAITeacher:
    known = {"model": "big", "base_url": stub.base_url, "concurrency": 2, "max_attempts": 1}
    return OpenAITeacher.model_validate(known | fields)


def local(folder: Path, **fields: Any) -> TransformersTeacher:
    known = {"model": str(folder), "dtype": "float32", "device": "cpu"}
    return TransformersTeacher.model_validate(known | fields)


def test_the_baseline_of_a_pruned_student_is_the_pruned_model(store: StoreSpec) -> None:
    pruned = {"model": "someone/large", "revision": "a" * 40, "num_layers": 2}
    student = PrunedStudent.model_validate(pruned | {"trust_remote_code": True})
    teacher = TransformersTeacher(model="someone/large", revision="a" * 40)
    run = run_of(store, teacher, student=student)
    _, baseline, trained = run.contestants
    assert isinstance(baseline, TrainedContestant) and isinstance(trained, TrainedContestant)
    assert (baseline.name, trained.name) == ("baseline", "student")
    assert baseline.model == model_ref(store, "baseline", seed=2)
    assert baseline.trust_remote_code and trained.trust_remote_code


def test_every_contestant_answers_every_test_row_and_is_measured(
    store: StoreSpec, teacher_folder: Path
) -> None:
    champion = model_ref(store, "student", seed=9)
    run = run_of(store, local(teacher_folder), champion=champion)
    assert [one.name for one in run.contestants] == ["teacher", "baseline", "champion", "student"]
    seen: list[tuple[int, int, str]] = []
    done = run.answer(
        "teacher", on_progress=lambda done, all_of, note: seen.append((done, all_of, note()))
    )
    idle = "0/64 in flight"
    assert seen == [(0, NUM_ROWS, idle), (NUM_ROWS, NUM_ROWS, idle)]
    assert done.manifest.counts == {
        "rows": NUM_ROWS,
        "unscored": 0,
        "truncated": done.manifest.counts["truncated"],
        "asked": NUM_ROWS,
    }
    measured = run.measurements()
    assert list(measured.contestants) == ["teacher", "baseline", "champion", "student"]
    for name, model in measured.contestants.items():
        assert run.frame(name)["accuracy"].notna().sum() == NUM_ROWS
        assert model.size is not None
        assert model.performance.latency_p50_s and model.performance.queries_per_hour
        assert model.performance.latency_rows == 5
        assert [(load.concurrency, load.num_rows) for load in model.performance.loads] == [
            (1, 5),
            (4, 4),
        ]
        assert model.performance.first_token_p50_s is not None
        assert model.performance.first_token_p50_s < model.performance.latency_p50_s
        assert model.peak_memory_bytes and model.peak_memory_bytes >= model.size.weight_bytes
        assert model.size.disk_bytes and model.size.disk_bytes >= model.size.weight_bytes
    teacher = measured.contestants["teacher"].size
    assert teacher is not None
    assert teacher.weight_bytes == 4 * teacher.num_parameters
    assert teacher.kv_cache_bytes == 2 * 3 * 1 * 8 * 4 * 64
    assert measured.contestants["student"].identity == "student-3"


def test_a_new_student_makes_none_of_the_other_three_answer_again(
    store: StoreSpec, teacher_folder: Path
) -> None:
    teacher, champion = local(teacher_folder), model_ref(store, "student", seed=9)
    first = run_of(store, teacher, champion=champion)
    measured = first.measure()
    assert first.measure().reused and first.measure().manifest == measured.manifest
    second = run_of(store, teacher, champion=champion, student_seed=4)
    reused = {one.name: second.answer(one.name).reused for one in second.contestants}
    assert reused == {"teacher": True, "baseline": True, "champion": True, "student": False}
    assert not second.measure().reused


def test_new_training_rows_make_nobody_answer_again_or_be_timed_again(
    store: StoreSpec, teacher_folder: Path
) -> None:
    run = run_of(store, local(teacher_folder), champion=model_ref(store, "student", seed=9))
    run = replace(
        run, prompts=run.prompts.model_copy(update={"hashes": {"test": "t", "gold": "g"}})
    )
    run.measure()
    later = replace(run, prompts=run.prompts.model_copy(update={"fingerprint": "0" * 64}))
    assert all(later.answer(one.name).reused for one in later.contestants)
    assert later.measure().reused


def test_new_gold_rows_count_for_those_who_are_shown_some(
    store: StoreSpec, teacher_folder: Path
) -> None:
    student = PretrainedStudent(model=str(teacher_folder), dtype="float32")
    options: dict[str, Any] = {"student": student, "has_baseline": False, "in_context": True}
    run = run_of(store, local(teacher_folder, examples=FixedExamples(num_examples=1)), **options)

    def fingerprints(**hashes: str) -> dict[str, str]:
        prompts = run.prompts.model_copy(update={"hashes": {"test": "t", "gold": "g"} | hashes})
        return {
            one.name: answers_stage(one, prompts, TASK, EVALUATION).fingerprint
            for one in run.contestants
        }

    def changed(**hashes: str) -> set[str]:
        before, after = fingerprints(), fingerprints(**hashes)
        return {name for name in before if before[name] != after[name]}

    assert changed(gold="other") == {"teacher", "in-context student"}
    assert changed(test="other") == {"teacher", "baseline", "in-context student", "student"}
    assert changed(train="other") == set()


def test_the_student_that_became_champion_does_not_answer_again(
    store: StoreSpec, teacher_folder: Path
) -> None:
    teacher = local(teacher_folder)
    run_of(store, teacher).answer("student")
    later = run_of(store, teacher, champion=model_ref(store, "student", seed=3), student_seed=4)
    assert later.answer("champion").reused


def test_force_asks_again_and_measures_again(store: StoreSpec, teacher_folder: Path) -> None:
    run = run_of(store, local(teacher_folder), has_baseline=False)
    run.measure()
    forced = replace(run, execution=ExecutionSpec(force=(StageName.ANSWER_TEST_PROMPTS,)))
    assert not forced.answer("student").reused and not forced.measure().reused
    measured = replace(run, execution=ExecutionSpec(force=(StageName.MEASURE_PERFORMANCE,)))
    assert measured.answer("student").reused and not measured.measure().reused


def test_measurements_whose_answers_are_gone_are_made_again(
    store: StoreSpec, teacher_folder: Path
) -> None:
    run = run_of(store, local(teacher_folder), has_baseline=False)
    answers = evaluated(run.measure()).answers["student"]
    Store(store.root).delete(answers.uri)
    assert not run.measure().reused


def test_pretrained_student_is_its_own_baseline(store: StoreSpec, teacher_folder: Path) -> None:
    student = PretrainedStudent(model=str(teacher_folder), dtype="float32")
    run = run_of(store, local(teacher_folder), student=student, has_baseline=False)
    assert [one.name for one in run.contestants] == ["teacher", "baseline", "student"]
    assert run.frame("baseline")["response"].equals(run.frame("teacher")["response"])


def test_student_from_scratch_without_gold_rows_has_no_baseline(
    store: StoreSpec, teacher_folder: Path
) -> None:
    run = run_of(store, local(teacher_folder), has_baseline=False)
    assert [one.name for one in run.contestants] == ["teacher", "student"]


def test_trained_models_are_opened_in_the_precision_in_which_they_were_saved(
    store: StoreSpec, teacher_folder: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ref = model_ref(store, "student", seed=3)
    folder = Path(store.root, ref.uri)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    run = run_of(store, local(teacher_folder))
    sizes = {name: one.size for name, one in run.measurements().contestants.items()}
    student, baseline = sizes["student"], sizes["baseline"]
    assert student and student.weight_bytes == 2 * student.num_parameters
    assert baseline and baseline.weight_bytes == 4 * baseline.num_parameters


def test_hosted_teacher_is_scored_and_timed_but_its_size_is_not_known(store: StoreSpec) -> None:
    with StubEndpoint(default=Reply(text="Yes.")) as stub:
        run = run_of(store, hosted(stub))
        assert run.frame("teacher")["accuracy"].tolist() == [1.0] * NUM_ROWS
        teacher = run.measurements().contestants["teacher"]
    assert teacher.size is None and teacher.model == "big"
    assert teacher.performance.latency_p50_s and teacher.performance.tokens_per_s
    # scores, warm-up, latency, throughput; no batch is spent on warming up
    assert stub.num_requests == NUM_ROWS + 1 + 5 + 6


def test_a_teacher_in_batches_is_scored_by_one_batch_and_timed_by_live_requests(
    store: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = functools.partial(BatchTeacher, poll_s=0.01)
    monkeypatch.setattr("distillery.teacher.http.batch.teacher.BatchTeacher", hasty)
    yes = Reply(text="Yes.")
    with StubOpenAI(default=yes, answers=lambda *_: yes) as stub:
        run = run_of(store, hosted(stub, batch=True))
        assert run.frame("teacher")["accuracy"].tolist() == [1.0] * NUM_ROWS
        assert run.measurements().contestants["teacher"].performance.latency_p50_s
    assert [len(made.requests) for made in stub.made] == [NUM_ROWS]
    assert sum("messages" in body for body in stub.requests) == 1 + 5 + 6


def test_a_served_teacher_is_scored_and_timed_with_the_requests_of_its_recipe(
    store: StoreSpec,
) -> None:
    schema = {"type": "object", "properties": {"label": {"type": "string"}}}
    task = TaskSpec.model_validate(
        {
            "name": "t",
            "type": "classification",
            "answer_format": {"kind": "json", "json_schema": schema},
        }
    )
    with StubEndpoint(default=Reply(text='{"label": "yes"}')) as stub:
        teacher = hosted(
            stub,
            sampling_temperature=1.0,
            top_p=0.9,
            seed=7,
            max_new_tokens=999,
            structured_output="json_schema",
            extra_body={"reasoning_effort": "low"},
        )
        replace(run_of(store, teacher), task=task).measure()
    asked = [
        {name: value for name, value in request.items() if name != "messages"}
        for request in stub.requests
    ]
    assert len(asked) == NUM_ROWS + 1 + 5 + 6
    # One request at a time is streamed, as that tells when the first token comes.
    streamed = [request for request in asked if request.pop("stream", False)]
    usage = [request.pop("stream_options") for request in streamed]
    assert usage == 5 * [{"include_usage": True}]
    assert all(request == asked[0] for request in asked)
    assert (asked[0]["temperature"], asked[0]["top_p"], asked[0]["seed"]) == (1.0, 0.9, 7)
    assert asked[0]["reasoning_effort"] == "low" and "response_format" in asked[0]
    assert 4 in asked[0].values() and 999 not in asked[0].values()


def test_an_endpoint_that_takes_temperature_1_only_can_be_evaluated(store: StoreSpec) -> None:
    def respond(body: dict[str, Any]) -> Reply:
        if body.get("temperature") == 1:
            return Reply(text="yes")
        return Reply(status=400, error="Unsupported value: 'temperature' is not 1")

    with StubEndpoint(respond=respond) as stub:
        run = run_of(store, hosted(stub, sampling_temperature=1.0))
        assert run.frame("teacher")["accuracy"].tolist() == [1.0] * NUM_ROWS
        assert run.measurements().contestants["teacher"].performance.latency_rows == 5


def test_tokens_that_an_endpoint_does_not_count_are_unknown_not_none(store: StoreSpec) -> None:
    with StubEndpoint(default=Reply(text="yes", usage=None)) as stub:
        speed = run_of(store, hosted(stub)).measurements().contestants["teacher"].performance
    assert speed.queries_per_hour
    assert speed.tokens_per_s is None


def test_refused_prompt_is_unscored_not_wrong(store: StoreSpec) -> None:
    def respond(body: dict[str, Any]) -> Reply:
        refused = "alert(3)" in body["messages"][-1]["content"]
        return Reply(status=400, error="too long") if refused else Reply(text="yes")

    with StubEndpoint(respond=respond) as stub:
        run = run_of(store, hosted(stub))
        done, frame = run.answer("teacher"), run.frame("teacher")
    assert frame.index[frame["accuracy"].isna()].tolist() == ["test-003"]
    assert frame.index[frame["response"].isna()].tolist() == ["test-003"]
    assert done.manifest.counts["unscored"] == 1


def test_a_row_is_scored_when_its_primary_metric_is(store: StoreSpec) -> None:
    prompts = prompt_frame(3).assign(references=['["yes"]', '["unanswerable"]', '["ok"]'])
    prompts["references"] = prompts["references"].astype("str")

    def respond(body: dict[str, Any]) -> Reply:
        asked = body["messages"][-1]["content"]
        return Reply(text="No answer." if "alert(1)" in asked else "ok")

    with StubEndpoint(respond=respond) as stub:
        run = replace(
            run_of(store, hosted(stub)),
            prompts=seal_prompts(store, prompts),
            task=TaskSpec(name="t", type=TaskKind.QA),
        )
        done, frame = run.answer("teacher"), run.frame("teacher")
    assert frame["F1"].tolist() == [0.0, 1.0, 1.0]
    assert frame["in context"].tolist() == pytest.approx([1.0, float("nan"), 1.0], nan_ok=True)
    assert done.manifest.counts["unscored"] == 0


def test_truncated_answer_is_wrong(store: StoreSpec) -> None:
    with StubEndpoint(default=Reply(text="yes", finish_reason="length")) as stub:
        run = run_of(store, hosted(stub))
        done, frame = run.answer("teacher"), run.frame("teacher")
    assert frame["accuracy"].tolist() == [0.0] * NUM_ROWS
    assert done.manifest.counts["truncated"] == NUM_ROWS


def test_passing_failure_leaves_the_stage_unsealed_and_keeps_the_answers(store: StoreSpec) -> None:
    down = {"now": True}

    def respond(body: dict[str, Any]) -> Reply:
        failing = down["now"] and "alert(3)" in body["messages"][-1]["content"]
        return Reply(status=503) if failing else Reply(text="yes")

    with StubEndpoint(respond=respond) as stub:
        run = run_of(store, hosted(stub))
        with pytest.raises(TeacherError, match="1 of 7 test prompts have no answer"):
            run.answer("teacher")
        assert not list(Path(store.root).glob("answer_test_prompts/*/manifest.json"))
        down["now"] = False
        done = run.answer("teacher")
    assert not done.reused and done.manifest.counts["asked"] == 1


def test_fingerprints_hold_what_changes_the_answers_or_the_figures_and_nothing_else(
    store: StoreSpec, teacher_folder: Path
) -> None:
    run = run_of(store, local(teacher_folder))
    teacher, _, student = run.contestants

    def answers(spec: ContestantSpec = teacher, **changed: Any) -> str:
        new = replace(run, **changed)
        return answers_stage(spec, new.prompts, new.task, new.evaluation).fingerprint

    def figures(**changed: Any) -> str:
        new = replace(run, **changed)
        return performance_stage(new.prompts, new.contestants, new.task, new.evaluation).fingerprint

    def evaluation(**fields: Any) -> EvaluationSpec:
        return EVALUATION.model_copy(update=fields)

    def served(**fields: Any) -> ContestantSpec:
        known = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
        return TeacherContestant(name="teacher", teacher=OpenAITeacher(**known | fields))

    def asked(**fields: Any) -> ContestantSpec:
        return line_up(
            local(teacher_folder, **fields),
            FROM_SCRATCH,
            lineage_of(student_model),
            None,
            ExportSpec(),
            EvaluationSpec(),
        )[0]

    student_model = model_ref(store, "student", seed=3)
    for same in (
        evaluation(batch_size=1),
        evaluation(bootstrap_samples=100, confidence=0.9, seed=1),
    ):
        assert answers(evaluation=same) == answers() and figures(evaluation=same) == figures()
    for timing in (evaluation(concurrencies=(5,)), evaluation(latency_rows=6)):
        assert answers(evaluation=timing) == answers() and figures(evaluation=timing) != figures()
    longer = evaluation(max_new_tokens=5)
    assert answers(evaluation=longer) != answers() and figures(evaluation=longer) != figures()
    assert answers(task=TASK.model_copy(update={"name": "other"})) == answers()
    assert answers(asked(batch_size=1, seed=1, max_new_tokens=1)) == answers()
    assert answers(asked(dtype="bfloat16")) != answers()
    assert answers(asked(sampling_temperature=0.5)) != answers()
    assert answers(asked(system_prompt="auto")) != answers()
    assert answers(asked(examples=FixedExamples())) != answers()
    assert answers(student.model_copy(update={"name": "champion", "device": "cuda"})) == answers(
        student
    )
    assert figures(contestants=run.contestants[:2]) != figures()
    elsewhere = student.model_copy(update={"device": "cuda"})
    assert figures(contestants=(elsewhere,)) != figures(contestants=(student,))
    at_once = {n: (served(concurrency=n),) for n in (2, 64, 100)}
    most = evaluation(concurrencies=(1, 32))
    assert figures(contestants=at_once[2], evaluation=most) != figures(
        contestants=at_once[64], evaluation=most
    )
    assert figures(contestants=at_once[64], evaluation=most) == figures(
        contestants=at_once[100], evaluation=most
    )
    assert answers(prompts=run.prompts.model_copy(update={"fingerprint": "0"})) != answers()


def test_no_test_rows_is_an_error_not_an_empty_table(store: StoreSpec) -> None:
    prompts = seal_prompts(store, prompt_frame(2).assign(split="train"))
    with StubEndpoint() as stub:
        run = replace(run_of(store, hosted(stub)), prompts=prompts)
        with pytest.raises(StageError, match="have no test rows"):
            run.answer("teacher")
    assert stub.num_requests == 0


# -- the teacher's prompt is not the student's ---------------------------------------------------

TOLD: dict[str, Any] = {
    "system_prompt": "Say yes or no.",
    "examples": FixedExamples(num_examples=1),
}


def instructed(store: StoreSpec, teacher: TeacherSpec, **options: Any) -> Run:
    """Return a run whose prompts have a gold row to show."""
    gold = {
        **{"prompt_id": "gold-0", "split": "gold", "source_row": 1, "references": '["no"]'},
        "messages": '[{"content":"is it late?","role":"user"}]',
        **{"content_hash": "1" * 64, "cluster": "gold-0"},
    }
    frame = pd.DataFrame([*prompt_frame(NUM_ROWS).to_dict("records"), gold])
    frame = frame.assign(slices=pd.array([None] * len(frame), dtype="str"))
    return replace(run_of(store, teacher, **options), prompts=seal_prompts(store, frame))


def test_a_served_teacher_is_scored_and_timed_with_its_own_prompt(store: StoreSpec) -> None:
    with StubEndpoint() as stub:
        run = instructed(store, hosted(stub, **TOLD))
        run.answer("teacher")
        num_scored = stub.num_requests
        measured = run.measurements()
        sent = [body["messages"] for body in stub.requests]
    assert num_scored == NUM_ROWS and len(sent) > 2 * NUM_ROWS
    for messages in sent:
        assert [turn["content"] for turn in messages[:3]] == ["Say yes or no.", "is it late?", "no"]
        assert messages[3]["content"].endswith(" ok?") and len(messages) == 4
    read = {name: one.performance.prompt_tokens for name, one in measured.contestants.items()}
    assert read["teacher"] == 7  # as the endpoint says
    assert read["student"] == read["baseline"] and read["student"] is not None


def test_prompt_tokens_that_an_endpoint_does_not_count_are_unknown(store: StoreSpec) -> None:
    with StubEndpoint(default=Reply(usage=None)) as stub:
        measured = run_of(store, hosted(stub)).measurements()
    assert measured.contestants["teacher"].performance.prompt_tokens is None


def test_the_untrained_student_reads_the_teachers_prompt_in_place_of_its_own(
    store: StoreSpec, teacher_folder: Path
) -> None:
    student = PretrainedStudent(
        model=str(teacher_folder), dtype="float32", system_prompt="Be brief."
    )
    teacher = local(teacher_folder, **TOLD)
    run = instructed(store, teacher, student=student, has_baseline=False, in_context=True)
    names = ["teacher", "baseline", "in-context student", "student"]
    assert [one.name for one in run.contestants] == names
    # It is the teacher's model, so it says what the teacher says; the baseline is told less.
    assert list(run.frame("in-context student")["response"]) == list(
        run.frame("teacher")["response"]
    )
    assert list(run.frame("baseline")["response"]) != list(run.frame("teacher")["response"])
    measured = run.measurements().contestants
    read = {name: one.performance.prompt_tokens for name, one in measured.items()}
    assert read["in-context student"] == read["teacher"]
    one = LocalModel.load(teacher_folder, device="cpu").chat_format
    told = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<script>alert(0)</script> ok?"},
    ]
    assert read["baseline"] == len(one.prompt_ids(told))
    assert read["teacher"] is not None and read["teacher"] > len(one.prompt_ids(told))
    assert measured["baseline"].performance.prompt_tokens != read["student"]


def test_baseline_and_in_context_student_are_in_memory_once(
    store: StoreSpec, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    weights = ModelFiles.weights

    def noted(files: ModelFiles, dtype: Any) -> Any:
        loaded.append(files.model)
        return weights(files, dtype)

    monkeypatch.setattr(ModelFiles, "weights", noted)
    student = PretrainedStudent(
        model=str(make_tiny_model(tmp_path / "untrained", seed=4)), dtype="float32"
    )
    teacher = local(teacher_folder, **TOLD)
    run = instructed(store, teacher, student=student, has_baseline=False, in_context=True)
    for one in run.contestants:
        run.answer(one.name)
    loaded.clear()
    run.measure()
    assert len(loaded) == 3 and loaded.count(student.model) == 1


def test_a_students_instructions_are_part_of_the_baselines_answers(
    store: StoreSpec, teacher_folder: Path
) -> None:
    def fingerprint(**fields: Any) -> str:
        student = PretrainedStudent(model=str(teacher_folder), **fields)
        run = run_of(store, local(teacher_folder), student=student, has_baseline=False)
        return answers_stage(run.contestants[1], run.prompts, TASK, EVALUATION).fingerprint

    assert fingerprint() != fingerprint(system_prompt="Be brief.")


def test_a_student_from_scratch_has_nothing_to_say_untrained(
    store: StoreSpec, teacher_folder: Path
) -> None:
    run = run_of(store, local(teacher_folder), in_context=True)
    assert [one.name for one in run.contestants] == ["teacher", "baseline", "student"]
