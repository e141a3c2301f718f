"""Flow: train a model on gold rows, to be the teacher of later runs."""

from prefect import flow

from distillery.preflight.recipe import check_teacher_recipe
from distillery.storage.export import export_model
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
    check_teacher_recipe(task, data, student, training)
    loaded = load_prompts(task, data, store, execution)
    rows = validate_prompts(loaded, task, data, store, execution)
    hard = training.on_gold_rows()
    train = dispatch(train_student, training_stage, store, execution)
    trained = train(StageName.TRAIN_TEACHER, rows.gold, rows.prompts, student, hard)
    model = trained.model("model")
    export_model(model, output, store)
    return model
