"""Which objective a training gets: what the recipe says, or the best that is possible."""

import logging
from dataclasses import dataclass

from distillery.objectives.base import Objective
from distillery.objectives.hard_targets import HardTargetObjective
from distillery.objectives.soft_targets import SoftTargetObjective
from schemas.errors import RecipeError, TrainingError
from schemas.objectives import AutoObjective, SoftTargets
from schemas.student import StudentSpec
from schemas.teacher import TeacherSpec
from schemas.training import TrainingSpec

logger = logging.getLogger("distillery.run")

OBJECTIVES: dict[str, type[Objective]] = {
    "hard_targets": HardTargetObjective,
    "soft_targets": SoftTargetObjective,
}


@dataclass(frozen=True)
class ChosenObjective:
    """A training whose objective is decided, and why."""

    training: TrainingSpec
    because: str

    @property
    def needs_scores(self) -> bool:
        """Return whether the stage `score_soft_targets` has to come first."""
        return needs_scores(self.training)


def objective_class(training: TrainingSpec) -> type[Objective]:
    """Return the class of the training's objective.

    Raises:
        TrainingError: It is not decided.
    """
    if isinstance(training.objective, AutoObjective):
        raise TrainingError(
            "training.objective.kind is 'auto', which the flow distill-student decides. Set it to "
            "hard_targets or soft_targets to train by itself."
        )
    return OBJECTIVES[training.objective.kind]


def needs_scores(training: TrainingSpec) -> bool:
    """Return whether the stage `score_soft_targets` has to come first."""
    return objective_class(training).needs_scores(training.objective)


def needs_teacher(training: TrainingSpec) -> bool:
    """Return whether the teacher runs beside the student."""
    return objective_class(training).needs_teacher(training.objective)


def reads_with_teacher(training: TrainingSpec) -> bool:
    """Return whether the teacher has to read the responses too; False while nobody has decided."""
    if isinstance(training.objective, AutoObjective):
        return False
    return needs_scores(training) or needs_teacher(training)


def choose_objective(
    teacher: TeacherSpec, student: StudentSpec, training: TrainingSpec
) -> ChosenObjective:
    """Return ``training`` with an objective in place of `auto`, and the reason.

    Nothing is spent: see ``Objective.obstacle``.

    Args:
        teacher: Whose responses, and perhaps probabilities, they are.
        student: Who learns.
        training: What the recipe asks for.

    Raises:
        RecipeError: The objective that the recipe asks for is not possible; the reason is named.
        TeacherError: The served teacher cannot be reached, so nobody knows.
    """
    wanted = training.objective
    if not isinstance(wanted, AutoObjective):
        obstacle = objective_class(training).obstacle(wanted, teacher, student)
        if obstacle is None:
            return ChosenObjective(training, f"{wanted.kind}: as the recipe says")
        way_out = " Or set training.objective.kind to hard_targets."
        raise RecipeError(
            f"training.objective.kind is {wanted.kind!r}, but {obstacle}"
            + ("" if "hard_targets" in obstacle else way_out)
        )
    soft: SoftTargets = wanted.as_soft_targets()
    if training.learn_reasoning:
        obstacle = (
            "no soft targets are made of the thoughts to be learnt (training.learn_reasoning)"
        )
    else:
        obstacle = SoftTargetObjective.obstacle(soft, teacher, student)
    if obstacle is None:
        chosen = ChosenObjective(
            training.model_copy(update={"objective": soft}),
            "soft_targets: teacher and student share a vocabulary",
        )
    else:
        chosen = ChosenObjective(training.with_hard_targets(), f"hard_targets: {obstacle}")
    logger.info("training.objective auto is %s", chosen.because)
    return chosen
