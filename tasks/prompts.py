"""Tasks: load the prompts, validate them."""

import logging

from distillery.storage.stage import StageResult
from schemas.data import DataSpec
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef, PromptSet
from schemas.task import TaskSpec
from tasks.artifacts import counts_markdown, publish_markdown
from tasks.stage import stage_task

logger = logging.getLogger("distillery.run")


@stage_task
def load_prompts(
    data: DataSpec, store: StoreSpec, execution: ExecutionSpec
) -> tuple[DatasetRef, StageResult]:
    """Return the rows of all sources."""
    from distillery.data import loading

    result = loading.load_prompts(data, store, execution)
    return result.dataset("prompts"), result


@stage_task
def validate_prompts(
    loaded: DatasetRef, task: TaskSpec, data: DataSpec, store: StoreSpec, execution: ExecutionSpec
) -> tuple[PromptSet, StageResult]:
    """Return the valid rows, the gold rows to learn from, and the quarantined ones."""
    from distillery.data import validation

    result = validation.validate_prompts(loaded, task, data, store, execution)
    outputs = PromptSet(
        prompts=result.dataset("prompts"),
        gold=result.dataset("gold"),
        quarantined=result.dataset("quarantined"),
    )
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
