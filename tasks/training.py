"""Task: train a model on hard targets."""

from distillery.stage import StageResult
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef, ModelRef
from schemas.student import StudentSpec
from schemas.training import TrainingSpec
from tasks.artifacts import progress_report, publish_markdown
from tasks.stage import stage_task


@stage_task
def train_model(
    rows: DatasetRef,
    prompts: DatasetRef,
    student: StudentSpec,
    training: TrainingSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
    name: StageName,
) -> tuple[ModelRef, StageResult]:
    """Return the trained model; the curve is an artifact, progress another."""
    from distillery import training as library
    from distillery.curve import curve_markdown

    with progress_report(name, "Optimizer steps") as progress:

        def on_progress(step: int, num_steps: int, figures: dict[str, float]) -> None:
            shown = [f"{key} {figures[key]:.3f}" for key in ("loss", "eval_loss") if key in figures]
            progress.update(step, num_steps, ", ".join(shown))

        result = library.train_student(
            rows, prompts, student, training, store, execution, name=name, on_progress=on_progress
        )
    publish_markdown(
        f"curve-{name}", curve_markdown(result.manifest.facts), f"Training curve of {name}"
    )
    return result.model("model"), result
