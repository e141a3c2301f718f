"""What training processes tell the process that started them: lines of JSON, a file for each."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from schemas.errors import DistilleryError

Message = dict[str, Any]


class Outbox:
    """Where one process puts its messages."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Write to the file of ``rank`` in ``folder``."""
        self._path = _path(folder, rank)
        self._lock = threading.Lock()

    def send(self, kind: str, **content: Any) -> None:
        """Put a message down; it can be read at once and outlives this process."""
        line = json.dumps({"kind": kind, "at": time.time(), **content}) + "\n"
        with self._lock, self._path.open("ab", buffering=0) as file:
            file.write(line.encode())

    def send_error(self, error: BaseException) -> None:
        """Put ``error`` down such that :func:`own_error` makes it again."""
        self.send(
            "error",
            module=type(error).__module__,
            type=type(error).__qualname__,
            text=str(error),
            is_own=isinstance(error, DistilleryError),
        )


class OutboxHandler(logging.Handler):
    """Sends log records to the process that started this one, whose handlers treat them."""

    def __init__(self, outbox: Outbox) -> None:
        """Send to ``outbox``."""
        super().__init__()
        self._outbox = outbox

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record, with its traceback if it has one."""
        self._outbox.send("log", name=record.name, level=record.levelno, text=self.format(record))


class Inbox:
    """Reads what all processes have put down."""

    def __init__(self, folder: Path, num_processes: int) -> None:
        """Read from the files of ``num_processes`` in ``folder``, from their beginning."""
        self._paths = [_path(folder, rank) for rank in range(num_processes)]
        self._read = [0] * num_processes

    def new(self) -> Iterator[tuple[int, Message]]:
        """Yield rank and message of what was not yielded before.

        A line that is still being written, or whose writer was killed in it, is left.
        """
        for rank, path in enumerate(self._paths):
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._read[rank])
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read[rank] += len(line)
                    yield rank, json.loads(line)


def own_error(message: Message) -> DistilleryError:
    """Return the error of a message that has `is_own`: same class, same text."""
    error = getattr(import_module(message["module"]), message["type"])(message["text"])
    assert isinstance(error, DistilleryError)
    return error


def _path(folder: Path, rank: int) -> Path:
    return folder / f"messages-{rank}.jsonl"
