"""What a student learns from: one branch per objective, each with its own settings."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from schemas.base import Branch, RegularExpression, Spec, check_names
from schemas.teacher import TeacherSpec

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

    @property
    def soft_teachers(self) -> "tuple[SoftTeacher, ...]":
        """Return the teachers whose probabilities count beside those of the recipe's."""
        return ()


class HardTargets(_Objective):
    """Cross-entropy on the teacher's responses: sequence-level distillation (arXiv:1606.07947)."""

    kind: Literal["hard_targets"] = "hard_targets"
    """Works with any teacher."""


class _Divergence(_Objective):
    """How the student's probabilities are compared with the teacher's."""

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

    def _unread(self) -> set[str]:
        """Return the settings that do not change the loss."""
        unread = {"jsd_beta"} if self.divergence != "jensen_shannon" else set()
        return unread if self.divergence.startswith("skew") else unread | {"skew_alpha"}

    def as_read(self) -> Self:
        """Return the same with settings that are not read at their defaults.

        >>> SoftTargets(jsd_beta=0.2).as_read() == SoftTargets()
        True
        """
        fields = type(self).model_fields
        return self.model_copy(update={name: fields[name].default for name in self._unread()})


RECIPES_TEACHER = "teacher"
"""What reports call the recipe's teacher among those of a panel."""


class SoftTeacher(Spec):
    """A teacher whose probabilities count beside those of the recipe's teacher."""

    name: str = Field(min_length=1)
    """What reports call it."""

    teacher: TeacherSpec = Field(title="Teacher")
    """Who it is. It has to share the student's vocabulary."""

    weight: float = Field(1.0, gt=0)
    """Its weight in the average; the recipe's teacher has 1. Weights are divided by their sum."""

    pattern: RegularExpression | None = None
    """With `combine: route`: it scores the rows in whose last user turn this regular expression is
    found; the first teacher of the panel that matches does, and the recipe's teacher the rest."""


class _SoftTargetSettings(_Divergence):
    """Where the teacher's probabilities come from, and how much they count."""

    source: Literal["offline", "online"] = "offline"
    """offline: the stage `score_soft_targets` stores the teacher's most likely tokens once, and
    every training reads them. online: the teacher runs beside the student in every step, with all
    its probabilities; needs a local teacher and memory for both."""

    soft_weight: float = Field(0.5, gt=0)
    """Weight of the divergence in the loss."""

    hard_weight: float = Field(0.5, ge=0)
    """Weight of the cross-entropy on the teacher's responses in the loss. 0: soft targets only."""

    k: int = Field(64, ge=1, le=1024)
    """Tokens that are stored per response token; the rest of the mass is one tail bucket. 64 hold
    nearly all of the mass at T = 1. A vLLM server allows 20 unless it is started with
    `--max-logprobs 64`."""

    panel: tuple[SoftTeacher, ...] = ()
    """More teachers, whose probabilities count beside those of the recipe's teacher. All answer
    none of the prompts: they score the recipe's teacher's responses."""

    combine: Literal["average", "route"] = "average"
    """average: the student learns from the weighted average of all teachers' probabilities, which
    needs local teachers. route: each row is scored by one teacher, chosen by its `pattern`."""

    def _unread(self) -> set[str]:
        unread = super()._unread()
        # What is stored offline, scores of the stage before, says already who made it and how.
        unread |= {"k"} if self.source == "online" else {"panel", "combine"}
        return unread if self.panel else unread | {"combine"}

    @property
    def soft_teachers(self) -> tuple[SoftTeacher, ...]:
        """Return the panel."""
        return self.panel

    @model_validator(mode="after")
    def _panel_fits_the_way_it_is_combined(self) -> Self:
        names = [each.name for each in self.panel]
        check_names(names, "objective.panel", taken=RECIPES_TEACHER, by="the recipe's own")
        for each in self.panel:
            if (each.pattern is None) == (self.combine == "route"):
                has = "no pattern" if each.pattern is None else "a pattern"
                raise ValueError(
                    f"objective.panel: {each.name!r} has {has}, but combine is {self.combine!r}. "
                    "Give every teacher of the panel a pattern and set combine to route, or none "
                    "and set it to average."
                )
        return self


