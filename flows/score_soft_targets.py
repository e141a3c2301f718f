"""Flow: the teacher's probabilities along the released responses; runs on the GPU work pool."""

from prefect import flow

from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec
from tasks.scoring import score_rows


@flow(name="score-soft-targets", flow_run_name="{task.name}")
def score_soft_targets(
    store: StoreSpec,
    execution: ExecutionSpec,
    rows: DatasetRef,
    prompts: DatasetRef,
    teacher: TeacherSpec,
    task: TaskSpec,
    training: TrainingSpec,
) -> DatasetRef:
    """Return the soft targets of ``rows`` that ``training`` learns from."""
    return score_rows(rows, prompts, teacher, task, training, store, execution)
