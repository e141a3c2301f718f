"""Task: the teacher scores the released rows."""

from typing import Any

from distillery.storage.stage import StageResult
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec
from tasks.artifacts import pairs_markdown, progress_report, publish_markdown
from tasks.stage import stage_task


@stage_task
def score_rows(
    rows: DatasetRef,
    prompts: DatasetRef,
    teacher: TeacherSpec,
    task: TaskSpec,
    training: TrainingSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[DatasetRef, StageResult]:
    """Return the soft targets of ``rows``; what was kept of the probabilities is an artifact."""
    from distillery.objectives.soft.stage import score_soft_targets

    with progress_report("score_soft_targets", "Rows scored", rows.num_rows) as progress:
        result = score_soft_targets(
            rows,
            prompts,
            teacher,
            task,
            training,
            store,
            execution,
            on_progress=progress.update,
        )
    publish_markdown(
        "soft-targets",
        pairs_markdown("soft targets", _summary(result)),
        "How much of the teacher's probabilities is kept, and what it takes to keep it",
    )
    return result.dataset("soft_targets"), result


def _summary(result: StageResult) -> list[tuple[str, str]]:
    """Return the figures of the scoring as pairs of a label and a value."""
    counts, facts = result.manifest.counts, result.manifest.facts
    made: Any = facts["soft_targets"]
    kept: Any = facts["mean_kept_mass"]
    size: Any = facts["bytes_per_token"]
    return [
        ("rows", f"{counts['rows']:,}"),
        ("response tokens", f"{counts['response_tokens']:,}"),
        ("left out, longer than the teacher's context", f"{counts['left_out_too_long']:,}"),
        ("left out, not writable by the teacher", f"{counts['left_out_not_written']:,}"),
        ("kept per token", f"{made['k']} likeliest tokens"),
        ("distillation temperature", f"{made['distillation_temperature']:g}"),
        ("mass on them, mean", f"{kept:.2%}"),
        ("bytes per token", f"{size:,.0f}"),
        *_of_teachers(facts.get("teachers") or {}),
    ]


def _of_teachers(teachers: Any) -> list[tuple[str, str]]:
    """Return the part of each of several teachers."""
    return [
        (
            f"teacher {name}",
            f"{part['rows']:,} rows"
            + (f", weight {part['weight']:.2g}" if "weight" in part else "")
            + (f", agrees with all at {part['agreement']:.1%}" if "agreement" in part else ""),
        )
        for name, part in teachers.items()
    ]