class SoftTargets(_SoftTargetSettings):
    """The teacher's probabilities too: its vocabulary has to be the student's."""

    kind: Literal["soft_targets"] = "soft_targets"
    """Refused where it is not possible."""


class LayerPair(Spec):
    """A layer of the student and the layer of the teacher that it learns from."""

    student: int = Field(ge=0)
    """Number of the student's layer, from 0."""

    teacher: int = Field(ge=0)
    """Number of the teacher's layer, from 0."""


class _InnerStates(_Divergence):
    """What a teacher that runs beside the student computes within, besides its probabilities.

    Needs a local teacher, one vocabulary, and memory for both models.
    """

    layers: tuple[LayerPair, ...] = ()
    """Which layer learns from which, in rising order on both sides. Empty: each of the student's
    layers from the teacher's at the same depth; of a pruned student, from the one that it was."""

    soft_weight: float = Field(0.5, ge=0)
    """Weight of the divergence from the teacher's probabilities. 0: none."""

    hard_weight: float = Field(0.5, ge=0)
    """Weight of the cross-entropy on the teacher's responses."""

    def _unread(self) -> set[str]:
        if self.soft_weight == 0:
            return {"divergence", "jsd_beta", "skew_alpha", "distillation_temperature"}
        return super()._unread()


class HiddenStates(_InnerStates):
    """The states between layers too (DistilBERT, arXiv:1910.01108; TinyBERT, arXiv:1909.10351)."""

    kind: Literal["hidden_states"] = "hidden_states"
    """Intermediate-layer matching."""

    distance: Literal["cosine", "mse"] = "cosine"
    """How states are compared at response tokens. cosine: 1 minus the cosine, whatever their size.
    mse: mean squared difference over that of the teacher's states from zero."""

    hidden_weight: float = Field(1.0, gt=0)
    """Weight of the states' distance, averaged over the pairs of layers."""

    projector: bool = False
    """Learn a linear map from the student's width to the teacher's for each pair, and throw it away
    at the end. Needed where the widths differ."""


class Attention(_InnerStates):
    """Where the teacher looks, too (MiniLM, arXiv:2002.10957; arXiv:1612.03928).

    For short rows: memory grows with the square of their length, with `averaged_heads` in every
    layer, as both models then compute attention step by step (`eager`).
    """

    kind: Literal["attention"] = "attention"
    """Attention transfer."""

    match: Literal["relations", "averaged_heads"] = "relations"
    """relations: how much each token's values resemble each other token's (MiniLM), whatever the
    number of heads. averaged_heads: attention weights, averaged over heads."""

    relation_heads: int = Field(4, ge=1)
    """Into how many parts values are divided for their relations; divides both models' width of
    values."""

    attention_weight: float = Field(1.0, gt=0)
    """Weight of the divergence of attention, averaged over pairs, parts and tokens."""

    def _unread(self) -> set[str]:
        return super()._unread() | ({"relation_heads"} if self.match == "averaged_heads" else set())


