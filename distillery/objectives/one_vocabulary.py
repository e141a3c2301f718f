"""Whether teacher and student read the same tokens in a response, so that they can be compared."""

from typing import Any

from distillery.data.chat import Message
from distillery.models.chat_format import ChatFormat
from distillery.models.vocabulary import tokenizer_hash
from schemas.errors import TrainingError
from schemas.student import FromScratchStudent, StudentSpec

PROBE = [Message(role="user", content="What is six times seven?")]
ANSWER = "Forty-two."


def no_tokenizer(student: StudentSpec) -> str | None:
    """Return why a student's tokens are not yet known; None when they are."""
    if isinstance(student, FromScratchStudent) and student.tokenizer is None:
        return (
            "the student gets a new tokenizer, so its tokens are not the teacher's. Set "
            "student.tokenizer to the folder of the teacher's."
        )
    return None


def other_tokens(teacher: ChatFormat, student: ChatFormat) -> str | None:
    """Return why the tokens of a response are not the same for both; None when they are."""
    if (differs := _other_vocabulary(teacher.tokenizer, student.tokenizer)) is not None:
        return differs
    if tokenizer_hash(teacher.tokenizer) != tokenizer_hash(student.tokenizer):
        return (
            "the student's tokenizer splits text differently from the teacher's, though their "
            "vocabularies are the same. Choose models that share a tokenizer."
        )
    try:
        written = [each.row(PROBE, ANSWER).response_ids for each in (teacher, student)]
    except TrainingError as error:
        return str(error)
    if written[0] == written[1]:
        return None
    return (
        f"the student's chat template writes the response {ANSWER!r} as "
        f"{student.tokenizer.decode(written[1])!r}, the teacher's as "
        f"{teacher.tokenizer.decode(written[0])!r}, so probabilities cannot be compared token by "
        "token. Give the student the teacher's chat template."
    )


def refuse_other_tokens(prompt_id: str, ours: list[int], theirs: list[int]) -> None:
    """Raise when the teacher reads other tokens in a response than the student is to write."""
    if ours == theirs:
        return
    at = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), -1)
    raise TrainingError(
        f"row {prompt_id!r}: the student's tokenizer and chat template make {len(ours)} tokens of "
        f"the response, the teacher's {len(theirs)}"
        + (f", other ones from token {at}" if at >= 0 else "")
        + ". Soft targets cannot be compared token by token. Give the student the teacher's "
        "tokenizer and chat template, or set training.objective.kind to hard_targets."
    )


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
