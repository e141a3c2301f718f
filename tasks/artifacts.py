"""What a run leaves in the Prefect UI: tables with a Markdown twin, text, and progress."""

import contextlib
import contextvars
import datetime
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger("distillery.progress")

_UPDATE_S = 1.0
_LOG_S = 10.0


def publish_table(key: str, rows: Sequence[dict[str, Any]], markdown: str, note: str) -> None:
    """Put ``rows`` in a table artifact, and ``markdown`` in its twin ``{key}-text``.

    The UI shows table cells as plain text, clipped when the table is wide: the twin reads better,
    the table can be read by programs.
    """
    create_table_artifact(key=artifact_key(key), table=list(rows), description=note)
    create_markdown_artifact(key=artifact_key(f"{key}-text"), markdown=markdown, description=note)


def publish_markdown(key: str, markdown: str, note: str) -> None:
    """Put ``markdown`` in an artifact."""
    create_markdown_artifact(key=artifact_key(key), markdown=markdown, description=note)


def pairs_markdown(title: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Return pairs of a label and a value as a Markdown table."""
    lines = [f"| {title} | |", "|---|---|"]
    return "\n".join(lines + [f"| {label.strip()} | {value} |" for label, value in pairs])


def counts_markdown(title: str, counts: dict[str, int]) -> str:
    """Return counts as a Markdown table, in the order given."""
    lines = [f"| {title} | rows |", "|---|---:|"]
    return "\n".join(lines + [f"| {name} | {count:,} |" for name, count in counts.items()])


def artifact_key(name: str) -> str:
    """Return ``name`` as Prefect wants keys: lower-case letters, digits, dashes.

    >>> artifact_key("train_student curve")
    'train-student-curve'
    """
    return "".join(c if c.isalnum() else "-" for c in name.lower())


class ProgressReport:
    """Shows one stage's progress: a bar in a terminal, log lines elsewhere, an artifact in the UI.

    Updating it only notes the figures, so that it may be done for every response, from any
    thread; a thread of its own shows them now and then.
    """

    def __init__(
        self, name: str, artifact: tuple[UUID, str], bar: Progress | None, total: int | None
    ) -> None:
        """Report the progress of ``name`` in the artifact of an id and a title."""
        self._name, self._artifact, self._bar, self._total = name, artifact, bar, total
        self._task = bar.add_task(name, total=total, note="") if bar else None
        self._done: dict[object, int] = {}
        self._note: str | Callable[[], str] = ""
        self._started = time.monotonic()
        self._next_log = self._started + _LOG_S
        self._ended = threading.Event()
        context = contextvars.copy_context()  # Prefect's settings are in it
        self._thread = threading.Thread(
            target=lambda: context.run(self._show_until_ended), name="progress", daemon=True
        )
        self._thread.start()

    def update(
        self,
        done: int,
        total: int | None = None,
        note: str | Callable[[], str] = "",
        *,
        part: object = None,
    ) -> None:
        """Say that ``done`` are done of ``total``, or ``done`` of a part of the report's total."""
        self._done[part] = done
        self._total = total or self._total
        self._note = note

    def end(self, *, finished: bool) -> None:
        """Stop showing; what is finished stands at 100 %."""
        self._ended.set()
        self._thread.join()
        if finished:
            self._show(100.0, self._artifact[1])

    def _show_until_ended(self) -> None:
        shown = None
        while not self._ended.wait(_UPDATE_S):
            done, total = sum(self._done.values()), self._total or 1
            note = self._note if isinstance(self._note, str) else self._note()
            if (done, note) == shown:
                continue
            shown = done, note
            rate = done / (time.monotonic() - self._started)
            pace = ", ".join(filter(None, [f"{rate:,.3g}/s", note]))
            if self._bar and self._task is not None:
                self._bar.update(self._task, completed=done, total=total, note=pace)
            left = datetime.timedelta(seconds=round((total - done) / rate)) if rate else "unknown"
            said = f"{done:,} of {total:,}, {left} left, {pace}"
            if time.monotonic() >= self._next_log and self._bar is None:
                self._next_log = time.monotonic() + _LOG_S
                logger.info("%s: %s", self._name, said)
            self._show(100.0 * done / total, f"{self._artifact[1]}: {said}")

    def _show(self, percent: float, description: str) -> None:
        """Update the artifact; work that goes on is worth more than a bar."""
        try:
            update_progress_artifact(self._artifact[0], progress=percent, description=description)
        except Exception as error:
            logger.warning("progress of %s is not shown: %s", self._name, error)


@contextmanager
def progress_report(name: str, note: str, total: int | None = None) -> Iterator[ProgressReport]:
    """Yield a report of the progress of the stage ``name``; the artifact ends at 100 %."""
    artifact_id = create_progress_artifact(
        0.0, key=artifact_key(f"progress-{name}"), description=note
    )
    with contextlib.ExitStack() as opened:
        bar = opened.enter_context(_bar()) if sys.stderr.isatty() else None
        report = ProgressReport(name, (artifact_id, note), bar, total)
        try:
            yield report
        except BaseException:
            report.end(finished=False)
            raise
        report.end(finished=True)


def _bar() -> Progress:
    """Return a bar for a terminal."""
    from rich.console import Console

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=8),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
