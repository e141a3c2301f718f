"""What a run leaves in the Prefect UI: tables with a Markdown twin, text, and progress."""

import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger("distillery.progress")

_UPDATE_S = 2.0
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

    Safe to call from several threads.
    """

    def __init__(
        self, name: str, artifact_id: UUID, bar: Progress | None, total: int | None
    ) -> None:
        """Report the progress of ``name``."""
        self._name, self._artifact_id, self._bar, self._total = name, artifact_id, bar, total
        self._task = bar.add_task(name, total=total, note="") if bar else None
        self._lock = threading.Lock()
        self._next_update = 0.0
        self._next_log = time.monotonic() + _LOG_S
        self._done: dict[object, int] = {}

    def update(
        self, done: int, total: int | None = None, note: str = "", *, part: object = None
    ) -> None:
        """Say that ``done`` are done of ``total``, or ``done`` of a part of the report's total."""
        with self._lock:
            self._done[part] = done
            done, total = sum(self._done.values()), total or self._total or 1
            if self._bar and self._task is not None:
                self._bar.update(self._task, completed=done, total=total, note=note)
            now = time.monotonic()
            if now >= self._next_update:
                self._next_update = now + _UPDATE_S
                self._show(100.0 * done / total)
            if now >= self._next_log and self._bar is None:
                self._next_log = now + _LOG_S
                logger.info("%s: %d of %d %s", self._name, done, total, note)

    def finish(self) -> None:
        """Say that all is done."""
        self._show(100.0)

    def _show(self, percent: float) -> None:
        """Update the artifact; work that goes on is worth more than a bar."""
        try:
            update_progress_artifact(self._artifact_id, progress=percent)
        except Exception as error:
            logger.warning("progress of %s is not shown: %s", self._name, error)


@contextmanager
def progress_report(name: str, note: str, total: int | None = None) -> Iterator[ProgressReport]:
    """Yield a report of the progress of the stage ``name``; the artifact ends at 100 %."""
    artifact_id = create_progress_artifact(
        0.0, key=artifact_key(f"progress-{name}"), description=note
    )
    if not sys.stderr.isatty():
        report = ProgressReport(name, artifact_id, None, total)
        yield report
        report.finish()
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    from rich.console import Console

    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        report = ProgressReport(name, artifact_id, bar, total)
        yield report
        report.finish()
