"""Tasks: choose the objective, train a model."""

import logging

from prefect import task

from distillery.objectives.choice import ChosenObjective
from distillery.objectives.choice import choose_objective as choose
from distillery.storage.stage import StageResult
from distillery.sweep.watch import watched
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.panel import AnyTeacher
from schemas.refs import DatasetRef, ModelRef
from schemas.student import StudentSpec
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec
from tasks.artifacts import progress_report, publish_markdown
from tasks.stage import stage_task

logger = logging.getLogger("distillery.run")

_SHOWN = {
    "loss": "loss {:.3f}",
    "eval_loss": "eval_loss {:.3f}",
    "tokens_per_s": "{:,.0f} tokens/s",
}


@task(name="choose_objective", task_run_name="choose_objective", persist_result=False)
def choose_objective(
    teacher: AnyTeacher, student: StudentSpec, training: TrainingSpec
) -> ChosenObjective:
    """Return the training with its objective decided, and why; refuse what is not possible."""
    return choose(teacher, student, training)


@stage_task
def train_model(
    rows: DatasetRef,
    prompts: DatasetRef,
    student: StudentSpec,
    training: TrainingSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    name: StageName,
    soft_targets: DatasetRef | None,
    teacher: TeacherSpec | None,
    task: TaskSpec | None,
    start: ModelRef | None,
    because: str | None,
) -> tuple[ModelRef, StageResult]:
    """Return the trained model; the curve is an artifact, progress another."""
    from distillery import training as library
    from distillery.training.curve import curve_markdown

    with (
        progress_report(name, "Optimizer steps") as progress,
        watched(rows, student, training, store, execution) as watch,
    ):

        def on_progress(step: int, num_steps: int, figures: dict[str, float]) -> None:
            shown = [text.format(figures[key]) for key, text in _SHOWN.items() if key in figures]
            progress.update(step, num_steps, ", ".join(shown))
            watch(step, num_steps, figures)

        result = library.train_student(
            rows,
            prompts,
            student,
            training,
            store,
            execution,
            soft_targets=soft_targets,
            teacher=teacher,
            task=task,
            start=start,
            because=because,
            name=name,
            on_progress=on_progress,
        )
    publish_markdown(
        f"curve-{name}", curve_markdown(result.manifest.facts), f"Training curve of {name}"
    )
    return result.model("model"), result
