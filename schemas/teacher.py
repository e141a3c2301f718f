"""The teacher: who answers the prompts."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from schemas.base import Branch, Spec, runtime_field
from schemas.budget import BudgetSpec, PriceSpec
from schemas.examples import ExamplesSpec
from schemas.samples import SamplesSpec

Dtype = Literal["float32", "bfloat16", "float16"]


class DeclaredModel(Spec):
    """Facts of a hosted model that cannot be measured from here; shown as declared."""

    num_parameters: int = Field(ge=1)
    """Parameters in all (a mixture of experts counts every expert)."""

    memory_gib: float = Field(gt=0)
    """Weights plus KV cache at `evaluation.context_tokens`, GiB, over all accelerators."""

    source: str = Field(min_length=1)
    """Where the figures are from, such as a model card's address."""


class AnswersPrompts(Branch):
    """Who answers the prompts: a model, or several (`schemas/panel.py`)."""


class _Teacher(AnswersPrompts):
    """A model that answers the prompts, and how it samples.

    What a teacher can do is asked of its spec, never of its class:

        is_served   it is asked over HTTP, and only what the API shows is known of its answers
        is_hosted   others run it: its files cannot be read and its size is only declared, its
                    tokens have a price, and what answers under its name may change
        price, budget, declared   as the fields of a hosted teacher
        is_panel    it is several teachers as one
    """

    is_panel: ClassVar[Literal[False]] = False

    model: str
    """Folder of a local model, hub id, or the name under which the endpoint serves it."""

    max_new_tokens: int = Field(256, ge=1)
    """Longest response, tokens. A response cut here is `truncated`; the filter of that
    name drops it, and raising this asks again for what was cut, nothing else."""

    sampling_temperature: float = Field(0.0, ge=0)
    """0: greedy, one right answer per prompt. Above 0 for open-ended tasks."""

    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of the sampled distribution; matters above temperature 0 only."""

    seed: int = 0
    """Seed of the sampling."""

    system_prompt: str | None = Field(None, min_length=1)
    """Instructions for the teacher alone, put before the system turn that `data` gives a prompt.
    auto: the task type's own. `{labels}` stands for the labels of the task: one per line where
    it has a line to itself, otherwise separated by commas. None: none."""

    examples: ExamplesSpec | None = Field(None, title="Examples")
    """Rows of `data.gold` that the teacher alone is shown before the prompt. None: none."""

    samples: SamplesSpec = Field(SamplesSpec(), title="Samples")
    """Several responses per prompt, of which one is chosen."""

    @model_validator(mode="after")
    def _samples_differ(self) -> "_Teacher":
        if self.samples.num_samples > 1 and self.sampling_temperature == 0:
            raise ValueError(
                f"samples.num_samples={self.samples.num_samples} at sampling_temperature=0 would "
                "pay for the same response again and again. Set sampling_temperature above 0."
            )
        return self


class TransformersTeacher(_Teacher):
    """A model that is loaded here with transformers."""

    is_served: ClassVar[Literal[False]] = False
    is_hosted: ClassVar[Literal[False]] = False

    kind: Literal["transformers"] = "transformers"
    """A local model."""

    revision: str | None = None
    """Commit hash of a hub model; required for one, as a moving revision would make the ledger
    serve another model's responses. A local folder is fingerprinted by its files."""

    dtype: Dtype = "bfloat16"
    """Precision of the weights while answering; part of the teacher's identity."""

    chat_template_kwargs: dict[str, JsonValue] = Field({}, title="Chat template kwargs")
    """Settings of the chat template, such as `{enable_thinking: false}`; part of the teacher's
    identity. Those of a served teacher go into `extra_body`."""

    batch_size: int = runtime_field(64, ge=1)
    """Prompts per forward pass; lower it when memory runs out."""

    device: str = runtime_field("auto")
    """auto: the GPU when there is one, otherwise the CPU."""

    trust_remote_code: bool = False
    """Run code from the model's repository. Refused without a pinned revision."""

    structured_output: Literal["off", "validate"] = "off"
    """validate: when `task.answer_format` is a JSON schema, a response that breaks it is sent
    back once to be repaired. off, for teachers that do not follow such a conversation: the filter
    `format` drops it."""

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> "TransformersTeacher":
        if self.trust_remote_code and not self.revision:
            raise ValueError(
                f"teacher {self.model!r} asks for trust_remote_code without a pinned revision. "
                "The code that runs could change under you. Set teacher.revision to a commit hash."
            )
        return self

    @property
    def price(self) -> None:
        """Return None: no token of it is paid for."""
        return None

    @property
    def budget(self) -> BudgetSpec:
        """Return a budget without caps."""
        return BudgetSpec()

    @property
    def declared(self) -> None:
        """Return None: its size is measured."""
        return None


class ServedTeacher(_Teacher):
    """A model that is asked over HTTP."""

    is_served: ClassVar[Literal[True]] = True

    structured_output: Literal["off", "validate", "json_object", "json_schema"] = "json_schema"
    """What happens when `task.answer_format` is a JSON schema. json_schema: the endpoint is asked
    to keep to it. json_object: it is asked for any JSON, as some know no more. validate: nothing
    is asked of it. All three send a response that breaks the schema back once to be repaired;
    off leaves it to the filter `format`."""

    extra_body: dict[str, JsonValue] = Field({}, title="Extra body")
    """Further fields of each request, such as a provider's switch for reasoning. Part of the
    request, so a change asks again."""

    concurrency: int = runtime_field(64, ge=1, le=4096)
    """Most requests in flight, per process. The client begins with up to 64, goes up to this, and
    halves when the endpoint objects."""

    timeout_s: float = runtime_field(120.0, gt=0)
    """Longest wait for one response, seconds; then the request is sent again."""

    max_attempts: int = runtime_field(6, ge=1)
    """Attempts at one prompt within a run, for time-outs, resets, 5xx and broken bodies; 429s do
    not count. A prompt that still fails is asked again by the next run, and left as failed by
    the third."""


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

    price: PriceSpec | None = runtime_field(None, title="Price")
    """What the tokens cost. None: cost is shown as unknown."""

    budget: BudgetSpec = runtime_field(BudgetSpec(), title="Budget")
    """Hard caps on the spending, for generation and evaluation each."""

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


TeacherSpec = Annotated[TransformersTeacher | OpenAITeacher, Field(discriminator="kind")]
