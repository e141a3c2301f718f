"""Contestants: what identifies each, how it answers the test prompts, how it is timed.

A new kind of contestant is one branch in `schemas/contestants.py` and one function here.
"""

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from distillery.evaluation.exported import Exported
from distillery.evaluation.panel import PanelContestant
from distillery.evaluation.protocol import (
    Answered,
    Answering,
    Contestant,
    Conversation,
    Opened,
    Question,
)
from distillery.evaluation.served import ServedModel, answered
from distillery.evaluation.size import size_of, size_of_files
from distillery.models.loading import ModelFiles, read_template
from distillery.models.local import LocalModel
from distillery.storage.fingerprint import model_identity, sha256
from distillery.storage.stage import Attempt
from distillery.storage.store import Store
from distillery.teacher import (
    Request,
    ResponseSchema,
    Sampling,
    make_request,
    open_teacher,
    teacher_identity,
)
from distillery.teacher.local import release_models
from distillery.teacher.prompt import TeacherPrompt, prompt_inputs
from distillery.teacher.session import AskedFor, TeacherSession
from distillery.teacher.summary import progress_note
from schemas.contestants import (
    BASELINE,
    CHAMPION,
    IN_CONTEXT,
    STUDENT,
    TEACHER,
    ContestantSpec,
    ExportedContestant,
    InContextContestant,
    PretrainedContestant,
    TeacherContestant,
    TrainedContestant,
)
from schemas.errors import TeacherError
from schemas.evaluation import EvaluationSpec
from schemas.execution import StoreSpec
from schemas.export import ExportSpec
from schemas.panel import AnyTeacher, singles
from schemas.refs import DatasetRef, Lineage, ModelRef
from schemas.student import FromScratchStudent, PretrainedStudent, StudentSpec
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec


def line_up(
    teacher: AnyTeacher,
    student: StudentSpec,
    lineage: Lineage,
    champion: ModelRef | None,
    export: ExportSpec,
    evaluation: EvaluationSpec,
) -> tuple[ContestantSpec, ...]:
    """Return the contestants of a run of the spine.

    All go to the teacher's device: figures of different devices are no comparison.

    Args:
        teacher: Who the others are compared with.
        student: How baseline and student were made.
        lineage: The student, its exported forms, and a baseline that was trained or pruned. Without
            one a pretrained student as it comes is the baseline, and a student from scratch has
            none.
        champion: The promoted student that this one would replace, if any.
        export: What the exported forms are.
        evaluation: Whether a pretrained student takes part with the teacher's prompt as well.
    """
    device = _device(teacher)
    trained = functools.partial(trained_contestant, teacher, student)

    contestants: list[ContestantSpec] = [TeacherContestant(name=TEACHER, teacher=teacher)]
    if lineage.baseline is not None:
        contestants.append(trained(BASELINE, lineage.baseline))
    elif isinstance(student, PretrainedStudent):
        contestants.append(PretrainedContestant(name=BASELINE, student=student, device=device))
    in_context = evaluation.in_context_student and not teacher.is_panel
    if in_context and isinstance(student, PretrainedStudent):
        assert not teacher.is_panel
        contestants.append(
            InContextContestant(name=IN_CONTEXT, student=student, teacher=teacher, device=device)
        )
    if champion is not None:
        contestants.append(trained(CHAMPION, champion))
    contestants.append(trained(STUDENT, lineage.student))
    return (
        *contestants,
        *(
            ExportedContestant(name=format.name, model=lineage.exported[format.name], format=format)
            for format in export.formats
        ),
    )


def trained_contestant(
    teacher: AnyTeacher, student: StudentSpec, name: str, model: ModelRef
) -> TrainedContestant:
    """Return a model that was trained as ``student``; it goes to the device of ``teacher``."""
    is_trusted = not isinstance(student, FromScratchStudent) and student.trust_remote_code
    return TrainedContestant(
        name=name, model=model, device=_device(teacher), trust_remote_code=is_trusted
    )


def _device(teacher: AnyTeacher) -> str:
    here = (each.device for each in singles(teacher) if not each.is_served)
    return next(here, "auto")


