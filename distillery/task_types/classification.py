"""Classification: one label per text, or a JSON value or short text that stands for one."""

from distillery.task_types.base import Metric, TaskType


class Classification(TaskType):
    """An answer is right or wrong.

    >>> from schemas.task import TaskSpec
    >>> tickets = Classification(TaskSpec(name="t", type="classification", answer_format={
    ...     "kind": "labels", "labels": ["refund", "repair"]}))
    >>> tickets.score(' "Refund". ', "refund"), tickets.score(None, "refund")
    ({'accuracy': 1.0}, {'accuracy': None})
    """

    primary = Metric("accuracy")

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
