"""Flow: train a model on hard or soft targets; runs on the GPU work pool."""

from prefect import flow
from prefect.client.schemas.objects import State

from schemas.errors import TrialPruned
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef, ModelRef
from schemas.student import StudentSpec
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec
from tasks.stage import pruned
from tasks.training import train_model


@flow(name="train-student", flow_run_name="{name}")
def train_student(
    store: StoreSpec,
    execution: ExecutionSpec,
    name: StageName,
    rows: DatasetRef,
    prompts: DatasetRef,
    student: StudentSpec,
    training: TrainingSpec,
    soft_targets: DatasetRef | None = None,
    teacher: TeacherSpec | None = None,
    task: TaskSpec | None = None,
    start: ModelRef | None = None,
    because: str | None = None,
) -> ModelRef | State[ModelRef]:
    """Return ``student`` trained on the responses of ``rows``; resumes from its checkpoints."""
    try:
        return train_model(
            rows,
            prompts,
            student,
            training,
            store,
            execution,
            name,
            soft_targets,
            teacher,
            task,
            start,
            because,
        )
    except TrialPruned as given_up:
        return pruned(given_up)
