"""The task: what a prompt asks for and what a well-formed answer to it looks like."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator

from schemas.base import Branch, RegularExpression, Spec


class TaskKind(StrEnum):
    """Kinds of task. Each has its own metrics; see ``distillery.task_types``."""

    CLASSIFICATION = "classification"
    NLI = "nli"
    CONVERSATION = "conversation"
    QA = "qa"
    MATH = "math"
    SUMMARIZATION = "summarization"


class _AnswerFormat(Branch):
    """What a well-formed answer looks like."""


class LabelSet(_AnswerFormat):
    """The answer is one label of a list."""

    kind: Literal["labels"] = "labels"
    """One label of a list."""

    labels: tuple[str, ...] = Field(min_length=2)
    """All labels. A reference outside them is quarantined, a response outside them dropped."""

    @field_validator("labels", mode="before")
    @classmethod
    def _are_text(cls, labels: Any) -> Any:
        """Say once, and not per label, that YAML has read something other than text."""
        if isinstance(labels, list | tuple):
            others = [repr(label) for label in labels if not isinstance(label, str)]
            if others:
                raise ValueError(
                    f"holds {', '.join(others):.80} instead of text: YAML reads yes, no, digits "
                    "and dates as something else. Put every label in quotes."
                )
        return labels

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        for label in labels:
            if not label.strip() or label != label.strip():
                raise ValueError(f"{label!r} begins or ends with white space. Remove it.")
            if labels.count(label) > 1:
                raise ValueError(f"{label!r} is listed twice. Remove one.")
        return labels


class RegexFormat(_AnswerFormat):
    """The answer matches a regular expression from its first to its last character."""

    kind: Literal["regex"] = "regex"
    """A regular expression."""

    pattern: RegularExpression
    """Python regular expression; the whole stripped answer has to match."""


class JsonFormat(_AnswerFormat):
    """The answer is JSON text that satisfies a JSON schema."""

    kind: Literal["json"] = "json"
    """A JSON schema."""

    json_schema: dict[str, JsonValue]
    """JSON schema (draft 2020-12) of the parsed answer."""


AnswerFormat = Annotated[LabelSet | RegexFormat | JsonFormat, Field(discriminator="kind")]


class TaskSpec(Spec):
    """What is being distilled."""

    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    """Short name: titles the report and names the published student. Artifact keys allow only
    lower-case letters, digits and dashes."""

    type: TaskKind = Field(title="Type")
    """Kind of task; decides the metrics."""

    answer_format: AnswerFormat | None = Field(None, title="Answer format")
    """What a well-formed answer is. References are checked against it before the teacher is
    asked, responses by the filter `format`. None: as the type has it; classification takes any
    text, nli entailment, neutral and contradiction. Classification takes all kinds, nli `labels`
    for two-way sets or another spelling, the other types none."""
