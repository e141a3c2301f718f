"""The servers of this process: one per model and settings, counted, ended with the last user."""

import dataclasses
import threading
from collections.abc import Callable

from distillery.storage.fingerprint import sha256
from distillery.teacher.vllm.command import serve_command
from distillery.teacher.vllm.server import VLLMServer
from schemas.errors import TeacherError
from schemas.openai_teacher import OpenAITeacher
from schemas.teacher_base import ServedTeacher
from schemas.vllm_teacher import VLLMTeacher

# Neutral, and said in every request, whatever a server or a checkpoint takes for granted.
_NEUTRAL = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
# Of a server on this machine: it comes back within seconds, or has ended.
_MAX_OUTAGE_S = 20.0


@dataclasses.dataclass
class _Shared:
    """A server and how many use it."""

    server: VLLMServer | None = None
    num_users: int = 0
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


_shared: dict[str, _Shared] = {}
_lock = threading.Lock()


class Lease:
    """An endpoint that can be asked until it is given back."""

    def __init__(
        self,
        teacher: OpenAITeacher | VLLMTeacher,
        *,
        while_waiting: Callable[[str], None] = lambda note: None,
    ) -> None:
        """Return when the endpoint can be asked: an own server is started unless it runs.

        Args:
            teacher: Whose endpoint. Nothing is started for one that others run.
            while_waiting: As for :class:`VLLMServer`.

        Raises:
            RecipeError, TeacherError: As :class:`VLLMServer` does.
        """
        self._shared: _Shared | None = None
        if isinstance(teacher, OpenAITeacher):
            self.endpoint = teacher
            return
        key = sha256([serve_command(teacher, 0, "").start, teacher.port])
        with _lock:
            shared = _shared.setdefault(key, _Shared())
            shared.num_users += 1
        self._shared = shared
        try:
            with shared.lock:
                if shared.server is not None and shared.server.has_ended:
                    shared.server.stop()
                    shared.server = None
                if shared.server is None:
                    shared.server = VLLMServer(teacher, while_waiting=while_waiting)
                server = shared.server
        except BaseException:
            self.release()
            raise
        self.endpoint = at(teacher, server.base_url)
        """How it is asked."""

    def why_it_ended(self) -> TeacherError | None:
        """Return the error for an own server that has ended by itself; None while none has."""
        server = self._shared and self._shared.server
        return server.why_it_ended() if server and server.has_ended else None

    def release(self) -> None:
        """Give the endpoint back; an own server that nobody uses any more ends."""
        with _lock:
            shared, self._shared = self._shared, None
            if shared is None:
                return
            shared.num_users -= 1
        with shared.lock:
            if shared.num_users == 0 and shared.server is not None:
                server, shared.server = shared.server, None
                server.stop()


def at(teacher: VLLMTeacher, base_url: str) -> OpenAITeacher:
    """Return how the server of ``teacher`` is asked at ``base_url``.

    >>> teacher = VLLMTeacher(model="m", python="python", chat_template_kwargs={"think": False})
    >>> at(teacher, "http://127.0.0.1:8000/v1").extra_body["chat_template_kwargs"]
    {'think': False}
    """
    extra = {**_NEUTRAL, **teacher.extra_body}
    if teacher.chat_template_kwargs:
        extra["chat_template_kwargs"] = teacher.chat_template_kwargs
    of_every = {name: getattr(teacher, name) for name in ServedTeacher.model_fields}
    return OpenAITeacher(
        **of_every | {"extra_body": extra},
        base_url=base_url,
        provider="vllm",
        max_outage_s=_MAX_OUTAGE_S,
    )
