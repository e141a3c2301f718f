"""One file per task type: what a row is, what an answer is, and how it is scored."""

from distillery.task_types.answer_formats import Answer, Violation
from distillery.task_types.base import Metric, TaskType
from distillery.task_types.classification import Classification
from schemas.errors import RecipeError
from schemas.task import TaskKind, TaskSpec

TASK_TYPES: dict[TaskKind, type[TaskType]] = {TaskKind.CLASSIFICATION: Classification}

__all__ = ["TASK_TYPES", "Answer", "Metric", "TaskType", "Violation", "task_type"]


def task_type(task: TaskSpec, *, scored: bool = True) -> TaskType:
    """Return what is particular to a task of this kind.

    Args:
        task: The recipe's section.
        scored: Whether answers will be scored. Without it a kind that has no metrics yet will do:
            a teacher alone can answer any task.

    Raises:
        RecipeError: The kind has no metrics yet.

    >>> task_type(TaskSpec(name="tickets", type="classification")).primary.name
    'accuracy'
    """
    if task.type not in TASK_TYPES and scored:
        known = ", ".join(repr(str(kind)) for kind in TASK_TYPES)
        raise RecipeError(
            f"task.type={str(task.type)!r} is not yet supported: without metrics of its own, no "
            f"student could be compared with its teacher. Set task.type to one of: {known}."
        )
    return TASK_TYPES.get(task.type, TaskType)(task)
