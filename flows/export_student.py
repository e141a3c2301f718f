"""Flow: write the student in another format; runs on the GPU work pool."""

from prefect import flow

from schemas.execution import ExecutionSpec, StoreSpec
from schemas.export import ExportFormat
from schemas.refs import DatasetRef, ModelRef
from tasks.export import write_format


@flow(name="export-student", flow_run_name="{format.name}")
def export_student(
    store: StoreSpec,
    execution: ExecutionSpec,
    student: ModelRef,
    rows: DatasetRef,
    format: ExportFormat,
) -> ModelRef:
    """Return the student in ``format``."""
    return write_format(student, rows, format, store, execution)
