"""A vLLM server: started, waited for, and ended whatever becomes of this process."""

import contextlib
import http.client
import json
import logging
import os
import random
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable

from distillery.storage.scratch import scratch_folder
from distillery.teacher.vllm import supervisor
from distillery.teacher.vllm.command import HOST, check_vllm, environment, serve_command
from schemas.errors import RecipeError, TeacherError
from schemas.vllm_teacher import VLLMTeacher

logger = logging.getLogger(__name__)

_POLL_S = 0.25
_PORTS = (20_000, 32_768)  # below those that Linux gives to connections
# vLLM leaves names in /dev/shm behind when it is killed, but does not hear SIGTERM while it loads.
_GRACE_S = 10.0
_ANSWERS_WITHIN_S = 2.0
_LAST_LINES, _TAIL_BYTES, _LINE_CHARS = 12, 2**16, 240
# "(EngineCore pid=7) INFO 11-27 07:56:45 [model.py:733] Resolved ..."; and colours of terminals.
_PREFIX = re.compile(r"^(\([^)]*\)\s*)?([A-Z]+ [\d-]+ [\d:]+ \[[^\]]*\]\s*)?")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(r"^(\w+\.)*\w*(Error|Exception): .")
_ERROR_CHARS = 1000


class VLLMServer:
    """One `vllm serve` on this machine, for this process alone.

    A supervisor (`supervisor.py`) runs it, and ends it when this process closes a pipe, or dies.
    """

    def __init__(
        self, teacher: VLLMTeacher, *, while_waiting: Callable[[str], None] = lambda note: None
    ) -> None:
        """Start the server and return when it can be asked.

        Args:
            teacher: What it serves.
            while_waiting: Called several times a second with what it is doing; what this raises
                ends the server.

        Raises:
            RecipeError: There is no vLLM where the recipe says, or the port is taken.
            TeacherError: It ended, with its last lines; or cannot be asked in
                `teacher.start_timeout_s`.
        """
        check_vllm(teacher)
        self._teacher = teacher
        self.port = free_port(teacher)
        name = f"distillery-{uuid.uuid4()}"
        command = serve_command(teacher, self.port, name)
        self._files = contextlib.ExitStack()
        self._log = self._files.enter_context(scratch_folder("vllm")) / "log"
        self._started_s = time.monotonic()
        with self._log.open("wb") as log:
            self._supervisor = subprocess.Popen(
                [
                    *(sys.executable, supervisor.__file__, str(os.getpid()), str(_GRACE_S)),
                    *(json.dumps(command.afterwards), *command.start),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment(),
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
        try:
            self._wait(while_waiting)
        except BaseException:
            self.stop()
            raise
        logger.info(
            "vLLM serves %r at port %d, %.0f s after its start",
            teacher.model, self.port, time.monotonic() - self._started_s,
        )  # fmt: skip

    @property
    def base_url(self) -> str:
        """Return its address up to `/v1`."""
        return f"http://{HOST}:{self.port}/v1"

    @property
    def has_ended(self) -> bool:
        """Return whether it ended by itself."""
        return self._supervisor.poll() is not None

    def why_it_ended(self) -> TeacherError:
        """Return the error for a server that ended by itself, with its last lines."""
        return TeacherError(
            f"vLLM ended while it served teacher {self._teacher.model!r}, with exit status "
            f"{self._supervisor.returncode}. Responses so far are kept. {self._last_words()}\n"
            "Correct what they say, and run again: only the missing ones are asked."
        )

    def stop(self) -> None:
        """Return when the server is gone, with all its processes and what they held of a GPU."""
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.close()
        self._supervisor.wait()
        self._files.close()

    def _wait(self, while_waiting: Callable[[str], None]) -> None:
        teacher = self._teacher
        while not self._can_be_asked():
            waited_s = time.monotonic() - self._started_s
            if self.has_ended:
                raise TeacherError(
                    f"vLLM ended before it could serve teacher {teacher.model!r}, with exit "
                    f"status {self._supervisor.returncode}. {self._last_words()}\n"
                    "Correct what they say."
                )
            if waited_s > teacher.start_timeout_s:
                raise TeacherError(
                    f"vLLM cannot be asked {waited_s:,.0f} s after its start "
                    f"(teacher.start_timeout_s={teacher.start_timeout_s:g}). Its last lines:\n"
                    f"{self._last_lines()}\nRaise teacher.start_timeout_s if it was still loading."
                )
            line = self._last_lines(1)
            while_waiting(f"vLLM starts, {waited_s:,.0f} s" + (f": {line[:60]}" if line else ""))
            time.sleep(_POLL_S)

    def _can_be_asked(self) -> bool:
        """Return whether the server is healthy, and no stranger's: it knows the model's name."""
        if self.has_ended or _get(self.port, "/health") is None:
            return False
        try:
            listed = json.loads(_get(self.port, "/v1/models") or b"{}").get("data", [])
            return any(model.get("id") == self._teacher.model for model in listed)
        except (ValueError, AttributeError):
            return False

    def _last_words(self) -> str:
        """Return its last lines, and its first error, which those of several processes hide."""
        error = next(filter(_ERROR.match, self._lines()), None)
        first = f"Its first error: {error[:_ERROR_CHARS]}\n" if error else ""
        return f"{first}Its last lines:\n{self._last_lines()}"

    def _last_lines(self, most: int = _LAST_LINES) -> str:
        return "\n".join(line[:_LINE_CHARS] for line in self._lines()[-most:])

    def _lines(self) -> list[str]:
        """Return the end of what it has written, without times, colours and empty lines."""
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _TAIL_BYTES))
            text = log.read().decode("utf-8", "replace")
        lines = [_PREFIX.sub("", _COLOURS.sub("", line)).strip() for line in text.splitlines()]
        return [line for line in lines if line]


def free_port(teacher: VLLMTeacher) -> int:
    """Return the port that the recipe names, or one that nobody listens at.

    The system's own choice would be among those that it gives to any connection, so it could be
    taken before the server has loaded so much as its libraries.

    Raises:
        RecipeError: The one that the recipe names is taken.
    """
    if teacher.port is None:
        while not _is_free(port := random.SystemRandom().randrange(*_PORTS)):
            continue
        return port
    if not _is_free(teacher.port):
        raise RecipeError(
            f"teacher.port {teacher.port} of this machine is taken. End what listens there, or "
            "leave teacher.port out: a free one is taken."
        )
    return teacher.port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _get(port: int, path: str) -> bytes | None:
    """Return the body of what the server replies; None unless its status is 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=_ANSWERS_WITHIN_S)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        body = reply.read()
        return body if reply.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
