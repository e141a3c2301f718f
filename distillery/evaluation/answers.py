"""The stage in which one contestant answers the test prompts and is scored.

Trials of a sweep answer the selection prompts in the same way, and never meet the test prompts.
Each contestant's answers are sealed by themselves: a new student makes nobody else answer again.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.compute as pc

from distillery.evaluation.contestants import contestant
from distillery.evaluation.protocol import Answered, Question
from distillery.models.hardware import cpu_threads
from distillery.storage.fingerprint import canonical_json, sha256
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from distillery.task_types import task_type
from distillery.teacher.generation import ROWS_PER_BATCH
from schemas.contestants import ContestantSpec, TeacherContestant
from schemas.errors import StageError
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import TEST_CLUSTERS, DatasetRef
from schemas.task import TaskSpec

if TYPE_CHECKING:
    import pandas as pd

_LOGIC_VERSION = 5
_FIRST_LOOK = 100  # rows, and scored clusters, before a teacher may be left in peace
_CHUNK_ROWS = 1024  # enough that conversations of similar length find each other in a batch

JudgedSplit = Literal["test", "selection"]
"""Labelled rows by which models are judged: in a comparison, or in a sweep."""

_STAGES: dict[JudgedSplit, StageName] = {
    "test": StageName.ANSWER_TEST_PROMPTS,
    "selection": StageName.ANSWER_SELECTION,
}

OnProgress = Callable[[int, int, Callable[[], str]], None]
"""Called with the rows answered so far, those in all, and what says what else goes on."""


def answers_stage(
    spec: ContestantSpec,
    prompts: DatasetRef,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    split: JudgedSplit = "test",
) -> Stage:
    """Return what identifies a contestant's answers: who, how it decodes, which rows, metrics.

    Of the prompts only those of ``split`` count, so new training rows make nobody answer again.
    """
    asked = contestant(spec, prompts, task, evaluation, StoreSpec())
    inputs: dict[str, Any] = {f"{split}_rows": prompts.identity(split), "contestant": asked.inputs}
    if stop_rule(spec, evaluation) is not None:
        read = {"stop_at_width", "bootstrap_samples", "confidence", "seed"}
        inputs["stop"] = evaluation.model_dump(include=read)
        inputs["clusters"] = prompts.identity(TEST_CLUSTERS)
    return Stage(
        _STAGES[split],
        _LOGIC_VERSION,
        inputs=inputs,
        spec={"task_type": task.type, "answer_format": task.answer_format},
    )


def answer_questions(
    spec: ContestantSpec,
    prompts: DatasetRef,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    *,
    split: JudgedSplit = "test",
    on_progress: OnProgress | None = None,
) -> StageResult:
    """Return output `answers`: a contestant's responses to all rows of ``split``, with metrics.

    A teacher is asked through the ledger, so nothing is paid for twice. One that costs money stops
    being asked as `evaluation.stop_at_width` says; the count `left_out` says how many rows it was
    spared.

    Raises:
        RecipeError: The model cannot be loaded.
        StageError: There are no such rows.
        TeacherError: The endpoint left requests without an answer.
    """
    kind = task_type(task)

    def work(attempt: Attempt) -> None:
        from schemas.frames import ScoreFrame, arrow_schema, check_frame

        num_rows = count_questions(prompts, attempt.store, split)
        counts = attempt.counts
        counts |= {"rows": 0, "unscored": 0, "truncated": 0}
        asked = contestant(spec, prompts, task, evaluation, store)
        with (
            cpu_threads(execution),
            asked.answering(attempt) as answering,
            attempt.row_writer("answers", arrow_schema(ScoreFrame)) as writer,
        ):
            stop = stop_rule(spec, evaluation)
            chunks = questions(prompts, attempt.store, split)
            if isinstance(spec, TeacherContestant) and spec.teacher.in_batches:
                chunks = _by_the_batch(chunks)
            if stop is not None:
                chunks = stop.in_random_order(prompts, attempt.store)
            if on_progress is not None:
                on_progress(0, num_rows, answering.note)
            for rows in chunks:
                answers = answering.ask(rows)
                metrics = [
                    kind.score(
                        answered.response,
                        row.references,
                        truncated=answered.truncated,
                        prompt=row.conversation[-1]["content"],
                    )
                    for answered, row in zip(answers, rows, strict=True)
                ]
                writer.write(check_frame(_score_frame(rows, answers, metrics), ScoreFrame))
                counts["rows"] += len(rows)
                counts["unscored"] += sum(values[kind.primary] is None for values in metrics)
                counts["truncated"] += sum(answered.truncated for answered in answers)
                if on_progress is not None:
                    on_progress(counts["rows"], num_rows, answering.note)
                if stop is not None:
                    scores = [values[kind.primary] for values in metrics]
                    if stop.is_reached([row.cluster for row in rows], scores):
                        break
        if stop is not None:
            counts["left_out"] = num_rows - counts["rows"]
        attempt.facts["contestant"] = spec.name

    return run_stage(answers_stage(spec, prompts, task, evaluation, split), store, execution, work)


def count_questions(prompts: DatasetRef, store: Store, split: JudgedSplit = "test") -> int:
    """Return how many rows of ``split`` there are.

    Raises:
        StageError: There are none.
    """
    num_rows = int(store.dataset(prompts).count_rows(filter=pc.field("split") == split))
    if num_rows == 0:
        raise StageError(
            f"prompts {prompts.fingerprint[:12]!r} have no {split} rows, so there is nothing to "
            f"compare the models on. Give data.{split} rows that pass validation."
        )
    return num_rows


def questions(
    prompts: DatasetRef, store: Store, split: JudgedSplit = "test"
) -> Iterator[list[Question]]:
    """Yield the rows of ``split``, a chunk at a time."""
    for batch in store.batches(prompts, splits=(split,), batch_rows=_CHUNK_ROWS):
        columns = ["prompt_id", "messages", "references", "cluster", "slices"]
        yield [
            Question(
                row["prompt_id"],
                json.loads(row["messages"]),
                tuple(json.loads(row["references"])),
                row["cluster"],
                row["slices"],
            )
            for row in batch.select(columns).to_pylist()
        ]


def _by_the_batch(chunks: Iterator[list[Question]]) -> Iterator[list[Question]]:
    """Yield the rows of ``chunks`` as many at a time as fill a batch, which may take a day."""
    rows = itertools.chain.from_iterable(chunks)
    while batch := list(itertools.islice(rows, ROWS_PER_BATCH)):
        yield batch


class StopRule:
    """When a teacher that is paid by the request has been asked enough test rows.

    They are asked in a random order, so that those answered are a random sample of all, and the
    interval of the primary metric is looked at after 100 rows and then after every tenth more. To
    stop as soon as it is narrow favours samples that happen to vary little, so the interval holds
    the truth a little less often than it says. Two things keep that small: it counts as no narrower
    than what a hundred answers alike would leave open, and fewer than 100 scored clusters stop
    nothing.
    """

    def __init__(self, width: float, evaluation: EvaluationSpec) -> None:
        """Describe the rule; nothing has been answered yet."""
        self._width, self._evaluation = width, evaluation
        self._clusters: list[str] = []
        self._scores: list[float | None] = []

    def in_random_order(self, prompts: DatasetRef, store: Store) -> Iterator[list[Question]]:
        """Yield the test rows, as many at a time as lie between two looks.

        The order is of the ids, so that rows which come later leave that of the others as it is.
        """
        rows = [row for chunk in questions(prompts, store) for row in chunk]
        rows.sort(key=lambda row: sha256([self._evaluation.seed, row.prompt_id]))
        start = 0
        while start < len(rows):
            size = max(_FIRST_LOOK, start // 10)
            yield rows[start : start + size]
            start += size

    def is_reached(self, clusters: Sequence[str], scores: Sequence[float | None]) -> bool:
        """Return whether the interval is narrow enough, with these answers added."""
        import numpy as np

        from distillery.evaluation.statistics import Bootstrap, mean_sums

        self._clusters += clusters
        self._scores += scores
        pairs = zip(self._clusters, self._scores, strict=True)
        num_scored = len({cluster for cluster, score in pairs if score is not None})
        if num_scored < _FIRST_LOOK:
            return False
        sums = mean_sums(np.array(self._scores, dtype=np.float64))
        found = Bootstrap(self._clusters, self._evaluation).interval(sums)
        if found is None or found.low is None or found.high is None:
            return False
        return found.high - found.low <= self._width


def stop_rule(spec: ContestantSpec, evaluation: EvaluationSpec) -> StopRule | None:
    """Return when ``spec`` has been asked enough; None: it answers every test row."""
    width = evaluation.stop_at_width
    is_paid = isinstance(spec, TeacherContestant) and spec.teacher.is_hosted
    return StopRule(width, evaluation) if is_paid and width is not None else None


def _score_frame(
    rows: Sequence[Question],
    answers: Sequence[Answered],
    metrics: Sequence[Mapping[str, float | None]],
) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(
        {
            "prompt_id": [row.prompt_id for row in rows],
            "references": [canonical_json(row.references) for row in rows],
            "response": pd.array([answered.response for answered in answers], dtype="str"),
            "metrics": [canonical_json(values) for values in metrics],
            "truncated": [answered.truncated for answered in answers],
        }
    )
