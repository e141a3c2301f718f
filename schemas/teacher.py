"""The teacher: who answers the prompts."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.base import Branch, Spec, runtime_field

Dtype = Literal["float32", "bfloat16", "float16"]


class DeclaredModel(Spec):
    """Facts of a hosted model that cannot be measured from here; shown as declared."""

    num_parameters: int = Field(ge=1)
    """Parameters in all (a mixture of experts counts every expert)."""

    memory_gib: float = Field(gt=0)
    """Weights plus KV cache at `evaluation.context_tokens`, GiB, over all accelerators."""

    source: str = Field(min_length=1)
    """Where the figures are from, such as a model card's address."""


class _Teacher(Branch):
    """Who answers the prompts, and how it samples."""

    model: str
    """Folder of a local model, hub id, or the name under which the endpoint serves it."""

    max_new_tokens: int = Field(256, ge=1)
    """Longest response, tokens. A response cut here is `truncated`; the filter of that
    name drops it."""

    sampling_temperature: float = Field(0.0, ge=0)
    """0: greedy, one right answer per prompt. Above 0 for open-ended tasks."""

    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of the sampled distribution; matters above temperature 0 only."""

    seed: int = 0
    """Seed of the sampling."""


class TransformersTeacher(_Teacher):
    """A model that is loaded here with transformers."""

    kind: Literal["transformers"] = "transformers"
    """A local model."""

    revision: str | None = None
    """Commit hash of a hub model; required for one, as a moving revision would make the ledger
    serve another model's responses. A local folder is fingerprinted by its files."""

    dtype: Dtype = "bfloat16"
    """Precision of the weights while answering; part of the teacher's identity."""

    batch_size: int = runtime_field(64, ge=1)
    """Prompts per forward pass; lower it when memory runs out."""

    device: str = runtime_field("auto")
    """auto: the GPU when there is one, otherwise the CPU."""

    trust_remote_code: bool = False
    """Run code from the model's repository. Refused without a pinned revision."""

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> "TransformersTeacher":
        if self.trust_remote_code and not self.revision:
            raise ValueError(
                f"teacher {self.model!r} asks for trust_remote_code without a pinned revision. "
                "The code that runs could change under you. Set teacher.revision to a commit hash."
            )
        return self


class OpenAITeacher(_Teacher):
    """A model behind an OpenAI-compatible chat endpoint (vLLM, a provider, a local server)."""

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

    concurrency: int = runtime_field(32, ge=1, le=1024)
    """Most requests in flight."""

    timeout_s: float = runtime_field(120.0, gt=0)
    """Seconds to wait for one response."""

    max_attempts: int = runtime_field(6, ge=1)
    """Attempts at one prompt within a run, for time-outs, 429 and 5xx. A prompt that still fails
    is asked again by the next run."""

    declared: DeclaredModel | None = Field(
        None, title="Declared size", json_schema_extra={"changes_result": False}
    )
    """Size of the hosted model, for the comparison table. None: shown as unknown."""


TeacherSpec = Annotated[TransformersTeacher | OpenAITeacher, Field(discriminator="kind")]
