"""Which objective a training gets: what the recipe says, or the best that is possible."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distillery.objectives.attention import AttentionObjective
from distillery.objectives.base import Objective
from distillery.objectives.cross_tokenizer import CrossTokenizerObjective
from distillery.objectives.hard_targets import HardTargetObjective
from distillery.objectives.hidden_states import HiddenStatesObjective
from distillery.objectives.inner import is_made_of
from distillery.objectives.on_policy import OnPolicyObjective
from distillery.objectives.rationales import RationalesObjective
from distillery.objectives.soft_targets import SoftTargetObjective
from schemas.errors import RecipeError, TrainingError
from schemas.objectives import (
    Attention,
    AutoObjective,
    CrossTokenizer,
    HiddenStates,
    OnPolicy,
    SoftTargets,
)
from schemas.objectives import Objective as AnyObjective
from schemas.panel import AnyTeacher
from schemas.student import PrunedStudent, StudentSpec
from schemas.training import TrainingSpec

logger = logging.getLogger("distillery.run")

# As long as was measured. What attention takes grows with the square, and a training that does not
# fit is refused only when its responses are paid for.
_SHORT_ROWS = 512

OBJECTIVES: dict[str, type[Objective]] = {
    "hard_targets": HardTargetObjective,
    "soft_targets": SoftTargetObjective,
    "hidden_states": HiddenStatesObjective,
    "attention": AttentionObjective,
    "cross_tokenizer": CrossTokenizerObjective,
    "on_policy": OnPolicyObjective,
    "rationales": RationalesObjective,
}


@dataclass(frozen=True)
class ChosenObjective:
    """A training whose objective is decided, and why."""

    training: TrainingSpec
    because: str
    first: TrainingSpec | None = None
    """The training on hard targets that comes before, where the objective starts from one."""

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
    """Return whether the teacher takes part in every step: beside the student, or asked."""
    return objective_class(training).needs_teacher(training.objective)


def reads_with_teacher(training: TrainingSpec) -> bool:
    """Return whether the teacher has to read the responses too; False while nobody has decided."""
    if isinstance(training.objective, AutoObjective):
        return False
    return needs_scores(training) or needs_teacher(training)


def choose_objective(
    teacher: AnyTeacher, student: StudentSpec, training: TrainingSpec
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
        obstacle = _obstacle(training, teacher, student)
        if obstacle is None:
            return decided(training, f"{wanted.kind}: as the recipe says")
        raise RecipeError(f"training.objective.kind is {wanted.kind!r}, but {obstacle}")
    chosen = _best_possible(wanted, teacher, student, training)
    logger.info("training.objective auto is %s", chosen.because)
    return chosen


def _obstacle(training: TrainingSpec, teacher: AnyTeacher, student: StudentSpec) -> str | None:
    """Return why the training's objective is not possible, or None; see `Objective.obstacle`."""
    if not teacher.is_panel:
        return objective_class(training).obstacle(training, teacher, student)
    if not reads_with_teacher(training):
        found = (
            objective_class(training).obstacle(training, each.teacher, student)
            for each in teacher.teachers
        )
        return next((obstacle for obstacle in found if obstacle is not None), None)
    return (
        f"the teacher is a panel of {len(teacher.teachers)}, whose responses are of several "
        "models, and this needs the probabilities or layers of one. Name a single teacher, or set "
        "training.objective.kind to hard_targets."
    )


def _best_possible(
    wanted: AutoObjective, teacher: AnyTeacher, student: StudentSpec, training: TrainingSpec
) -> ChosenObjective:
    """Return the first objective that is possible, in the order of docs/objectives.md.

    On-policy learning, whose steps cost many of the others, and rationales, of thoughts that are
    not known before they are paid for, are for those who ask for them.
    """
    if training.learn_reasoning:
        return ChosenObjective(
            training.with_hard_targets(),
            "hard_targets: no teacher's probabilities are made of the thoughts to be learnt "
            "(training.learn_reasoning)",
        )
    obstacles: list[str] = []
    for objective, because in _candidates(wanted, teacher, student, training.max_length):
        tried = training.model_copy(update={"objective": objective})
        obstacle = _obstacle(tried, teacher, student)
        if obstacle is None:
            passed = "".join(f"; not {each}" for each in obstacles)
            return ChosenObjective(tried, f"{objective.kind}: {because}{passed}")
        obstacles.append(f"{objective.kind}: {obstacle}")
    return ChosenObjective(
        training.with_hard_targets(), "hard_targets: not " + " Nor ".join(obstacles)
    )


def _candidates(
    wanted: AutoObjective, teacher: AnyTeacher, student: StudentSpec, max_length: int
) -> Iterator[tuple[AnyObjective, str]]:
    """Yield the objectives to try, the best first, and what speaks for each."""
    single = None if teacher.is_panel or wanted.panel else teacher
    if isinstance(student, PrunedStudent) and is_made_of(student, single):
        made_of = "the student was pruned from the teacher, which runs beside it"
        if max_length <= _SHORT_ROWS:
            yield wanted.made(Attention), made_of
        yield wanted.made(HiddenStates), made_of
    yield wanted.made(SoftTargets), "teacher and student share a vocabulary"
    if wanted.source == "online" and not teacher.is_panel and teacher.is_served:
        stored = "teacher and student share a vocabulary, and probabilities can be stored only"
        yield wanted.made(SoftTargets, source="offline"), stored
    if wanted.panel:
        return  # whose other teachers cross_tokenizer would leave out
    changes: dict[str, Any] = {}
    if wanted.hard_weight == 0:  # sorted probabilities alone do not say which token is meant
        changes["hard_weight"] = wanted.soft_weight
    if teacher.is_panel or not teacher.is_hosted:  # the tokenizer of any other is its own
        changes |= {"tokenizer": None, "tokenizer_revision": None}
    yield wanted.made(CrossTokenizer, **changes), "the teacher shows probabilities"


def decided(training: TrainingSpec, because: str) -> ChosenObjective:
    """Return a training whose objective is not `auto`, and what comes before.

    Args:
        training: How.
        because: Why its objective was chosen.
    """
    objective = training.objective
    if not objective_class(training).follows_hard_targets(objective):
        return ChosenObjective(training, because)
    assert isinstance(objective, OnPolicy)
    after = {
        "epochs": objective.epochs,
        "min_steps": 0,
        "learning_rate": objective.learning_rate or training.learning_rate / 10,
    }
    return ChosenObjective(
        training.model_copy(update=after), because, first=training.with_hard_targets()
    )
