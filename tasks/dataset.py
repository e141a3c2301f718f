"""Tasks: filter the responses, release the training set."""

import contextlib
from collections.abc import Callable, Iterator

from distillery.storage.links import file_link
from distillery.storage.stage import StageResult
from distillery.storage.store import Store
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.filters import FilterSpec, JudgeFilter
from schemas.panel import AnyTeacher
from schemas.refs import DatasetRef, FilteredSet, PromptSet
from schemas.task import TaskSpec
from tasks.artifacts import progress_report, publish_filtered, publish_markdown, publish_table
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

    with _judging(filters, responses.num_rows) as on_progress:
        result = filtering.filter_responses(
            responses, prompts, task, filters, store, execution, on_progress=on_progress
        )
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


@contextlib.contextmanager
def _judging(filters: FilterSpec, num_rows: int) -> Iterator[Callable[[int], None] | None]:
    """Yield what shows how many scores a judge has given; None without a judge."""
    judges = [each for each in filters.responses or () if isinstance(each, JudgeFilter)]
    if not judges:
        yield None
        return
    num_scores = len(judges) * num_rows + sum(2 * judge.check_rows for judge in judges)
    with progress_report("filter_responses", "Scores of the judge", num_scores) as progress:
        yield progress.update


@stage_task
def release_dataset(
    filtered: FilteredSet,
    prompts: PromptSet,
    teacher: AnyTeacher,
    task: TaskSpec,
    filters: FilterSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[DatasetRef, StageResult]:
    """Return the training set once it passes its Great Expectations suite."""
    from distillery.data import journey, release
    from distillery.data.card_page import markdown_table
    from distillery.filters.embedded import embedder

    embed = embedder(filters)
    result = release.release_dataset(
        filtered, prompts, task, filters, store, execution, embed=embed
    )
    docs = file_link("Data Docs", result.report("data_docs"), "index.html", store)
    card = file_link("Data card", result.report("data_card"), "card.html", store)
    publish_markdown(
        f"release-{task.name}",
        f"Released {filtered.kept.num_rows:,} rows: all "
        f"{result.manifest.facts['expectations']} expectations hold. {docs}\n\n{card}",
        "Release gate of the training set",
    )
    steps = journey.read_steps(prompts, filtered, Store(store.root))
    rows = journey.funnel_rows(journey.priced(steps, journey.prices_of(teacher)))
    publish_table(
        f"funnel-{task.name}",
        rows,
        markdown_table(rows),
        "Rows and costs from the files through every filter to the training set",
    )
    return result.dataset("training_set"), result
