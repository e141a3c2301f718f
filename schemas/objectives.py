"""What a student learns from: one branch per objective, each with its own settings."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Branch

DivergenceName = Literal[
    "forward_kl", "reverse_kl", "jensen_shannon", "skew_forward_kl", "skew_reverse_kl"
]


class _Objective(Branch):
    """What a student learns from."""

    kind: str
    """Which objective."""

    def as_read(self) -> Self:
        """Return the same with settings that are not read at their defaults.

        Two objectives that teach alike become equal, and so do their fingerprints.
        """
        return self


class HardTargets(_Objective):
    """Cross-entropy on the teacher's responses: sequence-level distillation (arXiv:1606.07947)."""

    kind: Literal["hard_targets"] = "hard_targets"
    """Works with any teacher."""


class _SoftTargetSettings(_Objective):
    """How the student's probabilities are compared with the teacher's."""

    source: Literal["offline", "online"] = "offline"
    """offline: the stage `score_soft_targets` stores the teacher's most likely tokens once, and
    every training reads them. online: the teacher runs beside the student in every step, with all
    its probabilities; needs a local teacher and memory for both."""

    divergence: DivergenceName = "forward_kl"
    """What is minimised at every response token, p the teacher's and q the student's
    probabilities. forward_kl: KL(p‖q), covers all that the teacher might say. reverse_kl:
    KL(q‖p), keeps to what the teacher would say (MiniLLM, arXiv:2306.08543). jensen_shannon:
    between them (GKD, arXiv:2306.13649). skew_forward_kl, skew_reverse_kl: towards a mixture of
    both, so that gradients stay bounded (DistiLLM, arXiv:2402.03898)."""

    jsd_beta: float = Field(0.5, gt=0, lt=1)
    """β of jensen_shannon: β·KL(p‖m) + (1-β)·KL(q‖m) with m = β·p + (1-β)·q. Near 0 it acts like
    the forward KL, near 1 like the reverse one."""

    skew_alpha: float = Field(0.1, gt=0, lt=1)
    """a of the skew KLs: KL(p‖a·p + (1-a)·q), or KL(q‖(1-a)·p + a·q). 0.1 as in the paper."""

    distillation_temperature: float = Field(1.0, gt=0)
    """T: both models' logits are divided by it, and the loss is multiplied by T² so that its
    gradients keep their size (arXiv:1503.02531). 1 compares the models as they are; a served
    teacher can be compared at 1 only."""

    soft_weight: float = Field(0.5, gt=0)
    """Weight of the divergence in the loss."""

    hard_weight: float = Field(0.5, ge=0)
    """Weight of the cross-entropy on the teacher's responses in the loss. 0: soft targets only."""

    selection: Literal["top_k", "sampled"] = "top_k"
    """What is stored of the teacher's probabilities. top_k: the `k` most likely tokens, the rest of
    the mass in one tail bucket. sampled: `k` draws from them, whose loss is right on average
    however long the tail is (arXiv:2503.16870); forward KL and a local teacher only."""

    k: int = Field(64, ge=1, le=1024)
    """Tokens, or draws, that are stored per response token. 64 hold nearly all of the mass at
    T = 1. A vLLM server allows 20 unless it is started with `--max-logprobs 64`."""

    def as_read(self) -> Self:
        """Return the same with settings that are not read at their defaults.

        >>> SoftTargets(jsd_beta=0.2).as_read() == SoftTargets()
        True
        """
        unread = {"jsd_beta"} if self.divergence != "jensen_shannon" else set()
        if not self.divergence.startswith("skew"):
            unread.add("skew_alpha")
        if self.source == "online":
            unread.add("k")
        fields = type(self).model_fields
        return self.model_copy(update={name: fields[name].default for name in unread})

    @model_validator(mode="after")
    def _draws_fit_the_loss(self) -> Self:
        if self.selection == "sampled" and self.divergence != "forward_kl":
            raise ValueError(
                f"selection 'sampled' gives unbiased gradients of forward_kl only, not of "
                f"{self.divergence!r}. Set objective.divergence to forward_kl, or "
                "objective.selection to top_k."
            )
        if self.selection == "sampled" and self.source == "online":
            raise ValueError(
                "selection 'sampled' says what is stored, but source 'online' stores nothing. Set "
                "objective.source to offline, or objective.selection to top_k."
            )
        return self


class SoftTargets(_SoftTargetSettings):
    """The teacher's probabilities too: its vocabulary has to be the student's."""

    kind: Literal["soft_targets"] = "soft_targets"
    """Refused where it is not possible."""


class AutoObjective(_SoftTargetSettings):
    """Soft targets with these settings where they are possible, otherwise hard targets."""

    kind: Literal["auto"] = "auto"
    """The log and the manifest say which, and why."""

    def as_soft_targets(self) -> SoftTargets:
        """Return soft targets with the same settings."""
        return SoftTargets(**self.model_dump(exclude={"kind"}))


Objective = Annotated[HardTargets | SoftTargets | AutoObjective, Field(discriminator="kind")]
