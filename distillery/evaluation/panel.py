"""A panel of teachers as a contestant: it answers by its policy, and is timed at work.

Its latency is that of all its rounds, one after the other. Its tokens are those of all members that
a row needed, and its size is the sum of theirs.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Self

from distillery.data.chat import dump_messages
from distillery.evaluation.protocol import (
    Answered,
    Answering,
    Contestant,
    Conversation,
    Opened,
    Question,
)
from distillery.evaluation.served import ServedModel, answered
from distillery.evaluation.size import size_of, size_of_files, total_size
from distillery.ledger import LedgerRow
from distillery.storage.fingerprint import sha256
from distillery.storage.stage import Attempt
from distillery.storage.store import Store
from distillery.teacher import Request, Response, open_teacher, teacher_identity
from distillery.teacher.local import LocalTeacher, release_models
from distillery.teacher.panel.rounds import Rounds, Row, panel_inputs
from distillery.teacher.panel.session import PanelSession
from distillery.teacher.panel.shares import Shares
from distillery.teacher.protocol import kept
from distillery.teacher.session import ledger_row
from distillery.teacher.summary import progress_note
from schemas.comparison import Size
from schemas.errors import TeacherError
from schemas.evaluation import EvaluationSpec
from schemas.execution import StoreSpec
from schemas.panel import PanelTeacher
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec

_Answer = Callable[[Sequence[Request], int], list[Response]]


@dataclasses.dataclass(frozen=True)
class PanelContestant(Contestant):
    """Asked through the ledger for its answers, past it for its speed."""

    panel: PanelTeacher
    prompts: DatasetRef
    task: TaskSpec
    store: StoreSpec

    @classmethod
    def of(
        cls,
        panel: PanelTeacher,
        prompts: DatasetRef,
        task: TaskSpec,
        evaluation: EvaluationSpec,
        store: StoreSpec,
    ) -> Self:
        """Return the contestant; its members' responses end at the limit of the evaluation."""
        panel = _limited(panel, evaluation.max_new_tokens)
        identity = teacher_identity(panel)
        inputs = {"teacher": identity, **panel_inputs(panel, task)}
        if any(each.teacher.examples is not None for each in panel.teachers):
            inputs["gold_rows"] = prompts.identity("gold")
        if panel.reads_columns:
            inputs["columns"] = prompts.fingerprint
        named = (panel.model, sha256(identity))
        return cls(*named, inputs, evaluation, panel, prompts, task, store)

    @contextlib.contextmanager
    def answering(self, attempt: Attempt) -> Iterator[Answering]:
        """Open the members for the quality of the answers; who did what is a fact of the stage."""
        purpose, shares = attempt.stage.fingerprint, Shares(self.panel, self.task)
        given = (self.panel, self.task, self.prompts, self.store)
        with PanelSession(*given, purpose=purpose) as session:

            def ask(questions: Sequence[Question]) -> list[Answered]:
                rows = [_row(each.prompt_id, each.conversation, each.slices) for each in questions]
                session.settle(rows)
                self._refuse_missing(rows, session)
                for row in rows:
                    shares.note(row)
                return [self._answered(row) for row in rows]

            try:
                yield Answering(ask, lambda: progress_note(session))
            finally:
                release_models()
            attempt.counts["asked"] = session.totals.asked
            attempt.cost, attempt.currency = session.totals.cost, session.totals.currency
            attempt.facts["panel"] = shares.found(attempt.counts["rows"]).model_dump(mode="json")

    @contextlib.contextmanager
    def opened(self, store: Store) -> Iterator[Opened]:
        """Open the members for the clock, past the ledger."""
        rounds = Rounds(self.panel, self.task, self.prompts, self.store)
        everyone = self.panel.everyone
        slices = self._slices(store)
        with contextlib.ExitStack() as files:
            opened = {
                name: files.enter_context(_opened(each, self.evaluation))
                for name, each in everyone.items()
            }

            def answer(conversations: Sequence[Conversation], concurrency: int) -> list[Answered]:
                def bring(name: str, requests: Sequence[Request]) -> Mapping[str, LedgerRow]:
                    ask, identity = opened[name][0], teacher_identity(everyone[name])
                    responses = ask(requests, concurrency)
                    return {
                        r.request.request_hash: ledger_row(r, identity, None) for r in responses
                    }

                rows = [
                    _row(str(number), each, slices.get(dump_messages(each)))
                    for number, each in enumerate(conversations)
                ]
                rounds.settle(rows, bring)
                return [self._answered(row) for row in rows]

            served = [each for each in everyone.values() if each.is_served]
            yield Opened(
                answer,
                total_size([size for _, size in opened.values()]),
                max_concurrency=min((each.concurrency for each in served), default=None),
                is_served=bool(served),
            )

    def _slices(self, store: Store) -> dict[str, str]:
        """Return the columns of the test rows by what they ask, where a rule looks at them."""
        if not self.panel.reads_columns:
            return {}
        batches = store.batches(self.prompts, splits=("test",))
        rows = (row for batch in batches for row in batch.to_pylist())
        return {row["messages"]: row["slices"] for row in rows if row["slices"]}

    def _answered(self, row: Row) -> Answered:
        """Return what a row gets, with the tokens of all that it took."""
        assert row.said is not None
        samples = [sample for said in row.known.said.values() for sample in said.samples]
        answer = answered(row.said.response)
        is_long = (answer.new_tokens or 0) > self.evaluation.max_new_tokens
        return dataclasses.replace(
            answer,
            truncated=answer.truncated or is_long,
            prompt_tokens=_sum([sample.prompt_tokens for sample in samples]),
            new_tokens=_sum([sample.completion_tokens for sample in samples]),
        )

    def _refuse_missing(self, rows: Sequence[Row], session: PanelSession) -> None:
        missing = [row.stuck_at for row in rows if row.said is None]
        if missing:
            raise TeacherError(
                f"{len(missing)} of {len(rows)} test prompts have no answer from teacher "
                f"{missing[0]!r} yet. Last error: {session.totals.last_error!r}. The finished ones "
                "are kept. Run again: only the missing ones are asked."
            )


