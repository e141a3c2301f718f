"""Processes that outlive the command that starts them, and are found again by pid and age."""

import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

_SAME_START_S = 2.0
"""How far two readings of one process's start time may be apart: the clock is set now and then."""


class Detached:
    """Processes by name, with a pid file and a log each in one folder."""

    def __init__(self, folder: Path) -> None:
        """Keep pid files and logs in ``folder``."""
        self.folder = folder

    def log(self, name: str) -> Path:
        """Return the log of the process ``name``."""
        return self.folder / f"{name}.log"

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Start ``command`` in a session of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # A command that a script starts with `&` ignores SIGINT, and what it starts would too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                command,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started = psutil.Process(process.pid).create_time()
        record = {"pid": process.pid, "started": started, "command": list(command)}
        self._record(name).write_text(json.dumps(record), encoding="utf-8")

    def find(self, name: str) -> psutil.Process | None:
        """Return the running process ``name``, or None; never another one that got its pid."""
        try:
            record = json.loads(self._record(name).read_text(encoding="utf-8"))
            process = psutil.Process(record["pid"])
            is_same = abs(process.create_time() - record["started"]) < _SAME_START_S
            return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
            return None

    def stop(self, names: Sequence[str], *, grace_s: float) -> list[str]:
        """Stop processes with what they started, and return the names of those that ran.

        Each gets SIGINT, and SIGKILL when it is still there after ``grace_s``.
        """
        running = {name: process for name in names if (process := self.find(name))}
        family = [child for p in running.values() for child in p.children(recursive=True)]
        for process in running.values():
            process.send_signal(signal.SIGINT)
        _, alive = psutil.wait_procs([*running.values(), *family], timeout=grace_s)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=grace_s)
        for name in names:
            self._record(name).unlink(missing_ok=True)
        return list(running)

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"
