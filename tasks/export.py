"""Task: write the student in another format."""

from dataclasses import replace

from distillery.storage.stage import StageResult
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.export import ExportFormat
from schemas.refs import DatasetRef, ModelRef
from tasks.stage import stage_task


@stage_task
def write_format(
    student: ModelRef,
    rows: DatasetRef,
    format: ExportFormat,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> tuple[ModelRef, StageResult]:
    """Return the student in ``format``, with all that its runtime needs."""
    from distillery.export.stage import export_student

    result = export_student(student, rows, format, store, execution)
    return result.model("model"), replace(result, subject=format.name)
