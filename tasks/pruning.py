"""Task: prune a model."""

from distillery.storage.stage import StageResult
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef, ModelRef
from schemas.student import PrunedStudent
from tasks.artifacts import progress_report
from tasks.stage import stage_task


@stage_task
def prune_model(
    rows: DatasetRef, student: PrunedStudent, store: StoreSpec, execution: ExecutionSpec
) -> tuple[ModelRef, StageResult]:
    """Return the pruned model, which is the student's baseline and start."""
    from distillery.training.pruning import prune_student

    with progress_report("prune_student", "Rows read for calibration") as progress:
        result = prune_student(rows, student, store, execution, on_rows=progress.update)
    return result.model("model"), result
