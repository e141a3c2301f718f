"""What a task type is: how a response is read, compared and scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from distillery.task_types.answer_formats import Answer, Violation, read_answer
from schemas.filters import (
    DuplicateFilter,
    EmptyFilter,
    Filter,
    FormatFilter,
    RefusalFilter,
    TruncatedFilter,
)
from schemas.task import TaskSpec

SetMetric = Callable[[Sequence[str | None], Sequence[str]], float | None]
"""A metric of all answers (their texts; None where there is none), given the references."""


@dataclass(frozen=True)
class Metric:
    """A number that says how good one answer is."""

    name: str
    """Its key in what `score` returns."""

    higher_is_better: bool = True
    """Its direction."""


class TaskType:
    """Everything that depends on the kind of task. A kind of its own overrides what differs.

    A teacher can answer a task of any kind, so reading needs no metric; :meth:`score` does.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    """The metrics of one answer. By the first, models are compared and students promoted."""

    default_rules: ClassVar[tuple[Filter, ...]] = (
        EmptyFilter(),
        TruncatedFilter(),
        RefusalFilter(),
        FormatFilter(),
        DuplicateFilter(),
    )
    """The filters that run when `filters.rules` names none."""

    def __init__(self, task: TaskSpec) -> None:
        self.task = task

    @property
    def primary(self) -> Metric:
        """Return the metric that decides."""
        return self.metrics[0]

    @property
    def of_the_set(self) -> Mapping[str, SetMetric]:
        """Return the metrics that no single answer has."""
        return {}

    def read(self, response: str) -> Answer | Violation:
        """Return the answer in a response, or why there is none.

        Dress, thoughts and fences come off here and nowhere else.
        """
        return read_answer(response, self.task.answer_format)

    def parse(self, response: str) -> Answer | None:
        """Return the answer in a response; None when there is none."""
        found = self.read(response)
        return found if isinstance(found, Answer) else None

    def violation(self, text: str) -> Violation | None:
        """Return why ``text`` can be neither a response to learn from nor a reference, or None."""
        found = self.read(text)
        return None if isinstance(found, Answer) else found

    def same(self, answer: Answer, other: Answer) -> bool:
        """Return whether two answers say the same: for filter, vote, verifier and metric alike."""
        return answer.value == other.value

    def score(
        self, response: str | None, reference: str, *, truncated: bool = False
    ) -> dict[str, float | None]:
        """Return the value of every metric of one answer; None is *unscored*, never 0.

        Args:
            response: What the model wrote; None when it could not be obtained (the endpoint
                failed).
            reference: What is right.
            truncated: The response was cut at the token limit.
        """
        raise NotImplementedError(f"task type {str(self.task.type)!r} has no metrics")
