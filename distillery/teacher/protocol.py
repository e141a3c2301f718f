"""What a teacher is asked, what it answers, and what tells one teacher from another."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from distillery.fingerprint import model_identity, sha256
from schemas.teacher import OpenAITeacher, TeacherSpec

Message = dict[str, str]
State = Literal["ok", "empty", "truncated", "failed"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a teacher samples; the fields of the same name of the teacher's spec."""

    max_new_tokens: int
    sampling_temperature: float
    top_p: float
    seed: int

    @classmethod
    def of(cls, spec: TeacherSpec) -> Self:
        """Return the sampling part of a teacher's spec; greedy decoding draws nothing."""
        if spec.sampling_temperature == 0:
            return cls(spec.max_new_tokens, 0.0, 1.0, 0)
        return cls(spec.max_new_tokens, spec.sampling_temperature, spec.top_p, spec.seed)


@dataclasses.dataclass(frozen=True)
class Request:
    """One conversation for the teacher to answer. Make one with :func:`make_request`."""

    messages: list[Message]
    """The conversation so far."""

    sampling: Sampling
    """How to sample the response."""

    request_hash: str
    """Hash of teacher, messages, sampling and sample index; the key in the ledger."""

    sample_index: int = 0
    """Which of several responses to the same messages this is."""

    prompt_id: str = ""
    """The prompt, for messages to people; no part of the hash."""


@dataclasses.dataclass(frozen=True)
class Response:
    """A response in its final state."""

    request: Request
    """What was asked."""

    state: State
    """ok; empty; truncated at max_new_tokens; failed: the teacher refuses this request for good."""

    text: str
    """The response; empty when failed."""

    finish_reason: str | None
    """Why the teacher stopped, in its own word."""

    prompt_tokens: int | None
    """Tokens read; None when the endpoint does not say."""

    completion_tokens: int | None
    """Tokens written; None when the endpoint does not say."""

    model_reported: str | None
    """The model's name according to the endpoint."""

    latency_s: float
    """Seconds from the last sending to the response; for a local model those of its batch."""

    attempts: int = 1
    """Attempts that it took."""

    error: str | None = None
    """Why it failed."""


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A request that got no response after all attempts; another run asks it again."""

    request: Request
    """What was asked."""

    error: str
    """What went wrong the last time."""


class Teacher(Protocol):
    """Who answers requests."""

    @property
    def identity(self) -> dict[str, Any]:
        """Return what tells this teacher from another; see :func:`teacher_identity`."""

    def answer(
        self, requests: Iterable[Request], on_response: Callable[[Response], None]
    ) -> list[Unfinished]:
        """Ask all requests, hand over each response as it arrives, and return what is left.

        ``on_response`` is called from one thread at a time, in no particular order. When it
        raises, nothing more is asked and its error is raised here.

        Raises:
            RecipeError: The teacher cannot be used as the recipe describes it.
            TeacherError: The teacher cannot answer anything, so going on is of no use. Responses
                handed over before are valid.
        """


def make_request(
    identity: dict[str, Any],
    messages: list[Message],
    sampling: Sampling,
    *,
    sample_index: int = 0,
    prompt_id: str = "",
) -> Request:
    """Return the request for ``messages`` to the teacher of ``identity``, with its hash."""
    request_hash = sha256({"teacher": identity, **request_body(messages, sampling, sample_index)})
    return Request(messages, sampling, request_hash, sample_index, prompt_id)


def request_body(messages: list[Message], sampling: Sampling, sample_index: int) -> dict[str, Any]:
    """Return the part of a request that is hashed beside the teacher's identity."""
    return {
        "messages": messages,
        "sampling": dataclasses.asdict(sampling),
        "response_schema": None,
        "sample_index": sample_index,
    }


def response_state(text: str, finish_reason: str | None) -> State:
    """Return the state of a response that was given.

    >>> response_state("yes", "stop"), response_state(" ", "stop"), response_state("ye", "length")
    ('ok', 'empty', 'truncated')
    """
    if finish_reason == "length":
        return "truncated"
    return "ok" if text.strip() else "empty"


def teacher_identity(spec: TeacherSpec) -> dict[str, Any]:
    """Return what tells a teacher's responses from another's, as plain JSON; loads no model.

    Weights and precision, or who serves what under which name. Never a host, port, batch size or
    device: the same model served elsewhere gives the same responses.

    Raises:
        RecipeError: A local teacher is neither a folder with a model nor a pinned hub id.
    """
    if isinstance(spec, OpenAITeacher):
        return {
            "kind": spec.kind,
            "provider": spec.provider,
            "model": spec.model,
            "weights": spec.weights,
        }
    weights = _model_identity(spec.model, spec.revision, _folder_state(spec.model))
    return {"kind": spec.kind, "weights": weights, "dtype": spec.dtype}


@functools.lru_cache(maxsize=32)
def _model_identity(model: str, revision: str | None, _state: tuple[object, ...]) -> str:
    """Return the model's identity, hashed again only when its folder has changed."""
    return model_identity(model, revision, role="teacher")


def _folder_state(model: str) -> tuple[object, ...]:
    """Return name, size and time of the files of a local folder; nothing for a hub model.

    Every chunk asks for the identity, and gigabytes of weights take a while to hash.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return ()
    stats = sorted((file.name, file.stat()) for file in folder.iterdir() if file.is_file())
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