def contestant(
    spec: ContestantSpec,
    prompts: DatasetRef,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
) -> Contestant:
    """Return the contestant that ``spec`` describes; nothing is loaded or sent yet.

    ``prompts`` have the gold rows that some are shown.
    """
    match spec:
        case TeacherContestant():
            if spec.teacher.is_panel:
                return PanelContestant.of(spec.teacher, prompts, task, evaluation, store)
            return _teacher(spec.teacher, prompts, task, evaluation, store)
        case PretrainedContestant():
            return _pretrained(spec.student, spec.device, evaluation)
        case InContextContestant():
            # It reads the teacher's instructions in place of its own.
            untold = spec.student.model_copy(update={"system_prompt": None})
            plain = _pretrained(untold, spec.device, evaluation)
            return dataclasses.replace(
                plain,
                inputs=plain.inputs | read_before(spec.teacher, prompts, task),
                prompt=TeacherPrompt(spec.teacher, task, prompts, store),
            )
        case TrainedContestant():
            return _trained(spec, evaluation)
        case ExportedContestant():
            return Exported.of(spec, evaluation)


@dataclasses.dataclass(frozen=True)
class _Local(Contestant):
    """A model that is loaded here and decodes greedily."""

    load: Callable[[Store], contextlib.AbstractContextManager[LocalModel]]
    """Loads it; files that are downloaded for it stay inside."""

    prompt: TeacherPrompt | None = None
    """What stands around the messages that it reads. None: nothing."""

    @contextlib.contextmanager
    def opened(self, store: Store) -> Iterator[Opened]:
        greedy = Sampling(self.evaluation.max_new_tokens, 0.0, 1.0, 0)
        with self.load(store) as model:
            yield _timed(model, greedy, self.evaluation, self.prompt)

    @contextlib.contextmanager
    def answering(self, attempt: Attempt) -> Iterator[Answering]:
        with self.opened(attempt.store) as opened:
            yield Answering(
                lambda rows: opened.answer(
                    [row.conversation for row in rows], self.evaluation.batch_size
                )
            )


_untrained: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
"""Pretrained students that are in memory: baseline and in-context student are one model."""


def _pretrained(student: PretrainedStudent, device: str, evaluation: EvaluationSpec) -> _Local:
    identity = model_identity(student.model, student.revision, role="student")
    inputs = {
        "model": identity,
        "student": student.model_dump(include={"dtype", "chat_template_kwargs", "system_prompt"}),
        "chat_template": student.chat_template and sha256(read_template(student.chat_template)),
        "max_new_tokens": evaluation.max_new_tokens,
    }

    @contextlib.contextmanager
    def load(_: Store) -> Iterator[LocalModel]:
        key, files = sha256([identity, student.dtype, device]), ModelFiles.of(student)
        if (weights := _untrained.get(key)) is None:
            model = LocalModel.load(files, dtype=student.dtype, device=device)
            _untrained[key] = model.model
        else:
            model = LocalModel(weights, files.chat_format(), disk_bytes=files.weight_bytes())
        yield model

    return _Local(student.model, identity, inputs, evaluation, load)


def _trained(spec: TrainedContestant, evaluation: EvaluationSpec) -> _Local:
    # Training again on a GPU may give other weights under one fingerprint.
    inputs = {"attempt": spec.model.uri, "max_new_tokens": evaluation.max_new_tokens}

    load = functools.partial(trained_model, spec)
    return _Local(spec.model.uri, spec.model.fingerprint, inputs, evaluation, load)


@contextlib.contextmanager
def trained_model(spec: TrainedContestant, store: Store) -> Iterator[LocalModel]:
    """Yield a trained contestant, loaded; files that are downloaded for it stay inside."""
    with store.local_copy(spec.model) as folder:
        files = ModelFiles(str(folder), trust_remote_code=spec.trust_remote_code)
        yield LocalModel.load(files, dtype="auto", device=spec.device)


def read_before(teacher: TeacherSpec, prompts: DatasetRef, task: TaskSpec) -> dict[str, Any]:
    """Return what decides what is read before a row: the settings, and gold rows if any."""
    inputs: dict[str, Any] = {"prompt": prompt_inputs(teacher, task)}
    if teacher.examples is not None:
        inputs["gold_rows"] = prompts.identity("gold")
    return inputs