def _limited(panel: PanelTeacher, max_new_tokens: int) -> PanelTeacher:
    """Return the panel with another limit to its members' responses."""
    limit = {"max_new_tokens": max_new_tokens}
    members = tuple(
        each.model_copy(update={"teacher": each.teacher.model_copy(update=limit)})
        for each in panel.teachers
    )
    return panel.model_copy(update={"teachers": members})


def _row(prompt_id: str, conversation: Conversation, slices: str | None) -> Row:
    messages = dump_messages(conversation)
    return Row({"prompt_id": prompt_id, "messages": messages, "slices": slices})


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


@contextlib.contextmanager
def _opened(
    teacher: TeacherSpec, evaluation: EvaluationSpec
) -> Iterator[tuple[_Answer, Size | None]]:
    """Yield what asks a member past the ledger, and its size where that is known."""
    if teacher.is_served:
        with contextlib.closing(open_teacher(teacher)) as endpoint:
            size = None
            if not teacher.is_hosted:
                size = size_of_files(teacher, evaluation.context_tokens)
            yield ServedModel(endpoint).responses, size
        return
    holder = LocalTeacher(teacher)
    with contextlib.closing(holder):
        size = size_of(holder.model(), evaluation)

        def answer(requests: Sequence[Request], batch_size: int) -> list[Response]:
            responses: list[Response] = []

            def note(response: Response) -> "Future[None]":
                responses.append(response)
                return kept()

            local = LocalTeacher(teacher.model_copy(update={"batch_size": batch_size}))
            with contextlib.closing(local):
                local.answer(requests, note)
            return responses

        yield answer, size
    release_models()
