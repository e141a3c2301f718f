"""Several responses per prompt, and how one of them is chosen."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Branch, RegularExpression, Spec


class _Choice(Branch):
    """How one of several responses is chosen."""


class MajorityChoice(_Choice):
    """The first response with the answer that most samples agree on.

    Answers are the same where the task's metrics take them to be: a label, a JSON value, the value
    of a solution; without an answer format the whole text, without regard to case.

    Self-consistency: Wang et al. 2022, arXiv:2203.11171.
    """

    kind: Literal["majority"] = "majority"
    """Majority vote."""


class LabelChoice(_Choice):
    """The first response that is a label of `task.answer_format`."""

    kind: Literal["label"] = "label"
    """A label of `task.answer_format`."""


class RegexChoice(_Choice):
    """The first response that matches a regular expression from beginning to end."""

    kind: Literal["regex"] = "regex"
    """A regular expression."""

    pattern: RegularExpression
    """Python regular expression; the whole stripped response has to match."""


class JsonChoice(_Choice):
    """The first response that is JSON and satisfies the schema of `task.answer_format`."""

    kind: Literal["json"] = "json"
    """The task's JSON schema."""


Choice = Annotated[
    MajorityChoice | LabelChoice | RegexChoice | JsonChoice,
    Field(discriminator="kind"),
]


class SamplesSpec(Spec):
    """How many responses each prompt gets, and which of them is kept."""

    num_samples: int = Field(1, ge=1, le=256)
    """Responses per prompt, each paid for and kept in the ledger by itself. More than one needs
    `sampling_temperature` above 0: they would all be alike."""

    choice: Choice = Field(MajorityChoice(), title="Choice")
    """Which response the student learns from. Read when `num_samples` is above 1."""
