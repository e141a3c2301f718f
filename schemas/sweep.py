"""A sweep: many students of one teacher, to find the recipe."""

import json
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from schemas.base import Branch, Spec, runtime_field
from schemas.comparison import Interval
from schemas.distillation import Distillation
from schemas.recipe import Recipe
from schemas.refs import ReportRef


class _Parameter(Branch):
    """A field of the recipe that trials vary."""

    field: str = Field(pattern=r"^[a-z_]\w*(\.\w+)*$")
    """Its place, such as `training.learning_rate`, or a whole section's, such as `student`."""


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

    @model_validator(mode="after")
    def _has_an_inside(self) -> Self:
        _check_range(self.field, self.low, self.high, log=self.log)
        return self


class IntegerParameter(_Parameter):
    """A whole number from a range."""

    kind: Literal["integer"] = "integer"
    """A whole number."""

    low: int
    """Smallest value."""

    high: int
    """Largest value."""

    step: int = Field(1, ge=1)
    """Distance between values; 1 with `log`."""

    log: bool = False
    """Search its logarithm."""

    @model_validator(mode="after")
    def _has_even_steps_inside(self) -> Self:
        _check_range(self.field, self.low, self.high, log=self.log)
        if self.log and self.step > 1:
            raise ValueError(
                f"{self.field}: a logarithmic range has no even steps, and step is {self.step}. "
                "Set step to 1, or log to false."
            )
        if self.low + self.step > self.high:
            raise ValueError(
                f"{self.field}: low={self.low} and step={self.step} go beyond high={self.high}, so "
                "there is one value to try. Lower step."
            )
        return self


class ChoiceParameter(_Parameter):
    """One of several values, or whole sections such as `{kind: hard_targets}`."""

    kind: Literal["choice"] = "choice"
    """One of several."""

    choices: tuple[JsonValue, ...] = Field(min_length=2)
    """The values, as the recipe would have them."""

    @model_validator(mode="after")
    def _names_each_choice_once(self) -> Self:
        texts = [json.dumps(choice, sort_keys=True) for choice in self.choices]
        if len(set(texts)) < len(texts):
            raise ValueError(
                f"{self.field}: choices names {max(texts, key=texts.count)} twice. Name each once."
            )
        return self


def _check_range(field: str, low: float, high: float, *, log: bool) -> None:
    """Return when there is something between ``low`` and ``high``.

    Raises:
        ValueError: There is not.
    """
    if low >= high:
        raise ValueError(
            f"{field}: low={low:g} is not below high={high:g}, so there is nothing to try. "
            "Correct them."
        )
    if log and low <= 0:
        raise ValueError(
            f"{field}: low={low:g} has no logarithm. Raise it above 0, or set log to false."
        )


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

    margin: float = runtime_field(0.01, ge=0)
    """With costs, the winner is the cheapest student (by the first of them) whose quality is at
    most this far from the best one's, in the metric's own unit."""

    num_trials: int = runtime_field(20, ge=1)
    """Students that are trained, at most: bad ones are given up early. Raise it to go on with a
    sweep that has ended."""

    parallel_trials: int = runtime_field(1, ge=1)
    """Trials at a time, each a run on `gpu-pool`. With 1 the same sweep tries the same students."""

    pruning: bool = True
    """Give up a trial whose validation loss is worse than the median of the others at the same
    share of the training. Only among trials whose losses mean the same: of one objective with its
    settings, one tokenizer and the same validation rows. Has to be false with `costs`, as a bad
    student may be the cheapest."""

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

    @model_validator(mode="after")
    def _prunes_by_quality_alone(self) -> Self:
        if self.costs and self.pruning:
            raise ValueError(
                "sweep.pruning is true with sweep.costs, but a student that answers worse may be "
                "the cheapest, so its loss is no reason to give it up. Set sweep.pruning to false."
            )
        return self


class SweepRecipe(Recipe):
    """Parameters of the flow `sweep_students`: a recipe, and what trials vary of it."""

    sweep: SweepSpec


TrialState = Literal["running", "complete", "pruned", "failed"]


class Trial(Spec):
    """One student of a sweep."""

    number: int
    """Its number, from 0, in the order in which trials began."""

    values: dict[str, JsonValue]
    """What it varies: the field of the recipe and its value."""

    state: TrialState
    """running: it has not ended, or its sweep was killed. pruned: given up by its curve."""

    quality: Interval | None = None
    """The metric of the sweep on the selection rows. None: it did not get so far."""

    costs: dict[Cost, float] = Field({})
    """What the student costs, by name, measured or counted."""

    reason: str | None = None
    """Why it was pruned or failed."""

    seconds: float | None = None
    """From its beginning to its end, with the time in which its sweep stood still. None: it has not
    ended."""


class Sweep(Spec):
    """What `sweep_students` returns."""

    study: str
    """Name of its study in the ledger's database."""

    trials: tuple[Trial, ...]
    """All of them, by number."""

    winner: Trial
    """The best of them."""

    report: ReportRef
    """The page, the trials as JSON and the winning recipe as YAML."""

    distillation: Distillation
    """The winning recipe, run through the spine: the test rows, the gate, the promotion."""
