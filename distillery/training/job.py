"""One training, as each of its processes receives it, and its outcome."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict

from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef, ModelRef
from schemas.student import StudentSpec
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec

OnProgress = Callable[[int, int, dict[str, float]], None]
"""Called with the step, the number of steps, and the newest figures (loss, eval_loss, ...)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TrainingJob(_Frozen):
    """All that training needs. JSON, so that it can be passed to other processes."""

    rows: DatasetRef
    """A TrainingFrame: train and validation rows."""

    prompts: DatasetRef
    """A PromptFrame, on which a new tokenizer is trained; its gold rows may be examples."""

    soft_targets: DatasetRef | None
    """The teacher's probabilities of `rows`, where the objective needs them."""

    teacher: TeacherSpec | None
    """Who runs beside the student, where the objective needs one."""

    task: TaskSpec | None = None
    """What the instructions of that teacher may name."""

    start: ModelRef | None = None
    """The model whose weights it starts from. None: the student's own."""

    student: StudentSpec
    """What is trained."""

    training: TrainingSpec
    """How; its objective is decided, never `auto`."""

    store: StoreSpec
    """Where everything is."""

    execution: ExecutionSpec
    """Threads of a CPU."""

    checkpoints_uri: str
    """Folder of the store for checkpoints, shared by all attempts."""


class TrainingOutcome(_Frozen):
    """What a finished training reports; the model is in its scratch folder, `model/`."""

    num_parameters: int
    """Parameters of the merged model."""

    counts: dict[str, int]
    """Rows and steps, for the manifest."""

    timings_s: dict[str, float]
    """Seconds by part, for the manifest."""

    facts: dict[str, Any]
    """Curve, best validation loss, where it was resumed, for the manifest."""
