"""Who takes part in a comparison, how each is opened, and what it is called."""

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass

from distillery.evaluation.performance import Conversation
from distillery.models.loading import ModelFiles
from distillery.models.local import LocalModel
from distillery.storage.fingerprint import model_identity, sha256
from distillery.storage.store import Store
from distillery.teacher import Response, Sampling, make_request, open_teacher, teacher_identity
from distillery.teacher.protocol import NO_TEXT, kept
from schemas.comparison import ModelRole
from schemas.errors import TeacherError
from schemas.refs import ModelRef
from schemas.student import PretrainedStudent, StudentSpec
from schemas.teacher import OpenAITeacher, TeacherSpec


def baseline_identity(student: StudentSpec, baseline: ModelRef | None) -> str | None:
    """Return what tells the baseline's weights from others; None when there is no baseline."""
    if baseline is not None:
        return baseline.fingerprint
    if isinstance(student, PretrainedStudent):
        return model_identity(student.model, student.revision, role="student")
    return None


@dataclass(frozen=True)
class Contest:
    """The models to compare and how they are opened."""

    teacher: TeacherSpec
    student: StudentSpec
    baseline: ModelRef | None
    student_model: ModelRef

    @property
    def roles(self) -> list[ModelRole]:
        """Return who takes part, the teacher first."""
        has_baseline = baseline_identity(self.student, self.baseline) is not None
        return ["teacher", "baseline", "student"] if has_baseline else ["teacher", "student"]

    def name(self, role: ModelRole) -> str:
        """Return the name for people."""
        if role == "teacher":
            return self.teacher.model
        ref = self.student_model if role == "student" else self.baseline
        if ref is not None:
            return ref.uri
        assert isinstance(self.student, PretrainedStudent)
        return self.student.model

    def identity(self, role: ModelRole) -> str:
        """Return what tells its weights from others."""
        if role == "teacher":
            return sha256(teacher_identity(self.teacher))
        if role == "student":
            return self.student_model.fingerprint
        return str(baseline_identity(self.student, self.baseline))

    def load(self, role: ModelRole, store: Store, downloads: ExitStack) -> LocalModel:
        """Return a local model; ``downloads`` keeps a download until all is measured.

        All go to the teacher's device: figures of different devices are no comparison.
        """
        device = "auto" if isinstance(self.teacher, OpenAITeacher) else self.teacher.device
        if role == "teacher":
            assert not isinstance(self.teacher, OpenAITeacher)
            return LocalModel.of(self.teacher, device=device)
        ref = self.student_model if role == "student" else self.baseline
        if ref is None:
            assert isinstance(self.student, PretrainedStudent)
            return LocalModel.of(self.student, device=device)
        trusted = isinstance(self.student, PretrainedStudent) and self.student.trust_remote_code
        folder = downloads.enter_context(store.local_copy(ref))
        files = ModelFiles(str(folder), trust_remote_code=trusted)
        return LocalModel.load(files, dtype=self.student.dtype, device=device)


@dataclass(frozen=True)
class HostedAnswer:
    """An answer of an endpoint; None where it does not count its tokens."""

    completion_tokens: int | None


class HostedModel:
    """A teacher behind an endpoint, asked past the ledger and timed by its caller.

    Times are wall clock, connection and retries included: what a user would wait for.
    """

    def __init__(self, spec: OpenAITeacher) -> None:
        """Describe the teacher; nothing is sent yet."""
        self._teacher = open_teacher(spec)
        self._identity = self._teacher.identity

    def close(self) -> None:
        """Close the connections."""
        self._teacher.close()

    def answer(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, batch_size: int
    ) -> list[HostedAnswer | None]:
        """Return the answers in order, None where the endpoint refuses the request for good.

        Args:
            conversations: What to ask.
            max_new_tokens: Longest answer, tokens.
            batch_size: Not read: the endpoint batches by itself, `teacher.concurrency` at a time.

        Raises:
            TeacherError: Some request got no answer in all attempts, so there is nothing to time.
        """
        answers: dict[str, HostedAnswer] = {}
        failed: list[str | None] = []

        def note(response: Response) -> "Future[None]":
            if response.state == "failed":
                failed.append(response.error)
            elif response.state not in NO_TEXT:
                answer = HostedAnswer(response.completion_tokens)
                answers[response.request.prompt_id] = answer
            return kept()

        sampling = greedy(max_new_tokens)
        requests = [
            make_request(self._identity, conversation, sampling, prompt_id=str(number))
            for number, conversation in enumerate(conversations)
        ]
        self._teacher.answer(requests, note)
        if failed:
            raise TeacherError(
                f"{len(failed)} of {len(requests)} requests got no answer while the teacher's "
                f"speed was measured. Last error: {failed[-1]!r}. Answers for the scores "
                "are kept. Run again when the endpoint is well."
            )
        return [answers.get(str(number)) for number in range(len(conversations))]


def greedy(max_new_tokens: int) -> Sampling:
    """Return the sampling with which all models are compared."""
    return Sampling(max_new_tokens, sampling_temperature=0.0, top_p=1.0, seed=0)
