"""Classification: one label per text, or a JSON value or short text that stands for one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from distillery.task_types.base import AnswerFormatClass, Floats, ScoredRow, SetMetric, TaskType
from schemas.task import JsonFormat, LabelSet, RegexFormat

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class MacroF1(SetMetric):
    """The mean F1 over the labels that are right somewhere.

    Unlike accuracy it does not rise when rare labels are given up for a common one.

    >>> from schemas.task import TaskSpec
    >>> kind = Classification(TaskSpec(name="t", type="classification"))
    >>> rows = [ScoredRow(a, (b,)) for a, b in [("a", "a"), ("a", "b"), ("", "b")]]
    >>> metric = MacroF1(kind)
    >>> metric.value(metric.statistics(rows).sum(axis=0)[None])  # a: 2/3, b: 0
    array([0.33333333])
    """

    def __init__(self, kind: TaskType) -> None:
        self._kind = kind

    def statistics(self, rows: Sequence[ScoredRow]) -> "csr_array":
        """Return by label: right, asked for, given. A response that was cut has no answer."""
        from scipy.sparse import csr_array

        asked = [self._value(row.references[0]) for row in rows]
        given = [None if row.truncated else self._value(row.response) for row in rows]
        labels = {label: number for number, label in enumerate(dict.fromkeys(asked))}
        places: list[tuple[int, int]] = []
        for at, (right, answer) in enumerate(zip(asked, given, strict=True)):
            places.append((at, labels[right] + len(labels)))
            if answer in labels:
                places.append((at, labels[answer] + 2 * len(labels)))
            if answer == right:
                places.append((at, labels[right]))
        rows_of, columns = zip(*places, strict=True)
        shape = (len(rows), 3 * len(labels))
        return csr_array((np.ones(len(places)), (rows_of, columns)), shape=shape)

    def value(self, sums_RS: Floats) -> Floats:
        """Return the mean over the labels that are asked for in a set."""
        right, asked, given = np.split(sums_RS, 3, axis=1)
        f1 = np.divide(2 * right, asked + given, out=np.zeros_like(right), where=asked > 0)
        return np.asarray(f1.sum(axis=1) / (asked > 0).sum(axis=1))

    def _value(self, text: str) -> str | None:
        answer = self._kind.parse(text)
        return answer.value if answer else None


class Classification(TaskType):
    """An answer is right or wrong.

    >>> from schemas.task import TaskSpec
    >>> tickets = Classification(TaskSpec(name="t", type="classification", answer_format={
    ...     "kind": "labels", "labels": ["refund", "repair"]}))
    >>> tickets.score(' "Refund". ', ["refund"]), tickets.score(None, ["refund"])
    ({'accuracy': 1.0}, {'accuracy': None})
    """

    fields: ClassVar[tuple[str, ...]] = ("text",)
    answer_formats: ClassVar[tuple[AnswerFormatClass, ...]] = (LabelSet, RegexFormat, JsonFormat)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels of the answer format, if it lists them."""
        found = self.task.answer_format
        return found.labels if isinstance(found, LabelSet) else ()

    @property
    def has_labels(self) -> bool:  # type: ignore[override]
        """Return False for JSON: it is several labels at once, and hardly two rows share them."""
        return not isinstance(self.task.answer_format, JsonFormat)

    @property
    def of_the_set(self) -> Mapping[str, SetMetric]:
        """Return macro F1, but not over whole JSON objects: too many classes to mean anything."""
        return {"macro F1": MacroF1(self)} if self.has_labels else {}

    def instructions(self) -> str:
        """Return the request for a label, with the list of them where the task has one."""
        if self.labels:
            listed = "\n".join(self.labels)
            return f"Classify the text. Answer with one of these labels and nothing else:\n{listed}"
        return "Classify the text. Answer with its class and nothing else."
