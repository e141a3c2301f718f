"""The stage in which one contestant answers the test prompts and is scored.

Each contestant's answers are sealed by themselves: a new student makes nobody else answer again.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from distillery.evaluation.contestants import contestant
from distillery.evaluation.protocol import Answered, Question
from distillery.models.hardware import cpu_threads
from distillery.storage.fingerprint import canonical_json
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from distillery.task_types import task_type
from schemas.contestants import ContestantSpec
from schemas.errors import StageError
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef
from schemas.task import TaskSpec

if TYPE_CHECKING:
    import pandas as pd

_LOGIC_VERSION = 5
_CHUNK_ROWS = 1024  # enough that conversations of similar length find each other in a batch

OnProgress = Callable[[int, int], None]
"""Called with the rows answered so far and those in all."""


def answers_stage(
    spec: ContestantSpec, prompts: DatasetRef, task: TaskSpec, evaluation: EvaluationSpec
) -> Stage:
    """Return what identifies a contestant's answers: who, how it decodes, test rows, metrics.

    Of the prompts only the test rows count, so new training rows make nobody answer again.
    """
    asked = contestant(spec, prompts, task, evaluation, StoreSpec())
    return Stage(
        StageName.ANSWER_TEST_PROMPTS,
        _LOGIC_VERSION,
        inputs={"test_rows": prompts.identity("test"), "contestant": asked.inputs},
        spec={"task_type": task.type, "answer_format": task.answer_format},
    )


def answer_test_prompts(
    spec: ContestantSpec,
    prompts: DatasetRef,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    *,
    on_progress: OnProgress | None = None,
) -> StageResult:
    """Return output `answers`: a contestant's responses to all test rows, each with its metrics.

    A teacher is asked through the ledger, so nothing is paid for twice.

    Raises:
        RecipeError: The model cannot be loaded.
        StageError: There are no test rows.
        TeacherError: The endpoint left requests without an answer.
    """
    kind = task_type(task)

    def work(attempt: Attempt) -> None:
        from schemas.frames import ScoreFrame, arrow_schema, check_frame

        num_rows = count_questions(prompts, attempt.store)
        counts = attempt.counts
        counts |= {"rows": 0, "unscored": 0, "truncated": 0}
        asked = contestant(spec, prompts, task, evaluation, store)
        with (
            cpu_threads(execution),
            asked.answering(attempt) as ask,
            attempt.row_writer("answers", arrow_schema(ScoreFrame)) as writer,
        ):
            for rows in questions(prompts, attempt.store):
                answers = ask(rows)
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
                    on_progress(counts["rows"], num_rows)
        attempt.facts["contestant"] = spec.name

    return run_stage(answers_stage(spec, prompts, task, evaluation), store, execution, work)


def count_questions(prompts: DatasetRef, store: Store) -> int:
    """Return how many test rows there are.

    Raises:
        StageError: There are none.
    """
    num_rows = int(store.dataset(prompts).count_rows(filter=pc.field("split") == "test"))
    if num_rows == 0:
        raise StageError(
            f"prompts {prompts.fingerprint[:12]!r} have no test rows, so there is nothing to "
            "compare the models on. Give data.test rows that pass validation."
        )
    return num_rows


def questions(prompts: DatasetRef, store: Store) -> Iterator[list[Question]]:
    """Yield the test rows, a chunk at a time."""
    for batch in store.batches(prompts, splits=("test",), batch_rows=_CHUNK_ROWS):
        rows = batch.select(["prompt_id", "messages", "references"]).to_pylist()
        yield [
            Question(
                row["prompt_id"], json.loads(row["messages"]), tuple(json.loads(row["references"]))
            )
            for row in rows
        ]


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
