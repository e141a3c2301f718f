"""Teacher drift: pinned prompts are asked anew, past the ledger, and answers compared.

A hosted model can change under its name, and the ledger would go on serving what it once said. So
on every run some prompts, the canaries, are asked again. On the first run they are pinned with two
answers each: how far those differ is what sampling and batching do without any drift.
"""

import json
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import UTC, date, datetime

import numpy as np

from distillery.data.chat import load_messages
from distillery.evaluation.statistics import Bootstrap, Scores, mean_sums, minus
from distillery.storage.fingerprint import canonical_json, sha256
from distillery.storage.store import Store
from distillery.task_types import TaskType, task_type
from distillery.teacher import (
    Response,
    ResponseSchema,
    Sampling,
    make_request,
    open_teacher,
    teacher_identity,
)
from distillery.teacher.prompt import TeacherPrompt, prompt_inputs
from distillery.teacher.protocol import NO_TEXT, kept
from schemas.drift import Canaries, Canary, Drift
from schemas.errors import TeacherError
from schemas.evaluation import EvaluationSpec
from schemas.execution import StoreSpec
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from schemas.teacher import OpenAITeacher
from schemas.units import percent_text

logger = logging.getLogger(__name__)


def watch_teacher(
    prompts: DatasetRef,
    teacher: OpenAITeacher,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
    shutdown_date: date | None = None,
) -> Drift:
    """Return how today's answers to the canaries compare with the pinned ones; pins them if new.

    The first run asks each canary twice, later ones once. Canaries are pinned in the store, by
    teacher, sampling and prompt; a changed prompt has canaries of its own. What they cost is in no
    budget, as there are few.

    Args:
        prompts: Training prompts to choose canaries from, on the first run.
        teacher: Who is asked.
        task: How answers are compared.
        evaluation: How many canaries, and the intervals.
        store: Where they are pinned.
        shutdown_date: What the endpoint has announced, for the record.

    Raises:
        TeacherError: Some canary got no answer in all attempts.
    """
    opened, asked_at = Store(store.root), datetime.now(UTC)
    folder = f"canaries/{_key(teacher, task, evaluation.canaries)}"
    raw = opened.read_json(f"{folder}/pinned.json")
    if raw is None:
        chosen = _choose(prompts, evaluation.canaries, opened)
        laid = TeacherPrompt(teacher, task, prompts, store).around(
            [load_messages(messages) for _, messages in chosen]
        )
        messages = [canonical_json(one) for one in laid]
        first, model = _ask(messages, teacher, task)
        second, reported = _ask(messages, teacher, task)
        answers = zip(chosen, messages, first, second, strict=True)
        pinned = Canaries(
            pinned_at=asked_at,
            model=model,
            canaries=tuple(
                Canary(prompt_id=prompt_id, messages=text, responses=(one, other))
                for (prompt_id, _), text, one, other in answers
            ),
        )
        opened.write_bytes(f"{folder}/pinned.json", pinned.model_dump_json(indent=1).encode())
        today = second
    else:
        pinned = Canaries.model_validate(raw)
        today, reported = _ask([one.messages for one in pinned.canaries], teacher, task)
    drift = _compare(pinned, today, task, evaluation).model_copy(
        update={
            "model": teacher.model,
            "asked_at": asked_at,
            "reported": (pinned.model, reported),
            "shutdown_date": shutdown_date,
        }
    )
    stamp = f"{asked_at:%Y-%m-%dT%H-%M-%S-%f}"
    opened.write_bytes(f"{folder}/{stamp}.json", drift.model_dump_json(indent=1).encode())
    return drift


def _key(teacher: OpenAITeacher, task: TaskSpec, num_canaries: int) -> str:
    """Return what tells the canaries of one teacher, sampling and prompt from others."""
    schema = ResponseSchema.of(teacher, task)
    return sha256(
        [
            teacher_identity(teacher),
            vars(Sampling.of(teacher)),
            schema and vars(schema),
            prompt_inputs(teacher, task),
            task.name,
            num_canaries,
        ]
    )[:32]


