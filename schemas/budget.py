"""What a teacher charges, and how much may be spent on it."""

from pydantic import Field

from schemas.base import Spec, runtime_field


class PriceSpec(Spec):
    """The price table of an endpoint. It prices tokens; it changes no response."""

    prompt_per_million: float = Field(ge=0)
    """Price of a million prompt tokens, in `currency`."""

    completion_per_million: float = Field(ge=0)
    """Price of a million completion tokens, in `currency`."""

    currency: str = Field("USD", pattern=r"^[A-Z]{3}$")
    """ISO 4217 code."""

    source: str | None = None
    """Where the prices are from, such as a price list and its date; the report names it."""

    batch_discount: float = Field(0.5, ge=0, lt=1)
    """What the provider takes off for requests in batches, as a fraction: half at OpenAI and at
    Anthropic. Matters with `teacher.batch` only."""

    def in_batches(self) -> "PriceSpec":
        """Return the price of tokens that are asked for in batches.

        >>> PriceSpec(prompt_per_million=1, completion_per_million=3).in_batches().cost(1e6, 1e6)
        2.0
        """
        rest = 1 - self.batch_discount
        return self.model_copy(
            update={
                "prompt_per_million": rest * self.prompt_per_million,
                "completion_per_million": rest * self.completion_per_million,
            }
        )

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return the price of so many tokens, in `currency`.

        >>> PriceSpec(prompt_per_million=1, completion_per_million=3).cost(500_000, 1_000_000)
        3.5
        """
        prompt = prompt_tokens * self.prompt_per_million
        return (prompt + completion_tokens * self.completion_per_million) / 1e6


class MachinePrice(Spec):
    """The price of the machine on which local models answer and are trained."""

    per_hour: float = Field(ge=0)
    """Price of an hour, in `currency`."""

    currency: str = Field("USD", pattern=r"^[A-Z]{3}$")
    """ISO 4217 code."""

    source: str = Field(min_length=1)
    """Where the price is from, such as a provider's price list and its date."""


class BudgetSpec(Spec):
    """Hard caps on what one set of prompts may cost, over all runs of it.

    A run that reaches a cap stops with what it has; a higher cap goes on from there. Starting the
    same run again does not start the count again, another set of prompts does.
    """

    max_cost: float | None = runtime_field(None, gt=0)
    """Most to spend, in `teacher.price.currency`. None: no cap."""

    max_tokens: int | None = runtime_field(None, ge=1)
    """Most prompt and completion tokens together. None: no cap."""
