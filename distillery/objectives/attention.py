"""Where the teacher looks beside its probabilities.

Shapes: B = rows, T = tokens, Q = positions of a row that predict a response token, R = parts of the
values, W = width of the values, H = heads.
"""

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from distillery.data.chat import Message
from distillery.models.chat_format import TokenizedRow
from distillery.models.loading import ModelFiles
from distillery.objectives.base import Batch, Row
from distillery.objectives.inner import InnerObjective, text_config
from distillery.objectives.one_vocabulary import ANSWER
from schemas.errors import TrainingError
from schemas.objectives import Attention
from schemas.student import StudentSpec
from schemas.teacher import TeacherSpec, TransformersTeacher
from schemas.training import TrainingSpec
from schemas.units import bytes_text

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("distillery.run")

_LONG = 512
_MOST_BYTES_OF_A_ROW = 64 * 2**30  # beside all else, more than a GPU of today has
_ITEMSIZE = {"float32": 4, "bfloat16": 2}
_LEAST_WEIGHT = 1e-8
_MASKED = -1e9


class AttentionObjective(InnerObjective):
    """The divergence of attention, KL(teacher || student), from every response token.

    relations: each token's values are compared with those of itself and all tokens before it, in R
    parts, and the softmax of these products is what is learnt: the value relations of MiniLM
    (arXiv:2002.10957, section 3.2, with as many parts as one likes: MiniLMv2, arXiv:2012.15828).
    No attention weights are needed, so that neither model has to compute its attention otherwise.

    averaged_heads: attention weights, averaged over heads, whose numbers may differ. MiniLM's
    KL in place of squared differences (arXiv:1612.03928; TinyBERT compares scores before the
    softmax), which are next to nothing where weights are spread over hundreds of tokens.
    """

    parts: ClassVar[dict[str, str]] = {
        "hard_loss": "labels",
        "soft_loss": "labels",
        "attention_loss": "labels",
    }
    part = "attention_loss"

    @property
    def _spec(self) -> Attention:
        assert isinstance(self._settings, Attention)
        return self._settings

    @classmethod
    def attention(cls, spec: Attention) -> str | None:
        """Return `eager` where weights are compared: nothing else returns any."""
        return "eager" if spec.match == "averaged_heads" else None

    @classmethod
    def obstacle(
        cls, training: TrainingSpec, teacher: TeacherSpec, student: StudentSpec
    ) -> str | None:
        """Return why attention cannot be compared. Only configurations and tokenizers are read."""
        if training.batching == "packed":
            return (
                "rows that are packed look at each other's places. Set training.batching to padded."
            )
        if (obstacle := super().obstacle(training, teacher, student)) is not None:
            return obstacle
        assert not teacher.is_served
        return _other_prompt(teacher, student)

    @classmethod
    def layers_obstacle(
        cls, training: TrainingSpec, student: tuple[list[Any], Any], teacher: tuple[list[Any], Any]
    ) -> str | None:
        """Return that a layer has no values, or no weights, or not of a width that can be split."""
        spec = training.objective
        assert isinstance(spec, Attention)
        for whose, (layers, _) in (("student", student), ("teacher", teacher)):
            wanted = ("self_attn", "v_proj") if spec.match == "relations" else ("self_attn",)
            for layer in layers:
                if _inside(layer, wanted) is None:
                    return (
                        f"a layer of the {whose} ({type(layer).__name__}) has no "
                        f"{'.'.join(wanted)}, whose output would be compared. Choose another "
                        "model, or set training.objective.kind to hidden_states."
                    )
                if spec.match == "relations":
                    width = _inside(layer, wanted).out_features
                    if width % spec.relation_heads:
                        return (
                            f"the {whose}'s values have {width} numbers, which do not divide into "
                            f"training.objective.relation_heads={spec.relation_heads} parts. Set "
                            "it to a divisor of both models' width of values."
                        )
        return _too_long(training, spec, len(student[0]), student[1])

    def _of_row(self, row: Row, tokens: TokenizedRow) -> Row:
        columns = super()._of_row(row, tokens)
        if columns["teacher_input_ids"] != tokens.input_ids:
            raise TrainingError(
                f"row {row['prompt_id']!r}: the teacher reads {columns['teacher_length']} tokens, "
                f"the student {len(tokens.input_ids)} or other ones, so that where they look "
                "cannot be compared. Give both the same prompt and chat template, or set "
                "training.objective.kind to hidden_states."
            )
        return columns

    def watched(self, layer: Any) -> Any:
        """Return the values' projection, or the attention that returns its weights."""
        is_values = self._spec.match == "relations"
        return layer.self_attn.v_proj if is_values else layer.self_attn

    def attach(self, model: Any) -> None:
        """Find the layers, and how many numbers they give for a token."""
        super().attach(model)
        self._heads = int(text_config(model).num_attention_heads)
        if self._spec.match == "relations":
            self._width = int(self._ours[0].out_features)

    def held_bytes(
        self, training: TrainingSpec, num_rows: int, num_tokens: int, num_response: int
    ) -> int:
        """Return the bytes of what is compared, or of gradients in its place that wait for layers.

        And with checkpointing of what is noted of layers, whose other activations go.
        """
        spec, pairs = self._spec, len(self._ours)
        of_token = self._heads * num_tokens if spec.match == "averaged_heads" else self._width
        of_token *= _ITEMSIZE[training.dtype]
        noted = num_tokens * pairs * of_token
        compared = num_response * num_tokens * _look_bytes(spec, pairs)
        kept = noted if training.gradient_checkpointing else 0
        return num_rows * (kept + max(noted, compared))

    @property
    def weight(self) -> float:
        """Return the weight of the divergence of attention."""
        return self._spec.attention_weight

    def output(self, output: Any) -> "Tensor":
        """Return values [B, T, W], or attention weights [B, H, T, T]."""
        tensor: Tensor | None = output if self._spec.match == "relations" else output[1]
        if tensor is None:
            raise TrainingError(
                "a model does not return its attention weights, though it computes attention step "
                "by step. Set training.objective.match to relations."
            )
        return tensor

    def of_teacher(self, output: Any, batch: Batch) -> "Tensor":
        """Return the teacher's log-probabilities [B, R or 1, Q, T] of where it looks."""
        return self._log_probs(self.output(output), batch)

    def distance(self, ours: Sequence[Any], theirs: Sequence[Any], batch: Batch) -> "Tensor":
        """Return the divergence, summed over pairs and response tokens, averaged over parts."""
        import torch

        _, is_there_BQ = queries(batch["labels"])
        total = torch.zeros((), device=is_there_BQ.device)
        for output, log_p_BRQT in zip(ours, theirs, strict=True):
            total = total + divergence(log_p_BRQT, self._log_probs(output, batch), is_there_BQ)
        return total

    def _log_probs(self, output: "Tensor", batch: Batch) -> "Tensor":
        at_BQ, _ = queries(batch["labels"])
        if self._spec.match == "relations":
            return relations(output, at_BQ, self._spec.relation_heads)
        return averaged_heads(output, at_BQ)


