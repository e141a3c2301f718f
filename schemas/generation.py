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
