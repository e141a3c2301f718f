"""The funnel: rows on their way from the files to the student, and what became of the others."""

from pydantic import BaseModel, ConfigDict


class FunnelStep(BaseModel):
    """Rows that reached one point, and those that went no further."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Which point, such as `responses`, or which filter."""

    num_rows: int
    """Rows that came there."""

    dropped: dict[str, int] = {}
    """Rows that went no further, by reason, the most frequent first."""

    rewritten: int = 0
    """Rows that went on with another text."""

    restored: int = 0
    """Rows that went on because `filters.restore` names them."""

    dropped_tokens: dict[str, tuple[int, int]] = {}
    """Prompt and completion tokens of the dropped responses, by teacher."""

    dropped_cost: float | None = None
    """What these cost. None: nothing, or no price is known."""

    currency: str | None = None
    """Its currency, ISO 4217."""

    @property
    def num_left(self) -> int:
        """Return the rows that went on."""
        return self.num_rows - sum(self.dropped.values())