def divergence(log_p_BRQT: "Tensor", log_q_BRQT: "Tensor", is_there_BQ: "Tensor") -> "Tensor":
    """Return KL(p || q), averaged over parts, summed over the response tokens that are there."""
    kl_BRQ = (log_p_BRQT.exp() * (log_p_BRQT - log_q_BRQT)).sum(-1)
    return kl_BRQ.mean(1)[is_there_BQ].sum()


def queries(labels_BT: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Return the positions [B, Q] that predict response tokens, and which of them are there.

    Q is that of the row with the most; others are filled up.

    >>> import torch
    >>> at_BQ, is_there_BQ = queries(torch.tensor([[-100, -100, 5, 6], [-100, 7, -100, -100]]))
    >>> at_BQ.tolist(), is_there_BQ.tolist()
    ([[1, 2], [0, 1]], [[True, True], [True, False]])
    """
    import torch

    predicts_BT = labels_BT[:, 1:] >= 0
    order_BT = torch.sort(predicts_BT.int(), dim=1, descending=True, stable=True).indices
    at_BQ = order_BT[:, : int(predicts_BT.sum(1).max())]
    return at_BQ, predicts_BT.gather(1, at_BQ)


def relations(values_BTW: "Tensor", at_BQ: "Tensor", num_parts: int) -> "Tensor":
    """Return log softmax(V · V / sqrt(W / R)) [B, R, Q, T] over each query's own and past tokens.

    Padding stands on the right, so no query sees any.
    """
    import torch

    exact = torch.promote_types(values_BTW.dtype, torch.float32)
    parts_BTRD = values_BTW.to(exact).unflatten(-1, (num_parts, -1))
    rows_B1 = torch.arange(len(at_BQ), device=at_BQ.device)[:, None]
    with torch.autocast(at_BQ.device.type, enabled=False):
        asked_BRQD = parts_BTRD[rows_B1, at_BQ].transpose(1, 2)
        products_BRQT = asked_BRQD @ parts_BTRD.permute(0, 2, 3, 1)
    products_BRQT /= parts_BTRD.shape[-1] ** 0.5
    is_future_BQT = torch.arange(products_BRQT.shape[-1], device=at_BQ.device) > at_BQ[..., None]
    log_probs_BRQT: Tensor = products_BRQT.masked_fill(is_future_BQT[:, None], _MASKED).log_softmax(
        -1
    )
    return log_probs_BRQT


def averaged_heads(weights_BHTT: "Tensor", at_BQ: "Tensor") -> "Tensor":
    """Return the log of attention weights [B, 1, Q, T], averaged over heads.

    Weights have a floor: where one model does not look at all, as a window hides the token, the
    other is drawn away from there without bounds otherwise.
    """
    import torch

    rows_B1 = torch.arange(len(at_BQ), device=at_BQ.device)[:, None]
    asked_BQHT = weights_BHTT.transpose(1, 2)[rows_B1, at_BQ]
    exact = torch.promote_types(weights_BHTT.dtype, torch.float32)
    averaged_B1QT: Tensor = asked_BQHT.mean(2, dtype=exact)[:, None]
    return averaged_B1QT.clamp_min(_LEAST_WEIGHT).log()


def _inside(layer: Any, names: Sequence[str]) -> Any:
    """Return the module that is found in ``layer`` by these names; None if it is not there."""
    for name in names:
        layer = getattr(layer, name, None)
    return layer


def _other_prompt(teacher: TransformersTeacher, student: StudentSpec) -> str | None:
    """Return how the teacher reads other tokens than the student; None when it does not."""
    for name in ("system_prompt", "examples"):
        if getattr(teacher, name) is not None:
            return (
                f"teacher.{name} is set, so that the teacher reads more tokens than the student "
                "and looks elsewhere. Remove it, or set training.objective.kind to hidden_states."
            )
    probe = [Message(role="user", content="What is six times seven?")]
    with_system = [Message(role="system", content="Be brief."), *probe]
    formats = [ModelFiles.of(each).chat_format() for each in (teacher, student)]
    for messages in (probe, with_system):
        try:
            ids = [each.row(messages, ANSWER).input_ids for each in formats]
        except TrainingError:
            continue  # a template that takes no system turn; rows that have one are refused
        if ids[0] != ids[1]:
            return (
                f"the teacher reads a prompt as {formats[0].tokenizer.decode(ids[0])!r}, the "
                f"student as {formats[1].tokenizer.decode(ids[1])!r}, so that where they look "
                "cannot be compared. Give both the same chat template and no prompt of their own."
            )
    return None


def _look_bytes(spec: Attention, num_pairs: int) -> int:
    """Return the bytes that one token's look at one other takes in the loss, in float32.

    Of each pair of layers both models' log-probabilities and what the loss makes of them; of the
    pair that is being compared, what comes before.
    """
    parts, kept = (spec.relation_heads, 3) if spec.match == "relations" else (1, 4)
    return 4 * parts * (kept * num_pairs + 3)


def _too_long(training: TrainingSpec, spec: Attention, num_pairs: int, config: Any) -> str | None:
    """Return that one row as long as allowed would not fit any device; log where it takes much."""
    length = min(training.max_length, getattr(config, "max_position_embeddings", math.inf))
    per_look, what = _look_bytes(spec, num_pairs), "relations of values"
    if spec.match == "averaged_heads":
        what = "attention weights"
        # Kept by each layer, and their gradients.
        per_look += 2 * num_pairs * config.num_attention_heads * _ITEMSIZE[training.dtype]
    size = per_look * length**2
    if size > _MOST_BYTES_OF_A_ROW:
        return (
            f"{what} of one row of {length} tokens, as many as training.max_length allows, take up "
            f"to {bytes_text(size)}: they grow with the square of its length. Set "
            f"training.max_length to {math.isqrt(_MOST_BYTES_OF_A_ROW // per_look)} or less."
        )
    if spec.match == "averaged_heads" and length > _LONG:
        logger.warning(
            "attention weights of a row of training.max_length=%d tokens take up to %s, as they "
            "grow with the square of its length. Set it to %d or less where rows allow.",
            length, bytes_text(size), _LONG,
        )  # fmt: skip
    return None
