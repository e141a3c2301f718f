"""Tasks: load the prompts, validate them, filter them."""

import logging

from prefect import task as prefect_task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from distillery.storage.stage import StageResult, find_stage
from distillery.teacher.generation import generation_stage
from schemas.data import DataSpec
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.filters import FilterSpec
from schemas.panel import AnyTeacher
from schemas.refs import DatasetRef, PromptSet
from schemas.student import StudentSpec
from schemas.task import TaskSpec
from schemas.training import TrainingSpec
from tasks.artifacts import counts_markdown, publish_filtered, publish_markdown
from tasks.stage import stage_task

logger = logging.getLogger("distillery.run")


@stage_task
def load_prompts(
    task: TaskSpec, data: DataSpec, store: StoreSpec, execution: ExecutionSpec
) -> tuple[DatasetRef, StageResult]:
    """Return the rows of all sources."""
    from distillery.data import loading
    from distillery.logs.stage import read_logs

    result = loading.load_prompts(task, read_logs(data, store, execution), store, execution)
    return result.dataset("prompts"), result


def finish_logs(rows: PromptSet, store: StoreSpec) -> None:
    """Move the watermarks of the logs that ``rows`` came from, as the run on them has finished."""
    from distillery.logs import stage

    stage.finish_logs(rows, store)


@stage_task
def validate_prompts(
    loaded: DatasetRef, task: TaskSpec, data: DataSpec, store: StoreSpec, execution: ExecutionSpec
) -> tuple[PromptSet, StageResult]:
    """Return the valid rows, the gold rows to learn from, and the quarantined ones."""
    from distillery.data import validation

    result = validation.validate_prompts(loaded, task, data, store, execution)
    outputs = validation.prompt_set(result)
    publish_markdown(
        f"prompts-{task.name}",
        counts_markdown("split", result.manifest.counts)
        + "\n\n"
        + counts_markdown("quarantined because", result.drop_reasons)
        + f"\n\nQuarantined rows: `{store.root}/{outputs.quarantined.uri}`",
        "Valid prompts by split, and why rows were put aside",
    )
    if outputs.quarantined.num_rows:
        place = f"{store.root}/{outputs.quarantined.uri}"
        logger.info("quarantined rows, each with its reason (Parquet): %s", place)
    return outputs, result


@stage_task
def filter_prompts(
    valid: PromptSet,
    task: TaskSpec,
    filters: FilterSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[PromptSet, StageResult]:
    """Return the prompts that pass the filters, and the rejected ones with their reasons."""
    from distillery.filters import prompts

    result = prompts.filter_prompts(valid, task, filters, store, execution)
    rejected = result.dataset("rejected")
    outputs = PromptSet(
        prompts=result.dataset("prompts"),
        gold=result.dataset("gold"),
        quarantined=valid.quarantined,
        rejected=rejected,
    )
    num_kept = sum(n for name, n in result.manifest.counts.items() if name.startswith("kept_"))
    publish_filtered(
        f"prompt-filters-{task.name}", num_kept, result, rejected, store, "Filters over the prompts"
    )
    return outputs, result


@prefect_task(name="check_prompts", task_run_name="check_prompts", persist_result=False)
def check_prompts(
    prompts: DatasetRef,
    task: TaskSpec,
    data: DataSpec,
    teacher: AnyTeacher,
    student: StudentSpec | None,
    training: TrainingSpec | None,
    store: StoreSpec,
    execution: ExecutionSpec,
    evaluation: EvaluationSpec | None = None,
    filters: FilterSpec | None = None,
) -> State[None] | None:
    """Return when models and endpoint can be used on ``prompts``; skipped when all are answered."""
    if find_stage(generation_stage(prompts, teacher, task), store, execution):
        return Completed(name="Skipped", message="All prompts are answered already.")
    from distillery.preflight.recipe import check_first_request

    check_first_request(
        prompts, task, data, teacher, student, training, store, execution, evaluation, filters
    )
    return None
