"""What the flow `answer_prompts` returns."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, JsonValue

from schemas.refs import DatasetRef


class Generation(BaseModel):
    """The teacher's responses, and what they took."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    responses: DatasetRef
    """One row per training and validation prompt."""

    quarantined: DatasetRef
    """Prompts put aside before the teacher was asked, each with its reason."""

    counts: dict[str, int]
    """Rows by the state of their response; `from_ledger` and `asked` beside them."""

    facts: dict[str, JsonValue]
    """Tokens, cost, seconds, retries; None where unknown."""

    reused: bool
    """Whether an earlier run had made them; counts and facts are then of that run."""

    made_at: datetime
    """When they were made, UTC."""


class TeacherShare(BaseModel):
    """What one member of a panel, or its judge, did for the responses of a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """The member's name."""

    model: str
    """Its model."""

    rows: int
    """Rows that got its response."""

    asked: int
    """Rows that it was asked, now or in an earlier run."""

    agreement: float | None
    """Share of the rows that it was asked in which its answer is the final one; a row without an
    answer does not count. None: there is none."""

    prompt_tokens: int
    """Tokens read, over all samples and attempts."""

    completion_tokens: int
    """Tokens written, over all samples and attempts."""

    cost: float | None
    """What these cost at its price. None: it has none."""

    currency: str | None
    """Currency of the cost."""


class PanelShares(BaseModel):
    """Who did what in a panel, and what that saved."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    policy: str
    """Kind of the policy."""

    teachers: tuple[TeacherShare, ...]
    """The members in the panel's order, then the judge."""

    dearest: str | None = None
    """The member that would have cost most alone. None: no member has a price."""

    dearest_cost: float | None = None
    """What it alone would have cost: its own tokens on the rows that it was asked, the mean of
    these on the others (those of the final responses where it was asked none)."""

    cost: float | None = None
    """What all of them cost. None: no member has a price."""

    currency: str | None = None
    """Currency of both."""

    @property
    def saved(self) -> float | None:
        """Return the money saved against the dearest member alone."""
        if self.dearest_cost is None or self.cost is None:
            return None
        return self.dearest_cost - self.cost
