"""The student: the model that learns."""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from schemas.base import Branch, runtime_field
from schemas.teacher import Dtype


class _Student(Branch):
    """The model that learns."""

    system_prompt: str | None = Field(None, min_length=1)
    """Instructions for the student, put before the system turn that `data` gives a prompt. They are
    written into the chat template that is saved with the student, so that it reads them wherever it
    is served. None: none; a trained student needs few, and each token costs time."""

    chat_template: str | None = runtime_field(None)
    """Chat template in place of the tokenizer's own, or where it has none (base models): a Jinja
    file, or the name of a built-in one. `plain` goes with every tokenizer, `chatml` with those that
    have its tokens. It is saved with the student. Fingerprints hold the template, not its name."""

    chat_template_kwargs: dict[str, JsonValue] = Field({}, title="Chat template kwargs")
    """Settings of the chat template, such as `{enable_thinking: false}`. Training, scoring and
    evaluation use them, and they are written into the template that is saved with the student.
    `strftime_now: "2026-01-31"` sets the date that a template which reads the clock writes."""


class _LoadedStudent(_Student):
    """A student whose weights come from a model that exists."""

    model: str
    """Folder or hub id."""

    revision: str | None = None
    """Commit hash of a hub model; required for one. A folder is fingerprinted by its files."""

    dtype: Dtype = "bfloat16"
    """Precision of the weights."""

    trust_remote_code: bool = False
    """Run code from the model's repository. Refused without a pinned revision."""

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> Self:
        if self.trust_remote_code and not self.revision:
            raise ValueError(
                f"student {self.model!r} asks for trust_remote_code without a pinned revision. "
                "The code that runs could change under you. Set student.revision to a commit hash."
            )
        return self


class PretrainedStudent(_LoadedStudent):
    """A pretrained causal language model. Its baseline is the model as it comes."""

    kind: Literal["pretrained"] = "pretrained"
    """A pretrained model."""


class PrunedStudent(_LoadedStudent):
    """A model with fewer layers or narrower ones, made from a larger one, usually the teacher.

    It has that one's vocabulary, so that every objective is possible; its baseline is the pruned
    model as it is. Minitron: arXiv:2407.14679.
    """

    kind: Literal["pruned"] = "pruned"
    """Made from a larger model: `model` is the one that is pruned."""

    num_layers: int | None = Field(None, ge=1)
    """Layers that are kept, spread evenly, the first and the last among them. None: all, or those
    of `layers`."""

    layers: tuple[int, ...] = ()
    """Numbers of the layers that are kept, from 0 and in rising order, in place of `num_layers`."""

    intermediate_size: int | None = Field(None, ge=8)
    """Width inside the feed-forward blocks; the neurons with the largest activations on training
    rows are kept. None: as it is."""

    calibration_rows: int = Field(256, ge=1)
    """Training rows on which activations are measured; read with `intermediate_size` only."""

    @model_validator(mode="after")
    def _is_smaller(self) -> Self:
        if self.num_layers is not None and self.layers:
            raise ValueError(
                f"student.num_layers={self.num_layers} and student.layers={list(self.layers)} both "
                "say which layers are kept. Remove one of them."
            )
        if list(self.layers) != sorted(set(self.layers)) or any(n < 0 for n in self.layers):
            raise ValueError(
                f"student.layers={list(self.layers)} is not in rising order from 0, without "
                "repetition: the kept layers stay in the order of the model. Sort them."
            )
        if self.num_layers is None and not self.layers and self.intermediate_size is None:
            raise ValueError(
                "student.kind is 'pruned', but nothing is pruned. Set student.num_layers, "
                "student.layers or student.intermediate_size."
            )
        return self


class FromScratchStudent(_Student):
    """A Llama with random weights. Its baseline is the same, trained on the gold rows."""

    kind: Literal["from_scratch"] = "from_scratch"
    """A new model."""

    num_layers: int = Field(ge=1)
    """Decoder layers; latency grows with them."""

    hidden_size: int = Field(ge=8)
    """Width."""

    intermediate_size: int = Field(ge=8)
    """Width inside the feed-forward block; 2 to 4 times hidden_size is usual."""

    num_heads: int = Field(ge=1)
    """Attention heads; divides hidden_size."""

    dtype: Dtype = "float32"
    """Precision in which the trained weights are kept; training itself holds float32."""

    initializer_std: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights. 0.02 is usual at widths of a thousand; narrow
    models start better wider, at about 1 / sqrt(hidden_size). Layers that write to the residual
    stream start smaller by sqrt(2 * num_layers), as in GPT-2."""

    tie_embeddings: bool = True
    """Share the weights of input embedding and output layer: fewer parameters, which matters
    where the vocabulary is most of the model."""

    max_length: int = Field(512, ge=16)
    """Longest sequence, prompt and response, tokens."""

    tokenizer: str | None = None
    """Folder of a tokenizer to use, for instance the teacher's (soft targets need a shared one).
    None: a byte-level BPE is trained on the training and gold prompts and the responses."""

    vocab_size: int = Field(1024, ge=300)
    """Size of the trained BPE; not read when `tokenizer` is given. 1,024 suits narrow domains."""

    whole_tokens: tuple[str, ...] = ()
    """Strings that the trained BPE keeps as one token each, such as the skeleton of a JSON answer:
    each field then follows a token of its own, which one layer can tell apart."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "FromScratchStudent":
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size} over num_heads={self.num_heads} is not an even "
                "whole number, which rotary embeddings need. Change one of them."
            )
        return self

    @model_validator(mode="after")
    def _template_is_the_tokenizers(self) -> "FromScratchStudent":
        if self.tokenizer is None and (self.chat_template or self.chat_template_kwargs):
            raise ValueError(
                "student.chat_template and chat_template_kwargs are for a tokenizer that exists, "
                "but a new one is trained, with a template of its own. Leave them out, or set "
                "student.tokenizer."
            )
        return self


StudentSpec = Annotated[
    PretrainedStudent | PrunedStudent | FromScratchStudent, Field(discriminator="kind")
]
