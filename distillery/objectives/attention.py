"""Where the teacher looks beside its probabilities."""

from typing import TYPE_CHECKING, Any

from distillery.objectives.base import Batch, Loss, Objective
from schemas.student import StudentSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec

if TYPE_CHECKING:
    from distillery.models.output_layer import SplitModel


class AttentionObjective(Objective):
    """Not written yet."""

    @classmethod
    def obstacle(
        cls, training: TrainingSpec, teacher: TeacherSpec, student: StudentSpec
    ) -> str | None:
        """Return that it is not there yet."""
        return "it is not written yet."

    def loss(self, model: Any, student: "SplitModel", batch: Batch) -> Loss:
        """Return the loss."""
        raise NotImplementedError
