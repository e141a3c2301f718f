"""Classification: one label per text, or a JSON value or short text that stands for one."""

from collections import Counter
from collections.abc import Mapping, Sequence

from distillery.task_types.base import Metric, SetMetric, TaskType
from schemas.task import JsonFormat


def macro_f1(answers: Sequence[str | None], references: Sequence[str]) -> float | None:
    """Return the mean F1 over the labels that are right somewhere; None without rows.

    Unlike accuracy it does not rise when rare labels are given up for a common one.

    >>> macro_f1(["a", "a", None], ["a", "b", "b"])  # a: 2/3, b: 0
    0.3333333333333333
    """
    asked, given = Counter(references), Counter(answers)
    right = Counter(r for a, r in zip(answers, references, strict=True) if a == r)
    f1 = [2 * right[label] / (asked[label] + given[label]) for label in asked]
    return sum(f1) / len(f1) if f1 else None


class Classification(TaskType):
    """An answer is right or wrong.

    >>> from schemas.task import TaskSpec
    >>> tickets = Classification(TaskSpec(name="t", type="classification", answer_format={
    ...     "kind": "labels", "labels": ["refund", "repair"]}))
    >>> tickets.score(' "Refund". ', "refund"), tickets.score(None, "refund")
    ({'accuracy': 1.0}, {'accuracy': None})
    """

    metrics = (Metric("accuracy"),)

    @property
    def of_the_set(self) -> Mapping[str, SetMetric]:
        """Return macro F1, but not over whole JSON objects: too many classes to mean anything."""
        return {} if isinstance(self.task.answer_format, JsonFormat) else {"macro_f1": macro_f1}

    def score(
        self, response: str | None, reference: str, *, truncated: bool = False
    ) -> dict[str, float | None]:
        """Return the accuracy: 1 or 0. A response that was cut is wrong, as a user would have it.

        Unscored where there is no response, or no answer in the reference.
        """
        right = self.parse(reference)
        if response is None or right is None:
            return {"accuracy": None}
        answer = None if truncated else self.parse(response)
        return {"accuracy": float(answer is not None and self.same(answer, right))}
