"""One file per task type: what a row is, what an answer is, and how it is scored."""

from distillery.task_types.answer_formats import Answer, Violation
from distillery.task_types.base import ScoredRow, SetMetric, TaskType
from distillery.task_types.classification import Classification
from distillery.task_types.conversation import Conversation
from distillery.task_types.math import Math
from distillery.task_types.nli import Nli
from distillery.task_types.qa import Qa
from distillery.task_types.summarization import Summarization
from schemas.task import TaskKind, TaskSpec

TASK_TYPES: dict[TaskKind, type[TaskType]] = {
    TaskKind.CLASSIFICATION: Classification,
    TaskKind.CONVERSATION: Conversation,
    TaskKind.MATH: Math,
    TaskKind.NLI: Nli,
    TaskKind.QA: Qa,
    TaskKind.SUMMARIZATION: Summarization,
}

__all__ = [
    "TASK_TYPES",
    "Answer",
    "ScoredRow",
    "SetMetric",
    "TaskType",
    "Violation",
    "task_type",
]


def task_type(task: TaskSpec) -> TaskType:
    """Return what is particular to a task of this kind.

    >>> task_type(TaskSpec(name="tickets", type="classification")).primary
    'accuracy'
    """
    return TASK_TYPES[task.type](task)
