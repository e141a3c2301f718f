"""Evaluation: teacher, baseline and student answer the same test rows, then run against the clock.

Quality and performance are measured in one attempt and sealed together: an unchanged run measures
nothing, and figures of different machines never meet in one table.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from distillery.data.chat import load_messages
from distillery.evaluation.contestants import (
    Contest,
    HostedModel,
    baseline_identity,
    greedy,
)
from distillery.evaluation.performance import (
    Contestant,
    Conversation,
    measure_performance,
    rows_to_time,
)
from distillery.models.hardware import (
    accelerator_peak_bytes,
    cpu_threads,
    hardware_record,
    process_peak_bytes,
)
from distillery.models.local import LocalModel
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.task_types import task_type
from distillery.teacher import ResponseSchema, make_request, teacher_identity
from distillery.teacher.protocol import NO_TEXT
from distillery.teacher.session import AskedFor, TeacherSession
from schemas.comparison import Measurements, ModelMeasurement, ModelRole, Performance
from schemas.errors import StageError, TeacherError
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef, ModelRef
from schemas.student import StudentSpec
from schemas.task import TaskSpec
from schemas.teacher import OpenAITeacher, TeacherSpec

if TYPE_CHECKING:
    import pandas as pd

    from distillery.storage.store import RowWriter

_LOGIC_VERSION = 3
_CHUNK_ROWS = 1024  # enough that conversations of similar length find each other in a batch
_HOSTED_TURN = 8  # times the concurrency: the first request of a turn goes alone

# What the stage reads of the evaluation section; the rest is about intervals.
_READ = {
    "max_new_tokens",
    "latency_rows",
    "latency_warmup",
    "throughput_rows",
    "throughput_batch_size",
    "context_tokens",
}

OnProgress = Callable[[int, int], None]
"""Called with the answers so far and those in all, over all models."""


@dataclass(frozen=True)
class _Scored:
    """One answer: its text (None where there is none), whether it was cut, its new tokens."""

    text: str | None
    truncated: bool
    new_tokens: int


def evaluation_stage(
    prompts: DatasetRef,
    *,
    teacher: TeacherSpec,
    student: StudentSpec,
    baseline: ModelRef | None,
    student_model: ModelRef,
    task: TaskSpec,
    evaluation: EvaluationSpec,
) -> Stage:
    """Return what identifies the evaluation: prompts, weights, precision, limits, metric."""
    return Stage(
        StageName.EVALUATE_MODELS,
        _LOGIC_VERSION,
        inputs={
            "prompts": prompts.fingerprint,
            "teacher": teacher_identity(teacher),
            "baseline": baseline_identity(student, baseline),
            "student": student_model.fingerprint,
            # Training again on a GPU may give other weights under one fingerprint.
            "attempts": [baseline.uri if baseline else None, student_model.uri],
        },
        spec={
            "evaluation": evaluation.model_dump(include=_READ),
            "dtype": student.dtype,
            "task_type": task.type,
            "answer_format": task.answer_format,
        },
    )


def evaluate_models(
    prompts: DatasetRef,
    *,
    teacher: TeacherSpec,
    student: StudentSpec,
    baseline: ModelRef | None,
    student_model: ModelRef,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    on_progress: OnProgress | None = None,
) -> StageResult:
    """Return output `scores`, a row per model and test prompt, and fact `measurements`.

    The teacher is asked through the ledger, so another student does not pay for it again. All
    local models are in memory together while performance is measured.

    Args:
        prompts: Output of `validate_prompts`; its test rows are answered, all of them.
        teacher: Who the others are compared with.
        student: How baseline and student were made: precision, and the pretrained model.
        baseline: The student as it was before teacher data. None: the pretrained model as it
            comes; a student from scratch then has no baseline.
        student_model: The trained student.
        task: Decides the metric.
        evaluation: Limits and numbers of rows.
        store: Store and ledger.
        execution: How the run is carried out.
        on_progress: See :data:`OnProgress`.

    Raises:
        RecipeError: The task has no metric yet, or a model cannot be loaded.
        StageError: There are no test rows.
        TeacherError: The endpoint left requests without an answer.
    """
    task_type(task)
    stage = evaluation_stage(
        prompts,
        teacher=teacher,
        student=student,
        baseline=baseline,
        student_model=student_model,
        task=task,
        evaluation=evaluation,
    )
    contest = Contest(teacher, student, baseline, student_model)

    def work(attempt: Attempt) -> None:
        measuring = _Evaluation(attempt, prompts, task, evaluation, contest, store, on_progress)
        with ExitStack() as files, cpu_threads(execution):
            measuring.run(files)

    return run_stage(stage, store, execution, work)


@dataclass
class _Evaluation:
    """One attempt: first the teacher, then the models that are loaded here, then the clock."""

    attempt: Attempt
    prompts: DatasetRef
    task: TaskSpec
    evaluation: EvaluationSpec
    contest: Contest
    store: StoreSpec
    on_progress: OnProgress | None
    loaded: dict[ModelRole, LocalModel] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    @functools.cached_property
    def num_rows(self) -> int:
        """Return how many test rows there are."""
        return int(
            self.attempt.store.dataset(self.prompts).count_rows(filter=pc.field("split") == "test")
        )

    def run(self, files: ExitStack) -> None:
        """Write the scores and measure; ``files`` holds downloads as long as needed."""
        if self.num_rows == 0:
            raise StageError(
                f"prompts {self.prompts.fingerprint[:12]!r} have no test rows, so there is "
                "nothing to compare the models on. Give data.test rows that pass validation."
            )
        attempt = self.attempt
        from schemas.frames import ScoreFrame, arrow_schema

        with attempt.row_writer("scores", arrow_schema(ScoreFrame)) as writer:
            purpose = attempt.stage.fingerprint
            with (
                attempt.timed("teacher_answers"),
                TeacherSession(self.contest.teacher, self.store, purpose=purpose) as session,
            ):
                ask = functools.partial(self._ask_teacher, session)
                self._score("teacher", ask, writer)
                attempt.cost, attempt.currency = session.totals.cost, session.totals.currency
            self._load_local_models(files)
            for role in self.contest.roles[1:]:
                with attempt.timed(f"{role}_answers"):
                    self._score(role, self._answer_with(self.loaded[role]), writer)
        with attempt.timed("performance"):
            measurements = self._measure()
        attempt.counts |= {"rows": self.num_rows, **self.counts}
        attempt.facts["measurements"] = measurements.model_dump(mode="json")

    # -- quality -----------------------------------------------------------------------------

    def _chunks(self) -> Iterator[list[dict[str, Any]]]:
        batches = self.attempt.store.batches(self.prompts, splits=("test",), batch_rows=_CHUNK_ROWS)
        for batch in batches:
            yield batch.select(["prompt_id", "messages", "reference"]).to_pylist()

    def _score(
        self,
        role: ModelRole,
        answer: Callable[[Sequence[dict[str, Any]]], list[_Scored]],
        writer: "RowWriter",
    ) -> None:
        """Write the answers and scores of one model to all test rows."""
        from schemas.frames import ScoreFrame, check_frame

        for rows in self._chunks():
            answers = answer(rows)
            frame = _score_frame(role, rows, answers, self.task)
            writer.write(check_frame(frame, ScoreFrame))
            self.counts[f"{role}_answers"] += len(rows)
            self.counts[f"{role}_unscored"] += int(frame["score"].isna().sum())
            self.counts[f"{role}_truncated"] += sum(scored.truncated for scored in answers)
            self._report_progress()

    def _report_progress(self) -> None:
        if self.on_progress is not None:
            done = sum(self.counts[f"{role}_answers"] for role in self.contest.roles)
            self.on_progress(done, self.num_rows * len(self.contest.roles))

    def _ask_teacher(
        self, session: TeacherSession, rows: Sequence[dict[str, Any]]
    ) -> list[_Scored]:
        """Return the teacher's answers, from the ledger as far as they are there."""
        identity = teacher_identity(self.contest.teacher)
        sampling = greedy(self.evaluation.max_new_tokens)
        schema = ResponseSchema.of(self.contest.teacher, self.task)
        requests = [
            make_request(
                identity,
                _conversation(row),
                sampling,
                response_schema=schema,
                prompt_id=row["prompt_id"],
            )
            for row in rows
        ]
        asked_for = AskedFor()
        for request in requests:
            asked_for.add([request])
        by_state = session.answer(asked_for)
        found = session.rows(asked_for)
        left = [h for h in asked_for.requests if not found[h].is_final(sampling.max_new_tokens)]
        if left:
            raise TeacherError(
                f"{by_state.get('failed', len(left))} of {len(rows)} test prompts have no answer "
                f"of the teacher yet. Last error: {session.totals.last_error!r}. The finished "
                "ones are kept. Run again: only the missing ones are asked."
            )
        answers = [found[request.request_hash] for request in requests]
        self.counts["teacher_asked"] = session.totals.asked
        return [
            _Scored(
                text=None if answer.state in NO_TEXT else answer.text,
                truncated=answer.state == "truncated",
                new_tokens=answer.completion_tokens or 0,
            )
            for answer in answers
        ]

    def _answer_with(
        self, model: LocalModel
    ) -> Callable[[Sequence[dict[str, Any]]], list[_Scored]]:
        def answer(rows: Sequence[dict[str, Any]]) -> list[_Scored]:
            answers = model.answer(
                [_conversation(row) for row in rows],
                max_new_tokens=self.evaluation.max_new_tokens,
                batch_size=self.evaluation.batch_size,
            )
            return [
                _Scored(answer.text, answer.finish_reason == "length", answer.completion_tokens)
                for answer in answers
            ]

        return answer

    # -- performance -------------------------------------------------------------------------

    def _load_local_models(self, files: ExitStack) -> None:
        """Load what runs here, once the teacher's own copy (it answers chunks with it) is gone."""
        from distillery.teacher.local import release_models

        release_models()
        for role in self.contest.roles:
            if role != "teacher" or not isinstance(self.contest.teacher, OpenAITeacher):
                self.loaded[role] = self.contest.load(role, self.attempt.store, files)

    def _measure(self) -> Measurements:
        rows = itertools.chain.from_iterable(self._chunks())
        some = itertools.islice(rows, rows_to_time(self.evaluation))
        with ExitStack() as opened:
            performance = measure_performance(
                {role: self._contestant(role, opened) for role in self.contest.roles},
                [_conversation(row) for row in some],
                self.evaluation,
            )
        return Measurements(
            models={role: self._measurement(role, performance[role]) for role in performance},
            hardware=hardware_record(),
            process_peak_bytes=process_peak_bytes(),
            accelerator_peak_bytes=accelerator_peak_bytes(),
        )

    def _contestant(self, role: ModelRole, opened: ExitStack) -> Contestant:
        size = self.evaluation.throughput_batch_size
        if role in self.loaded:
            return Contestant(self.loaded[role], size)
        teacher = self.contest.teacher
        assert isinstance(teacher, OpenAITeacher)
        turn = max(size, _HOSTED_TURN * teacher.concurrency)
        hosted = HostedModel(teacher)
        opened.callback(hosted.close)
        return Contestant(hosted, turn, warm_batch=False)

    def _measurement(self, role: ModelRole, performance: Performance) -> ModelMeasurement:
        model = self.loaded.get(role)
        context_tokens = self.evaluation.context_tokens
        return ModelMeasurement(
            name=self.contest.name(role),
            identity=self.contest.identity(role),
            hosted=model is None,
            num_parameters=model.num_parameters if model else None,
            weight_bytes=model.weight_bytes if model else None,
            kv_cache_bytes=model.kv_cache_bytes(context_tokens) if model else None,
            performance=performance,
        )


def _conversation(row: dict[str, Any]) -> Conversation:
    return [
        {"role": message["role"], "content": message["content"]}
        for message in load_messages(row["messages"])
    ]


def _score_frame(
    role: ModelRole, rows: Sequence[dict[str, Any]], answers: Sequence[_Scored], task: TaskSpec
) -> "pd.DataFrame":
    """Return a ScoreFrame; the score is null where there is no answer."""
    import pandas as pd

    kind = task_type(task)
    scores = [
        kind.score(scored.text, row["reference"], truncated=scored.truncated)[kind.primary.name]
        for row, scored in zip(rows, answers, strict=True)
    ]
    return pd.DataFrame(
        {
            "model": role,
            "prompt_id": [row["prompt_id"] for row in rows],
            "answer": pd.array([scored.text for scored in answers], dtype="str"),
            "reference": [row["reference"] for row in rows],
            "score": pd.array(scores, dtype="float64"),
            "new_tokens": [scored.new_tokens for scored in answers],
        }
    )
