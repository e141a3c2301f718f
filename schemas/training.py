"""How the student is trained."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.base import Branch, Spec, runtime_field
from schemas.objectives import HardTargets, Objective


class _Method(Branch):
    """Which weights are trained."""


class FullMethod(_Method):
    """All weights are trained."""

    kind: Literal["full"] = "full"
    """Full fine-tuning."""


class LoraMethod(_Method):
    """Low-rank adapters are trained and merged into the weights at the end (arXiv:2106.09685)."""

    kind: Literal["lora"] = "lora"
    """LoRA."""

    r: int = Field(16, ge=1)
    """Rank. 16 is enough for most single tasks; raise it when the training loss stalls."""

    alpha: int = Field(32, ge=1)
    """Scale is alpha / r; twice the rank is the usual start."""

    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input; 0 as teacher data are plentiful."""

    target_modules: str | tuple[str, ...] = "all-linear"
    """Layers that get an adapter. All linear ones: better than attention alone at equal size."""


Method = Annotated[FullMethod | LoraMethod, Field(discriminator="kind")]


class TrainingSpec(Spec):
    """Hyperparameters. The baseline of a from-scratch student is trained with the same ones."""

    objective: Objective = Field(HardTargets(), title="Objective")
    """What is learnt from. auto: the best that is possible."""

    method: Method = Field(FullMethod(), title="Method")
    """Full fine-tuning or LoRA."""

    learn_reasoning: bool = False
    """Learn the teacher's thoughts too: they are written before the response, as the student's chat
    template writes thoughts. Rows get longer (see `max_length`), and so do the student's answers
    (see `evaluation.max_new_tokens`). Refused where the template has no place for thoughts."""

    learning_rate: float = Field(1e-5, gt=0)
    """Peak learning rate. 1e-5 suits full fine-tuning of a pretrained model; take about 2e-4 for
    LoRA, and 1e-3 and more for small models from scratch."""

    batch_size: int = Field(16, ge=1)
    """Rows per optimizer step, over all devices and accumulation steps."""

    micro_batch_size: int = runtime_field(32, ge=1)
    """Most rows per forward pass; a larger `batch_size` is accumulated. Lower it when memory runs
    out."""

    epochs: float = Field(3.0, gt=0)
    """Most passes over the training rows."""

    min_steps: int = Field(0, ge=0)
    """Fewest optimizer steps: small sets are passed over more often, so that a baseline on a few
    gold rows is not undertrained. 0: `epochs` alone decides."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay of the learning rate after warm-up."""

    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""

    weight_decay: float = Field(0.01, ge=0)
    """AdamW weight decay."""

    adam_beta2: float = Field(0.999, gt=0, lt=1)
    """Decay of AdamW's second moment. 0.95 forgets faster and bears higher learning rates, which
    short runs from scratch want."""

    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""

    max_length: int = Field(1024, ge=16)
    """Longest sequence, prompt and response, tokens. Longer rows are left out, counted and named:
    cutting a response would teach the student to stop midway."""

    evaluations: int = Field(10, ge=1)
    """How often over the run the validation loss is measured and a checkpoint written."""

    patience: int | None = Field(3, ge=1)
    """Stop after so many evaluations without a better validation loss. None: never."""

    seed: int = 0
    """Seed of initial weights, order of rows and dropout."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward pass, and of weights that LoRA leaves as they are; what
    is trained stays float32. bfloat16 on GPUs that have it."""

    batching: Literal["padded", "packed"] = runtime_field("padded")
    """padded: the rows of a micro-batch are filled up to the longest. packed: they stand in one
    sequence without any filling, and none sees another; refused for models that cannot keep them
    apart. Worth it where lengths differ much."""

    num_processes: int | None = runtime_field(None, ge=1)
    """Training processes, one per GPU. None: one for each GPU that the machine has, one on a CPU.
    `batch_size` is shared among them."""

    parallelism: Literal["ddp", "fsdp2"] = runtime_field("ddp")
    """What several processes share. ddp: each has the whole model. fsdp2: weights, gradients and
    optimizer states are split between them, for models that do not fit one GPU."""

    gradient_checkpointing: bool = runtime_field(False)
    """Recompute activations in the backward pass: about a third slower, far less memory."""

    device: Literal["auto", "cpu", "cuda"] = runtime_field("auto")
    """auto: the GPU when there is one, otherwise the CPU. cuda: refused where there is none."""

    def with_hard_targets(self) -> "TrainingSpec":
        """Return the same training on hard targets.

        >>> soft = TrainingSpec(objective={"kind": "soft_targets", "k": 8})
        >>> soft.with_hard_targets() == TrainingSpec()
        True
        """
        return self.model_copy(update={"objective": HardTargets()})

    def on_gold_rows(self) -> "TrainingSpec":
        """Return the same training on gold rows, which have neither probabilities nor thoughts."""
        return self.with_hard_targets().model_copy(update={"learn_reasoning": False})

    @model_validator(mode="after")
    def _thoughts_have_no_probabilities(self) -> "TrainingSpec":
        if self.learn_reasoning and self.objective.kind not in ("hard_targets", "auto"):
            raise ValueError(
                "training.learn_reasoning is true and training.objective.kind "
                f"{self.objective.kind!r}, but a teacher's probabilities are those of its "
                "responses without thoughts, and rationales are a task of their own. Set "
                "training.objective.kind to 'hard_targets', or learn_reasoning to false."
            )
        return self
