"""What a task type is: how a row asks, how a response is read, compared and scored."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from distillery.task_types.answer_formats import Answer, Violation, check_schema, read_answer
from distillery.task_types.prompt_templates import as_text, render_prompt
from schemas.errors import RecipeError
from schemas.filters import (
    DuplicateFilter,
    FormatFilter,
    RefusalFilter,
    ResponseFilter,
    TruncatedFilter,
)
from schemas.task import JsonFormat, LabelSet, RegexFormat, TaskSpec

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = NDArray[np.float64]
AnswerFormatClass = type[LabelSet] | type[RegexFormat] | type[JsonFormat]


@dataclass(frozen=True)
class ScoredRow:
    """A response beside what is right."""

    response: str
    references: tuple[str, ...]
    truncated: bool = False
    """The response was cut at the token limit."""


class SetMetric(ABC):
    """A number that only a set of answers has, made of sums over its rows.

    So its interval costs no second look at any answer: resampled sums are enough.
    """

    more_is_better: ClassVar[bool] = True
    """Whether a model is the better the larger it is."""

    @abstractmethod
    def statistics(self, rows: Sequence[ScoredRow]) -> "Floats | csr_array":
        """Return what is summed, shape (N, S): N rows, S figures of each."""

    @abstractmethod
    def value(self, sums_RS: Floats) -> Floats:
        """Return the metric of each of R sets from the sums over its rows; NaN: undefined."""


class TaskType(ABC):
    """Everything that depends on the kind of task. A kind of its own overrides what differs.

    As it stands an answer is right or wrong, by :meth:`same`.
    """

    fields: ClassVar[tuple[str, ...]]
    """What a row has to hold beside its reference; see `ColumnMap`. Empty: messages alone."""

    optional_fields: ClassVar[tuple[str, ...]] = ()
    """What a row may hold besides."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    """The metrics of one answer. By the first, models are compared and students promoted."""

    default_filters: ClassVar[tuple[ResponseFilter, ...]] = (
        TruncatedFilter(),
        RefusalFilter(),
        FormatFilter(),
        DuplicateFilter(),
    )
    """The filters over responses that run when `filters.responses` names none."""

    answer_formats: ClassVar[tuple[AnswerFormatClass, ...]] = ()
    """What `task.answer_format` may be. Empty: nothing, as the type knows what an answer is."""

    has_labels: ClassVar[bool] = False
    """Whether answers are classes, so that recall by label and confusions mean something."""

    def __init__(self, task: TaskSpec) -> None:
        self.task = task

    @property
    def primary(self) -> str:
        """Return the metric that decides."""
        return self.metrics[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels, one of which every answer is; none where answers are open."""
        return ()

    def check(self) -> None:
        """Return when the task's answer format is one that this type can read.

        Raises:
            RecipeError: It is not, or is broken in itself.
        """
        found = self.task.answer_format
        if found is not None and not isinstance(found, self.answer_formats):
            kinds = [known.model_fields["kind"].default for known in self.answer_formats]
            advice = f"Give it kind {' or '.join(map(repr, kinds))}" if kinds else "Remove it"
            raise RecipeError(
                f"task.answer_format has kind={found.kind!r}, which task.type "
                f"{self.task.type.value!r} cannot use: it says itself what an answer is. {advice}, "
                "or choose task.type 'classification'."
            )
        if isinstance(found, JsonFormat):
            check_schema(found.json_schema)

    @property
    def of_the_set(self) -> Mapping[str, SetMetric]:
        """Return the metrics that no single answer has."""
        return {}

    # -- a row -------------------------------------------------------------------------------

    def prompt(self, values: Mapping[str, Any]) -> str:
        """Return the user message that a row becomes when `data.prompt_template` is not given.

        "" when nothing is asked.

        Args:
            values: The row's values by field; optional ones may be missing.
        """
        return render_prompt("\n\n".join(f"{{{name}}}" for name in self.fields), values)

    def shown(self, field: str, value: Any) -> Any:
        """Return the value of a field as prompts show it, in `data.prompt_template` too."""
        return value

    @abstractmethod
    def instructions(self) -> str:
        """Return what a teacher that does not know the task has to be told."""

    def references(self, value: Any) -> tuple[str, ...]:
        """Return the right answers that the value of a column holds; none where it is empty.

        Raises:
            ValueError: The value is of the wrong kind; the text says why.
        """
        text = as_text(value)
        return (text,) if text.strip() else ()

    def target(self, references: Sequence[str]) -> str:
        """Return what a model that learns from a labelled row should write."""
        return references[0]

    # -- an answer ---------------------------------------------------------------------------

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
        self,
        response: str | None,
        references: Sequence[str],
        *,
        truncated: bool = False,
        prompt: str = "",
    ) -> dict[str, float | None]:
        """Return the value of every metric of one answer; None is *unscored*, never 0.

        Here that is the accuracy, 1 or 0, unscored where there is no response or no answer in the
        references. A response that was cut is wrong, as a user would have it.

        Args:
            response: What the model wrote; None when it could not be obtained (the endpoint
                failed).
            references: What is right, each by itself.
            truncated: The response was cut at the token limit.
            prompt: What was asked, the last turn; "" where the answer alone counts.
        """
        right = [answer for text in references if (answer := self.parse(text))]
        if response is None or not right:
            return {"accuracy": None}
        answer = None if truncated else self.parse(response)
        return {"accuracy": float(answer is not None and any(self.same(answer, r) for r in right))}
