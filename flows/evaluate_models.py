"""Flow: teacher, baseline and student answer the test rows."""

from prefect import flow

from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef, ModelRef
from schemas.student import StudentSpec
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec
from tasks.evaluation import measure_models


@flow(name="evaluate-models")
def evaluate_models(
    store: StoreSpec,
    execution: ExecutionSpec,
    prompts: DatasetRef,
    *,
    teacher: TeacherSpec,
    student: StudentSpec,
    baseline: ModelRef | None,
    student_model: ModelRef,
    task: TaskSpec,
    evaluation: EvaluationSpec,
) -> DatasetRef:
    """Return the scores of all models on the test rows, with their speed and size measured."""
    return measure_models(
        prompts, teacher, student, baseline, student_model, task, evaluation, store, execution
    )
