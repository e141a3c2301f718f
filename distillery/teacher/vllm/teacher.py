"""A teacher that this process serves itself while it is asked."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future

from distillery.teacher.http.openai import EndpointTeacher
from distillery.teacher.protocol import Activity, OnResponse, Request, Response
from distillery.teacher.vllm.lease import Lease
from schemas.errors import TeacherError
from schemas.vllm_teacher import VLLMTeacher

_TOO_LONG = ("maximum context length", "max_model_len", "maximum model length")


class ServerTeacher:
    """Asks a vLLM server that is started when it is first needed; all threads share it."""

    def __init__(self, spec: VLLMTeacher) -> None:
        """Describe the teacher; nothing is started yet, so what the ledger has needs no server."""
        self._spec = spec
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self._endpoint: EndpointTeacher | None = None
        self._is_closed = threading.Event()
        self._note: str | None = None

    @property
    def activity(self) -> Activity:
        """Return what goes on at the server, or how far it has come with its start."""
        if (note := self._note) is not None:
            return Activity(note=note)
        endpoint = self._endpoint
        return endpoint.activity if endpoint else Activity()

    def answer(self, requests: Sequence[Request], on_response: OnResponse) -> None:
        """Send all requests and pass on each response, failed ones too.

        Raises:
            RecipeError: There is no vLLM where the recipe says, or the port is taken.
            TeacherError: The server does not start or has ended, with its last lines; or a prompt
                is longer than `teacher.max_model_len` allows.
        """
        if not requests:
            return
        endpoint, lease = self._open()
        try:
            endpoint.answer(requests, lambda response: self._pass_on(response, on_response))
        except TeacherError as error:
            if (ended := lease.why_it_ended()) is not None:
                raise ended from error
            raise

    def close(self) -> None:
        """Close the connections; the server ends, unless others in this process use it."""
        self._is_closed.set()
        with self._lock:
            endpoint, self._endpoint = self._endpoint, None
            lease, self._lease = self._lease, None
        if endpoint is not None:
            endpoint.close()
        if lease is not None:
            lease.release()

    def _open(self) -> tuple[EndpointTeacher, Lease]:
        with self._lock:
            if self._endpoint is None or self._lease is None:
                self._is_closed.clear()
                try:
                    self._lease = Lease(self._spec, while_waiting=self._show)
                finally:
                    self._note = None
                self._endpoint = EndpointTeacher(self._lease.endpoint)
            return self._endpoint, self._lease

    def _show(self, note: str) -> None:
        if self._is_closed.is_set():
            raise TeacherError("vLLM was ended while it started, as nobody waits for it any more.")
        self._note = note

    def _pass_on(self, response: Response, on_response: OnResponse) -> "Future[None]":
        """Pass a response on, but not a refusal that another memory setting would not give."""
        error = response.error or ""
        limit = self._spec.max_model_len
        if limit is not None and response.state == "refused" and any(t in error for t in _TOO_LONG):
            raise TeacherError(
                f"prompt {response.request.prompt_id!r} and its response do not fit into "
                f"teacher.max_model_len={limit}: {error!r}. Responses so far are kept. Raise "
                "teacher.max_model_len, or lower teacher.max_new_tokens."
            )
        return on_response(response)