def _teacher(
    teacher: TeacherSpec,
    prompts: DatasetRef,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
) -> "_Teacher":
    identity = teacher_identity(teacher)
    schema = ResponseSchema.of(teacher, task)
    # As its section says: a model that is served may know no other sampling.
    limit = evaluation.max_new_tokens
    sampling = dataclasses.replace(Sampling.of(teacher), max_new_tokens=limit)
    inputs = {
        "teacher": identity,
        "sampling": dataclasses.asdict(sampling),
        "response_schema": schema and dataclasses.asdict(schema),
        **read_before(teacher, prompts, task),
    }
    named = (teacher.model, sha256(identity))
    prompt = TeacherPrompt(teacher, task, prompts, store)
    return _Teacher(*named, inputs, evaluation, teacher, store, prompt, sampling, schema)


@dataclasses.dataclass(frozen=True)
class _Teacher(Contestant):
    """Asked through the ledger for its answers, past it for its speed: with the same requests."""

    teacher: TeacherSpec
    store: StoreSpec
    prompt: TeacherPrompt
    sampling: Sampling
    schema: ResponseSchema | None

    def _requests(
        self, conversations: Sequence[Conversation], prompt_ids: Sequence[str]
    ) -> list[Request]:
        return [
            make_request(
                self.inputs["teacher"],
                messages,
                self.sampling,
                response_schema=self.schema,
                prompt_id=prompt_id,
            )
            for messages, prompt_id in zip(
                self.prompt.around(conversations), prompt_ids, strict=True
            )
        ]

    @contextlib.contextmanager
    def answering(self, attempt: Attempt) -> Iterator[Answering]:
        purpose = attempt.stage.fingerprint
        with TeacherSession(self.teacher, self.store, purpose=purpose) as session:
            try:
                yield Answering(
                    functools.partial(self._ask, session), lambda: progress_note(session)
                )
            finally:
                release_models()
            attempt.counts["asked"] = session.totals.asked
            attempt.cost, attempt.currency = session.totals.cost, session.totals.currency

    def _ask(self, session: TeacherSession, rows: Sequence[Question]) -> list[Answered]:
        """Return the answers, from the ledger as far as they are there."""
        requests = self._requests(
            [row.conversation for row in rows], [row.prompt_id for row in rows]
        )
        asked_for = AskedFor()
        for request in requests:
            asked_for.add([request])
        by_state = session.answer(asked_for)
        found = session.ledger.get(asked_for.requests)
        limit = self.evaluation.max_new_tokens
        if left := [h for h in asked_for.requests if not found[h].is_final(limit)]:
            raise TeacherError(
                f"{by_state.get('failed', len(left))} of {len(rows)} test prompts have no answer "
                f"from the teacher yet. Last error: {session.totals.last_error!r}. The finished "
                "ones are kept. Run again: only the missing ones are asked."
            )
        answers = [answered(found[request.request_hash]) for request in requests]
        # A response that was made under a longer limit would have been cut under this one.
        return [
            dataclasses.replace(
                answer, truncated=answer.truncated or (answer.new_tokens or 0) > limit
            )
            for answer in answers
        ]

    @contextlib.contextmanager
    def opened(self, store: Store) -> Iterator[Opened]:
        if not self.teacher.is_served:
            model = LocalModel.of(self.teacher, device=self.teacher.device)
            yield _timed(model, self.sampling, self.evaluation, self.prompt)
            return
        with contextlib.closing(open_teacher(self.teacher)) as endpoint:
            served = ServedModel(endpoint)

            def answer(conversations: Sequence[Conversation], concurrency: int) -> list[Answered]:
                prompt_ids = [*map(str, range(len(conversations)))]
                return served.answer(self._requests(conversations, prompt_ids), concurrency)

            size = None
            if not self.teacher.is_hosted:
                size = size_of_files(self.teacher, self.evaluation.context_tokens)
            most = self.teacher.concurrency
            yield Opened(answer, size, max_concurrency=most, is_served=True)


def _timed(
    model: LocalModel,
    sampling: Sampling,
    evaluation: EvaluationSpec,
    prompt: TeacherPrompt | None,
) -> Opened:
    """Return a model of this process that answers with ``sampling``."""
    how = dataclasses.asdict(sampling)

    def answer(conversations: Sequence[Conversation], batch_size: int) -> list[Answered]:
        asked = prompt.around(conversations) if prompt else conversations
        return [
            Answered(
                response=answer.text,
                truncated=answer.finish_reason == "length",
                prompt_tokens=answer.prompt_tokens,
                new_tokens=answer.completion_tokens,
                first_token_s=answer.first_token_s,
            )
            for answer in model.answer(asked, batch_size=batch_size, **how)
        ]

    return Opened(answer, size_of(model, evaluation))
