"""The processes of a benchmark: the stub, and a command whose time and CPU are measured."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

REPO = Path(__file__).resolve().parent.parent
_POLL_S = 0.01
_TAIL_CHARS = 2000


class ProcessError(RuntimeError):
    """A measured command failed or did not end."""


class Stub:
    """``benchmarks.stub`` as a process, for as long as the context is open."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.stub"], cwd=REPO, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.base_url: str = json.loads(self._process.stdout.readline())["base_url"]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def reset(self, **settings: Any) -> None:
        """Forget what was asked; behave as ``settings`` say."""
        self._call("/reset", json.dumps(settings).encode())

    def stats(self) -> dict[str, Any]:
        """Return what was asked since the reset."""
        return self._call("/stats")

    def _call(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        url = self.base_url.removesuffix("/v1") + path
        with urllib.request.urlopen(url, body, timeout=10) as response:
            found: dict[str, Any] = json.load(response)
        return found


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one command took."""

    wall_s: float
    """Seconds from start to end."""
    own_cpu_s: float
    """CPU of the process itself, imports included."""
    tree_cpu_s: float
    """CPU with the children that it waited for, such as Prefect's temporary server."""
    killed: bool
    """Whether ``stop_when`` ended it."""


def measure(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    timeout_s: float,
    stop_when: Callable[[], bool] | None = None,
) -> Measured:
    """Return what ``command`` took; its output is in ``folder``/output.txt.

    Args:
        command: Arguments for this interpreter.
        folder: Where it runs.
        environment: Its whole environment.
        timeout_s: Longest that it may take, seconds.
        stop_when: Asked again and again; once true, the process group meets SIGKILL.

    Raises:
        ProcessError: It failed, or was not done in time; the end of its output is quoted.
    """
    output = folder / "output.txt"
    began = time.monotonic()
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    killed = late = False
    try:
        while not _has_ended(process.pid):
            late = time.monotonic() - began > timeout_s
            if late or (stop_when is not None and stop_when()):
                killed = True
                _kill_group(process.pid)
                stop_when = None
            time.sleep(_POLL_S)
    except BaseException:
        _kill_group(process.pid)
        process.wait()
        raise
    wall_s = time.monotonic() - began
    own_cpu_s = _own_cpu_s(process.pid)
    # It is not reaped yet, so that the line before could read /proc; this reaps it.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if late or (process.returncode != 0 and not killed):
        what = f"took more than {timeout_s:g} s" if late else f"ended with {process.returncode}"
        tail = output.read_text("utf-8", "replace")[-_TAIL_CHARS:]
        raise ProcessError(f"{' '.join(command)!r} {what}. The end of its output:\n{tail}")
    tree_cpu_s = usage.ru_utime + usage.ru_stime
    return Measured(wall_s, tree_cpu_s if own_cpu_s is None else own_cpu_s, tree_cpu_s, killed)


def _has_ended(pid: int) -> bool:
    """Return whether a child has ended, and leave it to be reaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _own_cpu_s(pid: int) -> float | None:
    """Return the CPU seconds of a process without its children; None where there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in brackets, may hold blanks; user and system time are fields 14 and 15.
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _kill_group(pid: int) -> None:
    """End a process, its group, and children that made a group of their own, with SIGKILL."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()
