"""Flow: make a student from a larger model; runs on the GPU work pool."""

from prefect import flow

from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef, ModelRef
from schemas.student import PrunedStudent
from tasks.pruning import prune_model


@flow(name="prune-student")
def prune_student(
    store: StoreSpec, execution: ExecutionSpec, rows: DatasetRef, student: PrunedStudent
) -> ModelRef:
    """Return the pruned model that the student starts from."""
    return prune_model(rows, student, store, execution)
