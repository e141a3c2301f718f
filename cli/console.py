"""What the user sees: output, our own log lines, and one clear message for an error."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from schemas.errors import DistilleryError, StageError

_LOG_COLUMNS = 110


def console(columns: int = _LOG_COLUMNS) -> Console:
    """Return the standard output, of so many ``columns`` where it is not a terminal.

    rich assumes 80 there, too few for our tables.
    """
    width = None if sys.stdout.isatty() else columns
    return Console(highlight=False, soft_wrap=True, width=width)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """End with one clear message and status 1 on what a user can meet."""
    try:
        yield
    except DistilleryError as error:
        _fail(error)
    except RuntimeError as error:
        if "Failed to reach API" not in str(error):
            raise
        _fail(
            StageError(
                f"there is no Prefect server at {os.environ.get('PREFECT_API_URL')!r}. Start it "
                "(`make up`), or `unset PREFECT_API_URL` to run without one."
            )
        )


def _fail(error: DistilleryError) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[red]{type(error).__name__}:[/] {escape(str(error))}"
    )
    sys.exit(1)


def show_only_our_log() -> None:
    """Print one line per stage, and of Prefect's own log only warnings that are not ours.

    A failed run's error is printed once, at the end, without the orchestrator's traceback.
    """
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    logging.getLogger("distillery").addHandler(lines)


def silence_prefect() -> None:
    """Drop Prefect's lines from its handlers, which it makes when it is imported."""
    for name in (None, "prefect"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_is_worth_showing)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    if record.name.startswith(("distillery", "prefect.flow_runs", "prefect.task_runs")):
        return False
    return record.levelno >= logging.WARNING
