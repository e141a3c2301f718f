"""Whether an exported student is the student: it reads the same tokens, and writes what it would.

What is measured is what is deployed, so the runtime's own template engine and tokenizer have to
agree with those that the student learnt with.
"""

import math
from collections.abc import Sequence

from pydantic import JsonValue

from distillery.export.base import Generated, Runtime
from distillery.models.chat_format import Conversation
from distillery.models.local import LocalModel
from schemas.errors import StageError
from schemas.export import ExportFormat

_ANSWERED = 8
_MAX_NEW_TOKENS = 24
_EXACT = ("fp32", "f32")
_LARGEST_GAP_NATS = 0.05
"""Between formats of full precision and the student in float32: what the rounding of sums, and a
cache in float16, may move between two tokens that are nearly as likely."""


def check_reading(
    runtime: Runtime, student: LocalModel, prompts: Sequence[Conversation], format: ExportFormat
) -> None:
    """Return when the runtime reads every one of ``prompts`` as the student does.

    Raises:
        StageError: It does not; the first place where they differ is named.
    """
    for messages in prompts:
        read, learnt = runtime.prompt_ids(messages), student.chat_format.prompt_ids(messages)
        if read == learnt:
            continue
        pairs = enumerate(zip(read, learnt, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(read), len(learnt)))
        said = [student.tokenizer.decode(ids[place : place + 5]) for ids in (read, learnt)]
        raise StageError(
            f"{format.name!r} reads other tokens than the student learnt: {said[0]!r} for "
            f"{said[1]!r} at token {place} of {messages[-1]['content']!r:.80}, so it would answer "
            "another question. Remove it from export.formats, or name a simpler template in "
            "student.chat_template."
        )


def check_writing(
    runtime: Runtime, student: LocalModel, prompts: Sequence[Conversation], format: ExportFormat
) -> dict[str, JsonValue]:
    """Return how the runtime's answers to the first prompts differ from the student's own choice.

    The gap of a token is how much less likely it is, by the student in float32, than the token
    that the student would write there: 0 where both choose alike.

    Raises:
        StageError: A format of full precision chooses differently, or the files answer nothing.
    """
    gaps, same = [], 0
    for messages in prompts[:_ANSWERED]:
        prompt_ids = student.chat_format.prompt_ids(messages)
        limit = min(_MAX_NEW_TOKENS, runtime.facts.context_length - len(prompt_ids))
        if limit < 1:
            continue
        found = _gaps(student, prompt_ids, runtime.generate(prompt_ids, limit))
        gaps += found
        same += not any(found)
    if not gaps or not all(map(math.isfinite, gaps)):
        raise StageError(
            f"{format.name!r} has nothing to say to the first {len(prompts[:_ANSWERED])} training "
            "prompts, or no probabilities. Remove it from export.formats, and rerun: the trained "
            "student is kept."
        )
    if format.precision in _EXACT and max(gaps) > _LARGEST_GAP_NATS:
        raise StageError(
            f"{format.name!r} has the student's weights in full precision, but it writes tokens "
            f"that are {max(gaps):.2f} nats less likely than the student's own, so its builder or "
            "its runtime computes another model. Remove it from export.formats, and rerun: the "
            "trained student is kept."
        )
    return {
        "prompts_answered": len(prompts[:_ANSWERED]),
        "same_answers": same,
        "mean_gap_nats": round(sum(gaps) / len(gaps), 4),
        "largest_gap_nats": round(max(gaps), 4),
    }


def _gaps(student: LocalModel, prompt_ids: list[int], written: Generated) -> list[float]:
    import torch

    ends = sorted(student.chat_format.end_ids)
    with torch.inference_mode():
        logits_TV = student.model(torch.tensor([prompt_ids + written.ids])).logits[0].float()
    at = len(prompt_ids) - 1
    gaps = [
        float(logits_TV[at + i].max() - logits_TV[at + i, token])
        for i, token in enumerate(written.ids)
    ]
    if written.stopped:
        gaps.append(float(logits_TV[-1].max() - logits_TV[-1, ends].max()))
    return gaps
