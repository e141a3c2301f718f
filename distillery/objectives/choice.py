"""Which objective a training gets: what the recipe says, or the best that is possible."""

import logging
from typing import Any, NamedTuple

from distillery.data.chat import Message
from distillery.models.chat_format import ChatFormat
from distillery.models.loading import ModelFiles
from distillery.models.vocabulary import tokenizer_hash
from schemas.errors import RecipeError
from schemas.student import FromScratchStudent, StudentSpec
from schemas.teacher import OpenAITeacher, TeacherSpec
from schemas.training import TrainingSpec

logger = logging.getLogger("distillery.run")

_PROBE = [Message(role="user", content="What is six times seven?")]
_ANSWER = "Forty-two."


class ChosenObjective(NamedTuple):
    """A training whose objective is decided, and why."""

    training: TrainingSpec
    because: str


def choose_objective(
    teacher: TeacherSpec, student: StudentSpec, training: TrainingSpec
) -> ChosenObjective:
    """Return ``training`` with `hard_targets` or `soft_targets` in place of `auto`, and the reason.

    Nothing is loaded but tokenizers, and a served teacher is asked for the probabilities of a few
    tokens.

    Args:
        teacher: Whose probabilities they would be.
        student: Who learns.
        training: What the recipe asks for.

    Raises:
        RecipeError: Soft targets are asked for and not possible; the reason is named.
        TeacherError: The served teacher cannot be reached, so nobody knows.
    """
    if training.objective == "hard_targets":
        return ChosenObjective(training, "hard_targets: as the recipe says")
    obstacle = _obstacle(teacher, student, training)
    if training.objective == "soft_targets":
        if obstacle is None:
            return ChosenObjective(training, "soft_targets: as the recipe says")
        way_out = " Or set training.objective to hard_targets."
        raise RecipeError(
            f"training.objective is 'soft_targets', but {obstacle}"
            + ("" if "hard_targets" in obstacle else way_out)
        )
    if obstacle is None:
        soft = training.model_copy(update={"objective": "soft_targets"})
        chosen = ChosenObjective(soft, "soft_targets: teacher and student share a vocabulary")
    else:
        chosen = ChosenObjective(training.with_hard_targets(), f"hard_targets: {obstacle}")
    logger.info("training.objective auto is %s", chosen.because)
    return chosen


def _obstacle(teacher: TeacherSpec, student: StudentSpec, training: TrainingSpec) -> str | None:
    """Return why there can be no soft targets, and what would help; None when there can."""
    spec = training.soft_targets
    if isinstance(student, FromScratchStudent) and student.tokenizer is None:
        return (
            "the student gets a new tokenizer, so its tokens are not the teacher's. Set "
            "student.tokenizer to the folder of the teacher's."
        )
    ours = ModelFiles.of(student).chat_format()
    if spec.k > (num_tokens := len(ours.tokenizer.get_vocab())):
        raise RecipeError(
            f"training.soft_targets.k={spec.k} is more than the {num_tokens} tokens of the "
            "student's vocabulary. Lower it."
        )
    if not isinstance(teacher, OpenAITeacher):
        theirs = ModelFiles.of(teacher).chat_format()
        return _other_vocabulary(theirs.tokenizer, ours.tokenizer) or _other_tokens(theirs, ours)
    if spec.source == "online":
        return (
            "soft_targets.source 'online' runs the teacher beside the student, and an endpoint "
            "cannot be. Set it to offline, or teacher.kind to transformers."
        )
    from distillery.objectives.soft.served import check_served

    try:
        check_served(teacher, spec)
    except RecipeError as error:
        return str(error)
    return None


def _other_vocabulary(teacher: Any, student: Any) -> str | None:
    """Return how two tokenizers differ; None when every token has the same number in both."""
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    if theirs == ours:
        return None
    odd = sorted(set(theirs.items()) ^ set(ours.items()), key=lambda item: (item[1], item[0]))
    return (
        f"the student's vocabulary ({len(ours)} tokens) differs from the teacher's "
        f"({len(theirs)}), first at {odd[0][0]!r} ({odd[0][1]}), so probabilities cannot be "
        "compared token by token. Choose models that share a tokenizer."
    )


def _other_tokens(teacher: ChatFormat, student: ChatFormat) -> str | None:
    """Return how two formats of one vocabulary write a response otherwise; None when alike."""
    if tokenizer_hash(teacher.tokenizer) != tokenizer_hash(student.tokenizer):
        return (
            "the student's tokenizer splits text in another way than the teacher's, though their "
            "vocabularies are the same. Choose models that share a tokenizer."
        )
    written = [each.row(_PROBE, _ANSWER).response_ids for each in (teacher, student)]
    if written[0] == written[1]:
        return None
    return (
        f"the student's chat template writes the response {_ANSWER!r} as "
        f"{student.tokenizer.decode(written[1])!r}, the teacher's as "
        f"{teacher.tokenizer.decode(written[0])!r}, so "
        "probabilities cannot be compared token by token. Give the student the teacher's chat "
        "template."
    )
