"""Whether a served model still answers as it did."""

from datetime import date, datetime

from pydantic import BaseModel, ConfigDict, Field

from schemas.comparison import Interval


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Canary(_Record):
    """A prompt that is asked anew on every run, and the answers of the day it was pinned."""

    prompt_id: str
    """Its row."""

    messages: str
    """What the teacher reads, canonical JSON, its instructions and examples included."""

    responses: tuple[str | None, str | None]
    """Two answers to the same request, to see how far they differ without any drift. None: the
    endpoint declined."""


class Canaries(_Record):
    """The pinned canaries of one teacher, its sampling and its prompt."""

    pinned_at: datetime
    """When, UTC."""

    model: str
    """What the endpoint said it was."""

    canaries: tuple[Canary, ...]
    """The prompts."""


class Drift(_Record):
    """Today's answers to the canaries beside those of the day on which they were pinned."""

    model: str
    """Name under which the endpoint serves the model."""

    asked_at: datetime
    """When, UTC."""

    pinned_at: datetime
    """When the canaries were pinned, UTC. The same as `asked_at` on the first run."""

    reported: tuple[str, str]
    """What the endpoint called the model then and today."""

    metric: str
    """How answers are compared: today's is scored in the primary metric against the pinned one."""

    same: Interval | None
    """Its mean today. None: no canary has both answers."""

    expected: Interval | None
    """Its mean between the two answers of the day they were pinned."""

    change: Interval | None
    """The first minus the second, paired by prompt."""

    changed: tuple[str, ...] = Field(default=())
    """Ids of the prompts whose answer is less like the pinned one than the two of that day."""

    shutdown_date: date | None = None
    """When the endpoint takes the model down, if it says so."""

    @property
    def has_drifted(self) -> bool:
        """Return whether answers differ by more than they did on the day they were pinned."""
        return self.change is not None and self.change.high is not None and self.change.high < 0
