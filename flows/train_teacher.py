"""Flow: train a model on gold rows, to be the teacher of later runs."""

from prefect import flow

from distillery.models.students import export_model
from distillery.preflight.recipe import check_teacher_recipe
from distillery.training import training_stage
from flows.train_student import train_student
from schemas.data import DataSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import ModelRef
from schemas.student import StudentSpec
from schemas.task import TaskSpec
from schemas.training import TrainingSpec
from tasks.dispatch import dispatch
from tasks.prompts import load_prompts, validate_prompts


@flow(name="train-teacher", flow_run_name="{task.name}")
def train_teacher(
    task: TaskSpec,
    data: DataSpec,
    student: StudentSpec,
    output: str,
    training: TrainingSpec = TrainingSpec(),
    store: StoreSpec = StoreSpec(),
    execution: ExecutionSpec = ExecutionSpec(),
) -> ModelRef:
    """Return ``student`` trained on the gold rows of ``data``, copied to the folder ``output``."""
    check_teacher_recipe(task, data, training)
    here = {"store": store, "execution": execution}
    loaded = load_prompts(data, **here)
    rows = validate_prompts(loaded, task, data, **here)
    taught = {"prompts": rows.prompts, "rows": rows.gold, "student": student}
    taught["training"] = training.with_hard_targets()
    name = StageName.TRAIN_TEACHER
    model = dispatch(train_student, training_stage, **here, **taught, name=name).model("model")
    export_model(model, output, store)
    return model


if __name__ == "__main__":
    from flows.cli import run_teacher_training

    run_teacher_training()
