"""What one teacher is asked about rows, and what it says to one of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from distillery.data.chat import load_messages
from distillery.ledger import LedgerRow
from distillery.teacher import Request, ResponseSchema, Sampling, make_request, teacher_identity
from distillery.teacher.choice import Sample, choose
from distillery.teacher.prompt import TeacherPrompt, prompt_inputs
from schemas.execution import StoreSpec
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec


@dataclasses.dataclass(frozen=True)
class Said:
    """What a teacher says to a row: the one of its samples that its choice takes."""

    response: LedgerRow
    sample_index: int

    agreement: float | None
    """Share of the samples that bear it out; see `distillery/teacher/choice.py`."""

    samples: tuple[LedgerRow, ...]
    """All responses that were asked for."""

    @property
    def text(self) -> str | None:
        """Return the response where it is whole; None in any other state."""
        return self.response.text if self.response.state == "ok" else None


class Asker:
    """Makes the requests of one teacher and reads its responses."""

    def __init__(
        self,
        teacher: TeacherSpec,
        task: TaskSpec,
        prompts: DatasetRef,
        store: StoreSpec,
        *,
        with_log_probability: bool = False,
    ) -> None:
        """Describe what is asked.

        Args:
            teacher: Who is asked.
            task: What the responses have to look like.
            prompts: Where the gold rows are that the teacher is shown, if any.
            store: Where the prompts are.
            with_log_probability: Whether responses have to say how probable they are.
        """
        self.teacher, self._task = teacher, task
        self._identity, self._sampling = teacher_identity(teacher), Sampling.of(teacher)
        self._schema = ResponseSchema.of(teacher, task)
        self._prompt = TeacherPrompt(teacher, task, prompts, store)
        self._with_log_probability = with_log_probability

    def requests(self, rows: Sequence[Mapping[str, Any]]) -> list[list[Request]]:
        """Return the requests of rows with `prompt_id` and `messages`: of each one per sample."""
        laid = self._prompt.around([load_messages(row["messages"]) for row in rows])
        return [
            [
                make_request(
                    self._identity,
                    messages,
                    self._sampling,
                    response_schema=self._schema,
                    sample_index=sample_index,
                    prompt_id=row["prompt_id"],
                    with_log_probability=self._with_log_probability,
                )
                for sample_index in range(self.teacher.samples.num_samples)
            ]
            for row, messages in zip(rows, laid, strict=True)
        ]

    def said(self, requests: Sequence[Request], found: Mapping[str, LedgerRow]) -> Said | None:
        """Return what the teacher says to a row; None while a sample has no final response."""
        most = self._sampling.max_new_tokens
        samples = [found[r.request_hash] for r in requests if r.request_hash in found]
        if len(samples) < len(requests) or not all(each.is_final(most) for each in samples):
            return None
        chosen = choose(
            [Sample(each.state, each.text) for each in samples],
            self.teacher.samples.choice,
            task=self._task,
        )
        return Said(samples[chosen.index], chosen.index, chosen.agreement, tuple(samples))


def asking_inputs(teacher: TeacherSpec, task: TaskSpec) -> dict[str, Any]:
    """Return what decides a teacher's responses beside its identity and the prompts."""
    schema = ResponseSchema.of(teacher, task)
    samples = teacher.samples
    choice = {
        "choice": samples.choice,
        "task_type": task.type,
        "answer_format": task.answer_format,
    }
    return {
        "teacher": dataclasses.asdict(Sampling.of(teacher)),
        "response_schema": schema and dataclasses.asdict(schema),
        "prompt": prompt_inputs(teacher, task),
        "num_samples": samples.num_samples,
        **(choice if samples.num_samples > 1 else {}),
    }