def _choose(prompts: DatasetRef, number: int, store: Store) -> list[tuple[str, str]]:
    """Return ids and messages of training prompts: those of the lowest content hashes."""
    rows: list[tuple[str, str, str]] = []
    for batch in store.batches(prompts, splits=("train",)):
        found = batch.select(["content_hash", "prompt_id", "messages"]).to_pylist()
        rows = sorted([*rows, *(tuple(row.values()) for row in found)])[:number]
    return [(prompt_id, messages) for _, prompt_id, messages in rows]


def _ask(
    messages: Sequence[str], teacher: OpenAITeacher, task: TaskSpec
) -> tuple[list[str | None], str]:
    """Return the answers, None where declined, and what the endpoint calls its model."""
    identity, schema = teacher_identity(teacher), ResponseSchema.of(teacher, task)
    requests = [
        make_request(
            identity,
            load_messages(text),
            Sampling.of(teacher),
            response_schema=schema,
            prompt_id=str(number),
        )
        for number, text in enumerate(messages)
    ]
    responses: dict[str, Response] = {}

    def note(response: Response) -> "Future[None]":
        responses[response.request.prompt_id] = response
        return kept()

    endpoint = open_teacher(teacher)
    try:
        endpoint.answer(requests, note)
    finally:
        endpoint.close()
    answers = [responses[request.prompt_id] for request in requests]
    if failed := [answer.error for answer in answers if answer.state == "failed"]:
        raise TeacherError(
            f"{len(failed)} of {len(answers)} canaries got no answer from {teacher.model!r}, so "
            f"whether it has changed is not known. Last error: {failed[-1]!r}. Run again when "
            "the endpoint is well."
        )
    reported = next((a.model_reported for a in answers if a.model_reported), teacher.model)
    return [None if a.state in NO_TEXT else a.text for a in answers], reported


def _compare(
    pinned: Canaries, today: Sequence[str | None], task: TaskSpec, evaluation: EvaluationSpec
) -> Drift:
    """Return today's answers beside the pinned ones."""
    kind = task_type(task)

    def likeness(responses: Sequence[str | None]) -> Scores:
        pairs = zip(pinned.canaries, responses, strict=True)
        return np.array([_likeness(canary, response, kind) for canary, response in pairs])

    now, then = likeness(today), likeness([canary.responses[1] for canary in pinned.canaries])
    rows, sums = Bootstrap(range(len(now)), evaluation), (mean_sums(now), mean_sums(then))
    return Drift(
        model="",
        asked_at=pinned.pinned_at,
        pinned_at=pinned.pinned_at,
        reported=("", ""),
        metric=kind.primary,
        same=rows.interval(sums[0]),
        expected=rows.interval(sums[1]),
        change=rows.interval(*sums, of_values=minus),
        changed=tuple(
            canary.prompt_id
            for canary, a, b in zip(pinned.canaries, now, then, strict=True)
            if a < b
        ),
    )


def _likeness(canary: Canary, response: str | None, kind: TaskType) -> float:
    """Return how near ``response`` comes to the pinned one; what is not an answer is never near."""
    first = canary.responses[0]
    if first == response:
        return 1.0
    if first is None or response is None:
        return 0.0
    asked = json.loads(canary.messages)[-1]["content"]
    return kind.score(response, [first], prompt=asked)[kind.primary] or 0.0


def drift_sentence(drift: Drift) -> str:
    """Return what the canaries say, in words."""
    num_asked = drift.same.num_rows if drift.same else 0
    name = f"teacher {drift.model!r}"
    if drift.asked_at == drift.pinned_at:
        return f"{name}: {num_asked:,} canaries pinned; later runs are held against them."
    if drift.same is None or drift.expected is None:
        return f"{name}: no canary has an answer, so whether it has changed is not known."
    figures = (
        f"{percent_text(drift.same.estimate)} {drift.metric} against the answers of "
        f"{drift.pinned_at:%Y-%m-%d}, where {percent_text(drift.expected.estimate)} is what two "
        "answers of one day reach"
    )
    then, today = drift.reported
    renamed = "" if then == today else f" The endpoint calls it {today!r}, and {then!r} then."
    if drift.has_drifted:
        return (
            f"{name} has changed: {num_asked:,} canaries reach {figures}.{renamed} The responses "
            "in the ledger are the old model's. Set teacher.weights to a new name to have them "
            "made anew."
        )
    return f"{name}: no drift seen; {num_asked:,} canaries reach {figures}.{renamed}"
