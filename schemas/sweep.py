"""A sweep: many students of one teacher, to find the recipe."""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from schemas.base import Branch, Spec
from schemas.distillation import Distillation
from schemas.recipe import Recipe


class _Parameter(Branch):
    """A field of the recipe that trials vary."""

    field: str = Field(pattern=r"^[a-z_]+(\.[a-z_]+)+$")
    """Its place, such as `training.learning_rate`."""


class NumberParameter(_Parameter):
    """A number from a range."""

    kind: Literal["number"] = "number"
    """A number."""

    low: float
    """Smallest value."""

    high: float
    """Largest value."""

    log: bool = False
    """Search its logarithm: for learning rates and other scales."""


class IntegerParameter(_Parameter):
    """A whole number from a range."""

    kind: Literal["integer"] = "integer"
    """A whole number."""

    low: int
    """Smallest value."""

    high: int
    """Largest value."""

    step: int = Field(1, ge=1)
    """Distance between values."""

    log: bool = False
    """Search its logarithm; then `step` has to be 1."""


class ChoiceParameter(_Parameter):
    """One of several values, or whole sections such as `{kind: hard_targets}`."""

    kind: Literal["choice"] = "choice"
    """One of several."""

    choices: tuple[JsonValue, ...] = Field(min_length=2)
    """The values, as the recipe would have them."""


Parameter = Annotated[
    NumberParameter | IntegerParameter | ChoiceParameter, Field(discriminator="kind")
]

Cost = Literal["latency", "parameters", "disk_bytes"]


class SweepSpec(Spec):
    """What is tried, and what is better."""

    parameters: tuple[Parameter, ...] = Field(min_length=1)
    """What trials vary: numeric or categorical fields of task, teacher, filters, student or
    training."""

    metric: str | None = None
    """Metric of quality, on the selection rows. None: the task's primary one."""

    costs: tuple[Cost, ...] = ()
    """What has to be small besides: the sweep then looks for the Pareto set. latency: median
    seconds of a response at batch size 1. parameters: the student's. disk_bytes: of its weights."""

    margin: float = Field(0.01, ge=0)
    """With costs, the winner is the cheapest student (by the first of them) whose quality is at
    most this far from the best one's, in the metric's own unit."""

    num_trials: int = Field(20, ge=1)
    """Students that are trained, at most: bad ones are given up early."""

    parallel_trials: int = Field(1, ge=1)
    """Trials at a time, each a run on `gpu-pool`. With 1 the same sweep tries the same students."""

    pruning: bool = True
    """Give up a trial whose validation loss is worse than the median of the others at the same
    share of the training. Only among trials of one objective: other losses are no comparison.
    With costs none is given up, as a bad student may be the cheapest."""

    startup_trials: int = Field(5, ge=1)
    """Trials at random before the sampler (TPE, Bergstra et al. 2011) and pruning begin."""

    seed: int = 0
    """Seed of the sampler."""

    @model_validator(mode="after")
    def _names_each_field_once(self) -> Self:
        fields = [parameter.field for parameter in self.parameters]
        if len(set(fields)) < len(fields):
            raise ValueError(
                f"sweep.parameters names {sorted(fields)!r}, one field twice. Name each once."
            )
        return self


class SweepRecipe(Recipe):
    """Parameters of the flow `sweep_students`: a recipe, and what trials vary of it."""

    sweep: SweepSpec


class Sweep(Spec):
    """What `sweep_students` returns."""

    winner: Distillation | None = None
    """The winning recipe, run through the spine."""
