"""What a student needs to be promoted."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Branch, Spec

Against = Literal["teacher", "baseline", "champion"]

LimitFigure = Literal[
    "latency_p50_s",
    "latency_p95_s",
    "latency_p99_s",
    "first_token_p50_s",
    "memory_bytes",
    "peak_memory_bytes",
    "disk_bytes",
    "cost_per_1000",
]


class _Condition(Branch):
    """Something that has to hold."""


class QualityCondition(_Condition):
    """A metric: its interval has to be high enough, alone or against another contestant's."""

    kind: Literal["quality"] = "quality"
    """A metric."""

    metric: str | None = None
    """Which one, in capitals or not. None: the primary metric of the task."""

    slice: str | None = None
    """On which of the test rows, such as `label=refund`; the primary metric only, and against
    teacher or champion. None: all."""

    against: Against | None = None
    """Whom the student is held against; the champion only while there is one. None: nobody."""

    at_least: float = 0.0
    """Alone: the lower end of the metric's interval has to reach this. Against another: the lower
    end of the interval of student minus other has to be above this; -0.02 allows a loss of two
    points (non-inferiority), and 0.0 asks for a gain."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.against is None and self.at_least <= 0:
            raise ValueError(
                f"at_least is {self.at_least:g}, which every student reaches. Set it above 0, or "
                "name in `against` whom the student is held against."
            )
        return self


class LimitCondition(_Condition):
    """A figure that must not be larger than something: speed, memory, cost."""

    kind: Literal["limit"] = "limit"
    """A figure of speed, memory or cost."""

    figure: LimitFigure
    """Which one."""

    against: Against | None = None
    """Whose figure it is divided by; the champion's only while there is one. None: nobody's."""

    at_most: float = Field(gt=0)
    """Most that the figure, or the ratio, may be."""


Condition = Annotated[QualityCondition | LimitCondition, Field(discriminator="kind")]


class GateSpec(Spec):
    """All conditions have to hold for a student to be promoted. A missing figure fails.

    Of a metric the end of its interval counts (`evaluation.confidence`), so what the test rows
    cannot show has not been shown; docs/gate.md says how many rows show what. Every exported form
    of the student is held to the same conditions.
    """

    min_retention: float = Field(0.92, ge=0)
    """The lower end of the interval of student / teacher, in the primary metric, has to reach
    this: the student is not worse than that share of the teacher. Undefined, it fails."""

    min_gain: float | None = 0.0
    """Lower end of the interval of student minus baseline has to be above this. None: not asked."""

    min_lead_over_majority: float | None = 0.0
    """Teacher and student have to score more than always giving the most frequent reference of the
    test rows would: the lower ends of the intervals of the differences have to be above this. A
    ratio to a teacher that is no better says nothing. Not asked where each reference occurs once.
    None: never asked."""

    max_loss_to_champion: float | None = 0.0
    """The student must not fall short of the student that the alias points to by so much, in the
    primary metric: the upper end of the interval of champion minus student has to be below this.
    0.0: it has to be better, and a tie leaves the champion where it is. To have a student that
    ties and is cheaper replace it, allow a loss here, such as 0.01, and add a condition on its
    cost, `{kind: limit, figure: cost_per_1000, against: champion, at_most: 0.5}`. Not asked while
    there is no champion. None: never asked."""

    max_unscored_fraction: float = Field(0.05, ge=0, le=1)
    """Most test rows without a score, of the model that has the most. A verdict on the few rows
    that an endpoint happened to answer is none."""

    max_latency_ratio: float | None = Field(None, gt=0)
    """Most student p50 latency / teacher p50 latency. None: not asked. 0.15 is 85 % less time."""

    max_memory_ratio: float | None = Field(None, gt=0)
    """Most student memory / teacher memory. None: not asked. 0.05 is 95 % less memory."""

    max_cost_ratio: float | None = Field(None, gt=0)
    """Most student cost / teacher cost per request. None: not asked. 0.4 is 60 % less."""

    regressions_against: tuple[Literal["teacher", "champion"], ...] = ("champion",)
    """Of whom no slice may fall short: one in which the student is worse, after correction for
    the number of slices, keeps it from being promoted. Not asked where no slice has
    `evaluation.min_slice_rows` rows."""

    conditions: tuple[Condition, ...] = ()
    """Further conditions, on other metrics, slices and figures."""

    approval_timeout_s: float | None = Field(None, gt=0)
    """Ask a person in the Prefect UI once all conditions hold, and wait so long, seconds. No answer
    is a no. None: nobody is asked."""

    alias: str = Field("champion", pattern=r"^[a-z0-9-]+$")
    """Alias under which a student that passes is published."""
