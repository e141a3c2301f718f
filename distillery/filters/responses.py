"""The stage that filters teacher responses: dropped rows are kept, with filter and reason."""

from collections import Counter

from distillery.filters import response_filters
from distillery.filters.funnel import Funnel, row_batches, write_rows
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.task_types import task_type
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.filters import FilterSpec
from schemas.frames import RejectedFrame, ResponseFrame, TrainingFrame, arrow_schema
from schemas.refs import DatasetRef
from schemas.task import TaskSpec

_LOGIC_VERSION = 5


def response_filtering_stage(responses: DatasetRef, task: TaskSpec, filters: FilterSpec) -> Stage:
    """Return what identifies the rows of ``responses`` that are kept."""
    chosen = task_type(task).default_filters if filters.responses is None else filters.responses
    return Stage(
        StageName.FILTER_RESPONSES,
        _LOGIC_VERSION,
        inputs={"responses": responses.fingerprint},
        spec={"filters": chosen, "task_type": task.type, "answer_format": task.answer_format},
    )


def filter_responses(
    responses: DatasetRef,
    task: TaskSpec,
    filters: FilterSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> StageResult:
    """Return the responses that pass all filters as `kept`, the others as `rejected`.

    Rows without a usable response are rejected whatever the filters: those that the teacher failed
    at or refused, those that break the response schema, and those of which no sample passed its
    verifier. The facts count drops and rewrites by reason.
    """
    kind = task_type(task)
    chosen = kind.default_filters if filters.responses is None else filters.responses
    stage = response_filtering_stage(responses, task, filters)

    def work(attempt: Attempt) -> None:
        splits: Counter[str] = Counter()
        with (
            attempt.row_writer("kept", arrow_schema(TrainingFrame)) as kept,
            attempt.row_writer("rejected", arrow_schema(RejectedFrame)) as rejected,
        ):
            funnel = Funnel(kind, ResponseFrame, RejectedFrame, rejected)
            rows = row_batches(attempt.store, responses)
            for batch in funnel.passing(response_filters(chosen), rows):
                splits.update(row["split"] for row in batch)
                write_rows(kept, batch, TrainingFrame)
        attempt.counts |= {
            "responses": responses.num_rows,
            "kept_train": splits["train"],
            "kept_validation": splits["validation"],
            "rejected": funnel.drops.total(),
        }
        attempt.facts["reasons"] = dict(funnel.drops.most_common())
        attempt.facts["rewrites"] = dict(funnel.rewrites.most_common())

    return run_stage(stage, store, execution, work)
