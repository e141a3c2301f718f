"""A teacher behind an endpoint that others run."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from schemas.base import Spec, runtime_field
from schemas.budget import BudgetSpec, PriceSpec
from schemas.teacher_base import ServedTeacher


class DeclaredModel(Spec):
    """Facts of a hosted model that cannot be measured from here; shown as declared."""

    num_parameters: int = Field(ge=1)
    """Parameters in all (a mixture of experts counts every expert)."""

    memory_gib: float = Field(gt=0)
    """Weights plus KV cache at `evaluation.context_tokens`, GiB, over all accelerators."""

    source: str = Field(min_length=1)
    """Where the figures are from, such as a model card's address."""


class OpenAITeacher(ServedTeacher):
    """A model behind an OpenAI-compatible chat endpoint (vLLM, a provider, a local server)."""

    is_hosted: ClassVar[Literal[True]] = True

    kind: Literal["openai"] = "openai"
    """An OpenAI-compatible endpoint."""

    base_url: str = runtime_field(..., pattern=r"^https?://")
    """Address up to and including `/v1`. No part of the identity: the same model may be served
    elsewhere tomorrow."""

    provider: str = "vllm"
    """Who serves the model. Part of the identity, with `model` and `weights`."""

    weights: str | None = None
    """Revision, dtype and quantisation of what is served, as far as you know them; part of the
    identity. None: whatever the provider serves under that name."""

    api_key_env: str | None = runtime_field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """NAME of the environment variable with the key. Never the key itself."""

    api_key_secret: str | None = runtime_field(None, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    """NAME of the Prefect secret block with the key, in place of `api_key_env`."""

    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = runtime_field("max_tokens")
    """What the endpoint calls `max_new_tokens`. OpenAI's reasoning models know only the second."""

    requests_per_minute: float | None = runtime_field(None, gt=0)
    """The endpoint's limit, kept by each process. None: learnt from its 429s."""

    tokens_per_minute: float | None = runtime_field(None, gt=0)
    """The endpoint's limit on prompt and completion tokens. None: learnt from its 429s."""

    max_outage_s: float = runtime_field(120.0, gt=0)
    """How long the run waits for an endpoint that has gone away, seconds. One that was never
    there ends the run at once."""

    batch: bool = runtime_field(False)
    """Ask through the provider's batches: cheaper (`price.batch_discount`), answered within 24
    hours. Anthropic's where `provider` is anthropic, otherwise those that OpenAI has. What is
    timed is asked without."""

    price: PriceSpec | None = runtime_field(None, title="Price")
    """What the tokens cost. None: cost is shown as unknown."""

    budget: BudgetSpec = runtime_field(BudgetSpec(), title="Budget")
    """Hard caps on the spending, for generation and evaluation each."""

    @property
    def is_anthropic(self) -> bool:
        """Return whether the provider's own interface, such as that to batches, is Anthropic's."""
        return self.provider.lower() == "anthropic"

    @property
    def in_batches(self) -> bool:
        """Return whether the provider is asked by the batch."""
        return self.batch

    @property
    def charges(self) -> PriceSpec | None:
        """Return what the tokens that are asked for cost: less by the batch."""
        return self.price.in_batches() if self.price and self.batch else self.price

    @model_validator(mode="after")
    def _batches_know_the_schema(self) -> "OpenAITeacher":
        if self.batch and self.is_anthropic and self.structured_output == "json_object":
            raise ValueError(
                "structured_output is json_object, which Anthropic's batches do not know. Set it "
                "to json_schema or validate."
            )
        return self

    @model_validator(mode="after")
    def _key_has_one_place(self) -> "OpenAITeacher":
        # Neither value is repeated: it may be the key itself, pasted in place of its name.
        if self.api_key_env is not None and self.api_key_secret is not None:
            raise ValueError(
                "api_key_env and api_key_secret both say where the key is, so it is not clear "
                "which one counts. Remove one."
            )
        if self.api_key_secret is not None and self.api_key_secret.startswith("sk-"):
            raise ValueError(
                "api_key_secret begins with 'sk-', as a key does; recipes end up in logs and the "
                "UI. Put the NAME of a Prefect secret block there, and replace that key."
            )
        return self

    @model_validator(mode="after")
    def _capped_cost_has_a_price(self) -> "OpenAITeacher":
        if self.budget.max_cost is not None and self.price is None:
            raise ValueError(
                f"budget.max_cost={self.budget.max_cost:g} cannot be kept without a price. Set "
                "teacher.price."
            )
        return self

    declared: DeclaredModel | None = Field(
        None, title="Declared size", json_schema_extra={"changes_result": False}
    )
    """Size of the hosted model, for the comparison table. None: shown as unknown."""
