"""The loss of one batch: cross-entropy on the teacher's responses, and soft targets."""

from typing import Any

import torch

from distillery.models.output_layer import SplitModel, response_states
from distillery.objectives.losses import (
    DenseTargets,
    Losses,
    SampledTargets,
    SoftLoss,
    SparseTargets,
    response_losses,
)
from distillery.objectives.soft.targets import at_temperature
from schemas.training import TrainingSpec


class BatchLoss:
    """Computes the loss that `training.objective` names, for training and validation alike."""

    def __init__(
        self,
        training: TrainingSpec,
        student: SplitModel,
        *,
        vocab_size: int,
        teacher: tuple[Any, SplitModel] | None = None,
    ) -> None:
        """Take the split student, and for online targets the teacher and its split.

        Args:
            training: Objective and precision.
            student: The student before it is wrapped for several processes.
            vocab_size: Tokens that student and teacher share; logits of padding beyond them do not
                count on either side.
            teacher: Who runs beside the student.
        """
        is_soft = training.objective == "soft_targets"
        self.soft = SoftLoss.of(training.soft_targets) if is_soft else None
        self._student, self._teacher, self._vocab_size = student, teacher, vocab_size
        self._selection = training.soft_targets.selection
        self._dtype = getattr(torch, training.dtype)

    def __call__(self, model: Any, batch: dict[str, Any], normaliser: Any) -> Losses:
        """Return the losses of ``batch``, divided by ``normaliser`` response tokens."""
        hidden_ND = response_states(model, batch, batch["labels"])
        labels_BT = batch["labels"]
        return response_losses(
            # Several processes hand out float32 whatever precision the model computed in.
            hidden_ND.to(self._dtype),
            self._student.head,
            labels_BT[:, 1:][labels_BT[:, 1:] >= 0],
            vocab_size=self._vocab_size,
            normaliser=normaliser,
            soft=self.soft,
            targets=self._targets(batch),
        )

    def _targets(self, batch: dict[str, Any]) -> Any:
        if self.soft is None:
            return None
        if self._teacher is not None:
            model, split = self._teacher
            with torch.no_grad():
                hidden_NE = response_states(model, batch, batch["teacher_labels"], "teacher_")
            return DenseTargets(hidden_NE, split.head)
        ids_NK, log_probs_NK = batch["topk_ids"], batch["topk_log_probs"]
        if self._selection == "sampled":
            counts_NK = batch["counts"]
            weights_NK = counts_NK / counts_NK.sum(-1, keepdim=True)
            return SampledTargets(ids_NK, log_probs_NK, weights_NK)
        temperature = self.soft.temperature
        return SparseTargets(ids_NK, *at_temperature(log_probs_NK, batch["log_rest"], temperature))
