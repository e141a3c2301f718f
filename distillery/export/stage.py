"""The stage that writes a student in another format."""

from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.export import ExportFormat
from schemas.refs import ModelRef

_LOGIC_VERSION = 1


def export_stage(student: ModelRef, format: ExportFormat) -> Stage:
    """Return what identifies an exported student."""
    # Training again on a GPU may give other weights under one fingerprint.
    return Stage(
        StageName.EXPORT_STUDENT,
        _LOGIC_VERSION,
        inputs={"student": student.uri},
        spec={"format": format},
    )


def export_student(
    student: ModelRef, format: ExportFormat, store: StoreSpec, execution: ExecutionSpec
) -> StageResult:
    """Return output `model`: the student in ``format``, with all that its runtime needs."""

    def work(attempt: Attempt) -> None:
        raise NotImplementedError

    return run_stage(export_stage(student, format), store, execution, work)
