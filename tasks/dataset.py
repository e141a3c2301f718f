"""Tasks: filter the responses, release the training set."""

from distillery.storage.links import file_link
from distillery.storage.stage import StageResult
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.filters import FilterSpec
from schemas.refs import DatasetRef, FilteredSet
from schemas.task import TaskSpec
from tasks.artifacts import publish_filtered, publish_markdown
from tasks.stage import stage_task


@stage_task
def filter_responses(
    responses: DatasetRef,
    prompts: DatasetRef,
    task: TaskSpec,
    filters: FilterSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[FilteredSet, StageResult]:
    """Return the responses that pass the filters, and the rejected ones with their reasons."""
    from distillery.filters import responses as filtering

    result = filtering.filter_responses(responses, prompts, task, filters, store, execution)
    outputs = FilteredSet(
        kept=result.dataset("kept"),
        rejected=result.dataset("rejected"),
        num_responses=result.manifest.counts["responses"],
        drop_reasons=result.drop_reasons,
    )
    publish_filtered(
        f"filters-{task.name}",
        outputs.kept.num_rows,
        result,
        outputs.rejected,
        store,
        "Filters over the teacher's responses",
    )
    return outputs, result


@stage_task
def release_dataset(
    filtered: FilteredSet,
    task: TaskSpec,
    filters: FilterSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[DatasetRef, StageResult]:
    """Return the training set once it passes its Great Expectations suite."""
    from distillery.data import release

    result = release.release_dataset(filtered, task, filters, store, execution)
    docs = file_link("Data Docs", result.report("data_docs"), "index.html", store)
    publish_markdown(
        f"release-{task.name}",
        f"Released {filtered.kept.num_rows:,} rows: all "
        f"{result.manifest.facts['expectations']} expectations hold. {docs}",
        "Release gate of the training set",
    )
    return result.dataset("training_set"), result
