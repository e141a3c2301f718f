"""What all teachers have in common, and what all of them that are asked over HTTP have."""

from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from schemas.base import Branch, runtime_field
from schemas.budget import BudgetSpec, PriceSpec
from schemas.examples import ExamplesSpec
from schemas.samples import SamplesSpec

Dtype = Literal["float32", "bfloat16", "float16"]


class AnswersPrompts(Branch):
    """Who answers the prompts: a model, or several (`schemas/panel.py`)."""


class TeacherBase(AnswersPrompts):
    """A model that answers the prompts, and how it samples.

    What a teacher can do is asked of its spec, never of its class:

        is_served   it is asked over HTTP, and only what the API shows is known of its answers
        is_hosted   others run it: its files cannot be read and its size is only declared, its
                    tokens have a price, and what answers under its name may change
        in_batches  its provider is asked by the batch
        price, budget, declared   as the fields of a hosted teacher
        charges     the price of what is asked, by the batch or not
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

    @property
    def in_batches(self) -> bool:
        """Return whether a provider is asked by the batch."""
        return False

    @property
    def charges(self) -> PriceSpec | None:
        """Return what the tokens that are asked for cost; None where nobody charges for them."""
        return None

    @model_validator(mode="before")
    @classmethod
    def _has_batches(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("batch") and "batch" not in cls.model_fields:
            raise ValueError(
                f"batch is set, but a teacher of kind {cls.model_fields['kind'].default!r} has no "
                "provider that takes batches. Remove it, or set kind to openai."
            )
        return value

    @model_validator(mode="after")
    def _samples_differ(self) -> "TeacherBase":
        if self.samples.num_samples > 1 and self.sampling_temperature == 0:
            raise ValueError(
                f"samples.num_samples={self.samples.num_samples} at sampling_temperature=0 would "
                "pay for the same response again and again. Set sampling_temperature above 0."
            )
        return self


class OwnTeacher(TeacherBase):
    """A model whose files are here: it is measured, and nobody is paid for its tokens."""

    is_hosted: ClassVar[Literal[False]] = False

    revision: str | None = None
    """Commit hash of a hub model; required for one, as a moving revision would make the ledger
    serve another model's responses. A local folder is fingerprinted by its files."""

    dtype: Dtype = "bfloat16"
    """Precision of the weights while answering; part of the teacher's identity."""

    chat_template_kwargs: dict[str, JsonValue] = Field({}, title="Chat template kwargs")
    """Settings of the chat template, such as `{enable_thinking: false}`; part of the teacher's
    identity. Those of an endpoint go into `extra_body`."""

    trust_remote_code: bool = False
    """Run code from the model's repository. Refused without a pinned revision."""

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> "OwnTeacher":
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


class ServedTeacher(TeacherBase):
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