class CrossTokenizer(_Objective):
    """Sorted probabilities of a teacher with another tokenizer (ULD, arXiv:2402.12030).

    Compared where tokens of both begin at the same byte of the response.
    """

    kind: Literal["cross_tokenizer"] = "cross_tokenizer"
    """For teachers with a vocabulary of their own, local or served by vLLM."""

    soft_weight: float = Field(0.5, gt=0)
    """Weight of T times the L1 distance of sorted probabilities: between 0 and 2 at every token
    that is compared, 0 at the others."""

    hard_weight: float = Field(0.5, gt=0)
    """Weight of the cross-entropy on the teacher's responses. Never 0: sorted probabilities do not
    say which token is meant."""

    distillation_temperature: float = Field(1.0, gt=0)
    """T: both models' logits are divided by it, and the distance is multiplied by it (not by T²: it
    is no square) so that its gradients keep their size. A served teacher can be compared at 1
    only."""

    k: int = Field(64, ge=1, le=1024)
    """The teacher's most likely tokens that are stored; the rest of the mass is one bucket."""

    tokenizer: str | None = None
    """Folder or hub id of a served teacher's tokenizer, which says how its tokens divide the
    response. A local teacher's is its own."""

    tokenizer_revision: str | None = None
    """Commit hash of a tokenizer from the hub; required for one."""

    def as_read(self) -> Self:
        """Return the same without the tokenizer, which what is stored offline knows already."""
        return self.model_copy(update={"tokenizer": None, "tokenizer_revision": None})


class OnPolicy(_Divergence):
    """The student writes, the teacher scores what it wrote (GKD, arXiv:2306.13649).

    Starts from a student that has learnt hard targets with the same settings, a stage of its own.
    """

    kind: Literal["on_policy"] = "on_policy"
    """Needs one vocabulary, and a teacher beside the student or served by vLLM."""

    divergence: DivergenceName = "reverse_kl"
    """See soft targets. reverse_kl: what the student writes should be likely for the teacher."""

    student_fraction: float = Field(0.5, gt=0, le=1)
    """λ: share of the rows whose response the student writes; the others keep the teacher's."""

    sampling_temperature: float = Field(1.0, gt=0)
    """At which the student writes."""

    max_new_tokens: int = Field(128, ge=1)
    """Longest response that the student writes, tokens."""

    epochs: float = Field(1.0, gt=0)
    """Passes over the training rows, after those of `training.epochs` on hard targets."""

    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate. None: a tenth of `training.learning_rate`, as the whole of it undoes in a
    few steps what hard targets have taught (docs/objectives.md)."""

    k: int = Field(64, ge=1, le=1024)
    """A served teacher's most likely tokens that are asked for."""


class Rationales(_Objective):
    """The teacher's thoughts as a second task (Distilling step-by-step, arXiv:2305.02301).

    The student learns to answer at once and, asked for it, to explain. Nobody asks at inference.
    """

    kind: Literal["rationales"] = "rationales"
    """Needs a teacher that shows its thoughts."""

    rationale_weight: float = Field(0.5, gt=0)
    """Weight of the cross-entropy on the thoughts, averaged over their tokens, beside 1 for the
    responses."""

    instruction: str = Field("Explain the answer step by step.", min_length=1)
    """What stands after the last user turn where the thoughts are to be written."""

    min_fraction: float = Field(0.1, gt=0, le=1)
    """Share of the rows that need thoughts; a training with fewer is refused."""


class AutoObjective(_SoftTargetSettings):
    """The best objective that is possible, with as many of these settings as it has."""

    kind: Literal["auto"] = "auto"
    """The log and the manifest say which, and why."""

    tokenizer: str | None = None
    """Folder or hub id of a served teacher's tokenizer, for `cross_tokenizer`."""

    tokenizer_revision: str | None = None
    """Commit hash of a tokenizer from the hub; required for one."""

    def made(self, of: type[_Objective], **changes: Any) -> Any:
        """Return an objective of class ``of`` with the same settings, as far as it has them."""
        shared = set(type(self).model_fields) & set(of.model_fields) - {"kind"}
        return of(**self.model_dump(include=shared) | changes)


Scored = SoftTargets | CrossTokenizer
"""Objectives for which `score_soft_targets` stores the teacher's probabilities: `k` of them, and
the rest of the mass at `distillation_temperature`."""

Objective = Annotated[
    HardTargets
    | SoftTargets
    | HiddenStates
    | Attention
    | CrossTokenizer
    | OnPolicy
    | Rationales
    | AutoObjective,
    Field(discriminator="kind"),
]
