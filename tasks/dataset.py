"""Tasks: filter the responses, release the training set."""

import logging
from typing import cast

from distillery.storage.links import file_link
from distillery.storage.stage import StageResult
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.filters import FilterSpec
from schemas.refs import DatasetRef, FilteredSet
from schemas.task import TaskSpec
from tasks.artifacts import counts_markdown, publish_markdown, publish_table
from tasks.stage import stage_task

logger = logging.getLogger("distillery.run")


@stage_task
def filter_responses(
    responses: DatasetRef,
    task: TaskSpec,
    filters: FilterSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[FilteredSet, StageResult]:
    """Return the responses that pass the filters, and the rejected ones with their reasons."""
    from distillery.filters import stage as filtering

    result = filtering.filter_responses(responses, task, filters, store, execution)
    outputs = FilteredSet(
        kept=result.dataset("kept"),
        rejected=result.dataset("rejected"),
        num_responses=result.manifest.counts["responses"],
        drop_reasons=result.drop_reasons,
    )
    rewrites = cast("dict[str, int]", result.manifest.facts["rewrites"])
    counts = {"kept": outputs.kept.num_rows} | outputs.drop_reasons
    counts |= {f"kept, rewritten: {reason}": count for reason, count in rewrites.items()}
    publish_table(
        f"filters-{task.name}",
        [{"reason": reason, "rows": count} for reason, count in counts.items()],
        counts_markdown("kept, or dropped because", counts)
        + f"\n\nRejected rows: `{store.root}/{outputs.rejected.uri}`",
        "Teacher responses kept and dropped, by reason",
    )
    if outputs.rejected.num_rows:
        place = f"{store.root}/{outputs.rejected.uri}"
        logger.info("rejected responses, each with its reason (Parquet): %s", place)
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
