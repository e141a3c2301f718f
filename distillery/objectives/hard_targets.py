"""Hard targets: cross-entropy on the teacher's responses."""

from typing import TYPE_CHECKING, Any

from distillery.objectives.base import Batch, Loss, Objective

if TYPE_CHECKING:
    from distillery.models.output_layer import SplitModel


class HardTargetObjective(Objective):
    """Sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947); has no parts."""

    def loss(self, model: Any, student: "SplitModel", batch: Batch) -> Loss:
        """Return the cross-entropy of the response tokens, nats."""
        return Loss({"labels": self._response_losses(model, student, batch).loss}, {})
