"""The stage that filters teacher responses: dropped rows are kept, with filter and reason."""

from collections import Counter
from collections.abc import Callable

from distillery.filters import response_filters
from distillery.filters.base import Context
from distillery.filters.funnel import (
    Funnel,
    Tokens,
    add_tokens,
    note_filters,
    ready,
    row_batches,
    write_rows,
)
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.task_types import task_type
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.filters import FilterSpec, ResponseFilter
from schemas.frames import RejectedFrame, ResponseFrame, TrainingFrame, arrow_schema
from schemas.refs import DatasetRef
from schemas.task import TaskSpec

_LOGIC_VERSION = 7


def response_filtering_stage(
    responses: DatasetRef, prompts: DatasetRef, task: TaskSpec, filters: FilterSpec
) -> Stage:
    """Return what identifies the filtered responses.

    Of the prompts only those rows count that a filter looks at.
    """
    specs = _specs(task, filters)
    inputs = [each.inputs(prompts) for _, each in response_filters(specs)]
    return Stage(
        StageName.FILTER_RESPONSES,
        _LOGIC_VERSION,
        inputs={"responses": responses.fingerprint, "read_by_filters": [i for i in inputs if i]},
        spec={
            "filters": specs,
            "restore": sorted(filters.restore),
            "task_type": task.type,
            "answer_format": task.answer_format,
        },
    )


def filter_responses(
    responses: DatasetRef,
    prompts: DatasetRef,
    task: TaskSpec,
    filters: FilterSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> StageResult:
    """Return the responses that pass all filters as `kept`, the others as `rejected`.

    Rows without a usable response are rejected whatever the filters: empty ones, those that the
    teacher failed at or refused, those that break the response schema, and those of which no
    sample passed its verifier. The facts count drops and rewrites by reason and by filter, and the
    tokens that were paid for what was dropped.

    Args:
        responses: What the teacher answered.
        prompts: Rows of all splits; some filters read the references of gold rows.
        task: What an answer is.
        filters: Which filters.
        store: Where the rows are, and the ledger.
        execution: How the run is carried out.
        on_progress: Called with the rows that a judge has scored.

    Raises:
        BudgetError: A cap of a judge's budget is reached.
        TeacherError: A judge left responses without a score.
    """
    stage = response_filtering_stage(responses, prompts, task, filters)
    kind = task_type(task)

    def work(attempt: Attempt) -> None:
        splits: Counter[str] = Counter()
        tokens: Tokens = {}
        chosen = response_filters(_specs(task, filters))
        context = Context(kind, prompts, attempt.store, store, stage.fingerprint, on_progress)
        with (
            ready(chosen, context),
            attempt.row_writer("kept", arrow_schema(TrainingFrame)) as kept,
            attempt.row_writer("rejected", arrow_schema(RejectedFrame)) as rejected,
        ):
            funnel = Funnel(kind, ResponseFrame, RejectedFrame, rejected, restore=filters.restore)
            rows = row_batches(attempt.store, responses)
            for batch in funnel.passing(chosen, rows):
                splits.update(row["split"] for row in batch)
                add_tokens(tokens, batch)
                write_rows(kept, batch, TrainingFrame)
        attempt.counts |= {
            "responses": responses.num_rows,
            "kept_train": splits["train"],
            "kept_validation": splits["validation"],
            "rejected": funnel.drops.total(),
        }
        note_filters(attempt, funnel, chosen)
        attempt.facts["kept_tokens"] = {name: [*both] for name, both in tokens.items()}

    return run_stage(stage, store, execution, work)


def _specs(task: TaskSpec, filters: FilterSpec) -> tuple[ResponseFilter, ...]:
    return task_type(task).default_filters if filters.responses is None else filters.responses
