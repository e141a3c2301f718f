"""Runs a server for as long as the process that wants it is there; a program of its own.

    python supervisor.py PARENT_PID GRACE_S AFTERWARDS COMMAND...

PARENT_PID is the process that wants the server, GRACE_S how long the server may take to end by
itself, and AFTERWARDS a JSON list: a command for when it has ended, or nothing. Standard input is
a pipe that nobody writes to: it closes when whoever holds its other end is gone, by kill -9 as
well. Then the server goes, with all processes that it has started, also those that have left its
process group or have lost their parent; memory of a GPU is free when the last of them is gone.
Only the standard library is imported, so this starts at once.

The exit status is the server's.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_POLL_S = 0.2
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(parent: int, grace_s: float, afterwards: list[str], command: list[str]) -> int:
    """Run ``command`` until it ends or is not wanted any more; return its exit status."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans among its processes become our children
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_us
    )
    try:
        while server.poll() is None and not asked and os.getppid() == parent:
            with contextlib.suppress(InterruptedError):
                if select.select([sys.stdin], [], [], _POLL_S)[0]:
                    break
    finally:
        _end(server, grace_s)
        if afterwards:
            subprocess.run(afterwards, stdin=subprocess.DEVNULL, check=False)
    status = server.returncode
    return status if status >= 0 else 128 - status


def _end(server: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """Return when the server and all that it has started are gone."""
    if server.poll() is None:
        _signal_group(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(grace_s)
    _signal_group(server.pid, signal.SIGKILL)
    if server.poll() is None:
        server.wait()
    while left := [*_descendants(os.getpid())]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _descendants(pid: int) -> Iterator[int]:
    """Yield the processes below ``pid``, by /proc; none where there is no such folder."""
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, listed.read_text().split()):
                yield child
                yield from _descendants(child)


def _end_with_us() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError):  # Linux alone has it
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4:]))
