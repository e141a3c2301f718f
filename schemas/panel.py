"""Several teachers as one: who they are, and whose response a row gets."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Branch, RegularExpression, Spec, check_names
from schemas.judge import PairJudge
from schemas.samples import JsonChoice, LabelChoice, RegexChoice
from schemas.task import TaskKind
from schemas.teacher import TeacherSpec
from schemas.teacher_base import AnswersPrompts

Verifier = Annotated[LabelChoice | RegexChoice | JsonChoice, Field(discriminator="kind")]
"""What a response has to be, whoever wrote it."""


class _Rule(Branch):
    """Which rows go to a member of a panel."""


class ColumnRule(_Rule):
    """Rows in whose column a regular expression is found."""

    kind: Literal["column"] = "column"
    """By a column of the source."""

    column: str = Field(min_length=1)
    """One of those that `columns.slices` names, of the test rows too."""

    pattern: RegularExpression
    """Python regular expression, searched in the column's text. A row without a value has none."""


class TaskRule(_Rule):
    """All rows of some types of task: a panel may be shared by several recipes."""

    kind: Literal["task"] = "task"
    """By the type of the task."""

    types: tuple[TaskKind, ...] = Field(min_length=1)
    """`task.type` of the recipe."""


class LengthRule(_Rule):
    """Rows by the length of what is asked."""

    kind: Literal["length"] = "length"
    """By the length of the prompt."""

    min_chars: int = Field(0, ge=0)
    """Fewest characters of all messages of the row."""

    max_chars: int | None = Field(None, ge=0)
    """Most characters. None: no limit."""

    @model_validator(mode="after")
    def _bounds_leave_some_out(self) -> Self:
        if self.min_chars == 0 and self.max_chars is None:
            raise ValueError(
                "a rule of kind 'length' without bounds takes every row. Set min_chars or "
                "max_chars, or leave the rule of the last member out."
            )
        if self.max_chars is not None and self.min_chars > self.max_chars:
            raise ValueError(
                f"min_chars={self.min_chars} is above max_chars={self.max_chars}, so no row is "
                "that long. Change one of them."
            )
        return self


class LanguageRule(_Rule):
    """Rows whose last user turn is in one of some languages, as py3langid sees it."""

    kind: Literal["language"] = "language"
    """By language."""

    languages: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...] = Field(min_length=1)
    """ISO 639-1 codes, such as `[de, fr]`."""


Rule = Annotated[
    ColumnRule | TaskRule | LengthRule | LanguageRule,
    Field(discriminator="kind"),
]


class _Policy(Branch):
    """Whose response a row gets."""


class RoutePolicy(_Policy):
    """Each row goes to one member: the first whose `rule` it meets.

    The last member has no rule, and takes the rest.
    """

    kind: Literal["route"] = "route"
    """By a rule on the row."""


class VotePolicy(_Policy):
    """All members answer, and the answer that most of them give counts.

    Answers are the same where the task's metrics take them to be. A row on which two answers have
    equally many votes is dropped (`teachers_disagree`): nobody knows who is right.
    """

    kind: Literal["vote"] = "vote"
    """By majority."""


class BestOfPolicy(_Policy):
    """All members answer, and a verifier or a judge chooses."""

    kind: Literal["best_of"] = "best_of"
    """The best response."""

    verifier: Verifier | None = Field(None, title="Verifier")
    """The first member's response that passes counts. A row on which none passes is dropped."""

    judge: PairJudge | None = Field(None, title="Judge")
    """The first response stands against the second, the winner against the third, and so on; at a
    tie the earlier one stays."""

    @model_validator(mode="after")
    def _somebody_chooses(self) -> Self:
        if (self.verifier is None) == (self.judge is None):
            have = "neither a verifier nor" if self.verifier is None else "both a verifier and"
            raise ValueError(
                f"a policy of kind 'best_of' has {have} a judge, so it is not clear who chooses. "
                "Set one of verifier and judge."
            )
        return self


class CascadePolicy(_Policy):
    """The first member answers every row; a row goes on to the next where it does not hold.

    All criteria that are set have to hold. What the last member answers counts in any case.
    """

    kind: Literal["cascade"] = "cascade"
    """The cheap one first."""

    verifier: Verifier | None = Field(None, title="Verifier")
    """The response has to pass it."""

    min_agreement: float | None = Field(None, gt=0, le=1)
    """Least share of the member's own samples that bear the response out; needs
    `samples.num_samples` above 1 of every member but the last."""

    min_log_probability: float | None = Field(None, le=0)
    """Least mean log-probability of the response's tokens, nats per token, by the member's own
    account: -0.05 is a geometric mean of 95 % per token. Served members are asked for `logprobs`.
    It differs from model to model: look at the rows that two teachers answered differently."""

    @model_validator(mode="after")
    def _something_decides(self) -> Self:
        if (self.verifier, self.min_agreement, self.min_log_probability) == (None, None, None):
            raise ValueError(
                "a policy of kind 'cascade' has no criterion, so no row would ever go on to the "
                "second teacher. Set verifier, min_agreement or min_log_probability."
            )
        return self


JUDGE = "judge"
"""What plan and report call the judge of a panel."""

REASONS = (
    *("rule", "rest"),
    *("majority", "tie"),
    *("verified", "unverified", "judged"),
    *("settled", "last"),
)
"""Why a row got the response of which member: the word before the colon in `chosen_because`."""

TIE = "tie"
"""Nobody knows which of two answers is right, so nothing is learnt from the row."""

Policy = Annotated[
    RoutePolicy | VotePolicy | BestOfPolicy | CascadePolicy,
    Field(discriminator="kind"),
]


class PanelMember(Spec):
    """One teacher of a panel."""

    name: str = Field(pattern=r"^[\w .+-]+$")
    """What rows, plan and report call it."""

    teacher: TeacherSpec = Field(title="Teacher")
    """Who it is. Its responses, price and budget are its own, whoever is in the panel beside it."""

    rule: Rule | None = Field(None, title="Rule")
    """Which rows it answers, where `policy.kind` is route."""


class PanelTeacher(AnswersPrompts):
    """Several teachers as one: each row gets the response of one of them."""

    is_panel: ClassVar[Literal[True]] = True

    kind: Literal["panel"] = "panel"
    """Several teachers."""

    policy: Policy = Field(title="Policy")
    """Whose response a row gets."""

    teachers: tuple[PanelMember, ...] = Field(min_length=2)
    """The members. Their order counts: for rules, ties and cascades the first come first."""

    @property
    def in_batches(self) -> bool:
        """Return whether one of them is asked by the batch."""
        return any(each.in_batches for each in self.everyone.values())

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [each.name for each in self.teachers]
        check_names(names, "teacher.teachers", taken=JUDGE, by="the judge of a panel")
        return self

    @model_validator(mode="after")
    def _rules_fit_the_policy(self) -> Self:
        *others, last = self.teachers
        if self.policy.kind != "route":
            if ruled := [each.name for each in self.teachers if each.rule is not None]:
                raise ValueError(
                    f"teacher {ruled[0]!r} has a rule, but policy.kind is {self.policy.kind!r}, "
                    "which reads none. Remove it, or set policy.kind to route."
                )
            return self
        if unruled := [each.name for each in others if each.rule is None]:
            raise ValueError(
                f"teacher {unruled[0]!r} has no rule, so it would take every row and those after "
                "it none. Give it a rule, or put it last."
            )
        if last.rule is not None:
            raise ValueError(
                f"teacher {last.name!r} is the last and has a rule, so rows that meet none would "
                "have no teacher. Remove its rule, or put a member without one behind it."
            )
        return self

    @model_validator(mode="after")
    def _agreement_has_samples(self) -> Self:
        policy = self.policy
        if not isinstance(policy, CascadePolicy) or policy.min_agreement is None:
            return self
        alone = [e.name for e in self.teachers[:-1] if e.teacher.samples.num_samples == 1]
        if alone:
            raise ValueError(
                f"policy.min_agreement is {policy.min_agreement:g}, but teacher {alone[0]!r} gives "
                "one response per prompt, which has nothing to agree with. Set its "
                "samples.num_samples above 1."
            )
        return self

    @property
    def model(self) -> str:
        """Return what tables call it.

        >>> member = lambda name: {"name": name, "teacher": {"kind": "transformers", "model": name}}
        >>> two = [member("small"), member("big")]
        >>> PanelTeacher(policy={"kind": "vote"}, teachers=two).model
        'vote of small, big'
        """
        return f"{self.policy.kind} of {', '.join(each.name for each in self.teachers)}"

    @property
    def is_served(self) -> bool:
        """Return whether some member is asked over HTTP."""
        return any(each.teacher.is_served for each in self.teachers)

    @property
    def is_hosted(self) -> bool:
        """Return whether others run some member."""
        return any(each.teacher.is_hosted for each in self.teachers)

    @property
    def judge(self) -> PairJudge | None:
        """Return who chooses among the members' responses, where it is a judge."""
        return self.policy.judge if isinstance(self.policy, BestOfPolicy) else None

    @property
    def everyone(self) -> dict[str, TeacherSpec]:
        """Return all who are asked, by name: the members, then the judge."""
        members = {each.name: each.teacher for each in self.teachers}
        return members | ({JUDGE: self.judge.model} if self.judge else {})

    @property
    def reads_columns(self) -> bool:
        """Return whether a rule looks at columns of the source."""
        return any(isinstance(each.rule, ColumnRule) for each in self.teachers)

    @property
    def needs_log_probabilities(self) -> bool:
        """Return whether members have to say how probable their own responses are."""
        policy = self.policy
        return isinstance(policy, CascadePolicy) and policy.min_log_probability is not None


AnyTeacher = Annotated[TeacherSpec | PanelTeacher, Field(discriminator="kind")]
"""A single teacher, or several as one."""


def singles(teacher: AnyTeacher) -> tuple[TeacherSpec, ...]:
    """Return all single teachers that are asked: ``teacher`` itself, or those of a panel."""
    return tuple(teacher.everyone.values()) if teacher.is_panel else (teacher,)
