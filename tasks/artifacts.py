"""What a run leaves in the Prefect UI: tables with a Markdown twin, text, and progress."""

import collections
import contextlib
import contextvars
import datetime
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from distillery.storage.stage import StageResult
from schemas.execution import StoreSpec
from schemas.refs import DatasetRef

logger = logging.getLogger("distillery.progress")
_run_logger = logging.getLogger("distillery.run")

_UPDATE_S = 1.0
_LOG_S = 10.0
_RATE_OVER_S = 300.0
_QUIET_S = 20.0


def publish_table(key: str, rows: Sequence[dict[str, Any]], markdown: str, note: str) -> None:
    """Put ``rows`` in a table artifact, and ``markdown`` in its twin ``{key}-text``.

    The UI shows table cells as plain text, clipped when the table is wide: the twin reads better,
    the table can be read by programs.
    """
    create_table_artifact(key=artifact_key(key), table=list(rows), description=note)
    create_markdown_artifact(key=artifact_key(f"{key}-text"), markdown=markdown, description=note)


def publish_filtered(
    key: str, kept: int, result: StageResult, rejected: DatasetRef, store: StoreSpec, note: str
) -> None:
    """Put what a filter stage kept, dropped and rewrote, by reason, in a table artifact."""
    rewrites = cast("dict[str, int]", result.manifest.facts["rewrites"])
    counts = {"kept": kept} | result.drop_reasons
    counts |= {f"kept, rewritten: {reason}": count for reason, count in rewrites.items()}
    place = f"{store.root}/{rejected.uri}"
    publish_table(
        key,
        [{"reason": reason, "rows": count} for reason, count in counts.items()],
        counts_markdown("kept, or dropped because", counts) + f"\n\nRejected rows: `{place}`",
        note,
    )
    if rejected.num_rows:
        _run_logger.info("%s: rejected rows, each with its reason (Parquet): %s", note, place)


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


class Pace:
    """How fast work goes, and how long the rest of it takes at that pace.

    What took no time, such as responses from the ledger, is left out. Only the last minutes count:
    an endpoint may be faster or slower than it was an hour ago.

    >>> pace = Pace(started_s=0.0)
    >>> pace.note(420, now_s=10.0, num_free=400)
    >>> pace.rate(now_s=10.0), pace.quiet_s(now_s=10.0)
    (2.0, 0.0)
    >>> pace.note(420, now_s=40.0, num_free=400)
    >>> pace.rate(now_s=40.0), pace.quiet_s(now_s=40.0)
    (0.5, 30.0)
    """

    def __init__(self, started_s: float) -> None:
        """Begin with nothing done."""
        self._seen = collections.deque([(started_s, 0)])
        self._done, self._changed_s = 0, started_s

    def note(self, done: int, *, now_s: float, num_free: int = 0) -> None:
        """Note that ``done`` are done by now, ``num_free`` of which took no time."""
        if done != self._done:
            self._done, self._changed_s = done, now_s
        self._seen.append((now_s, done - num_free))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= _RATE_OVER_S:
            self._seen.popleft()

    def rate(self, *, now_s: float) -> float:
        """Return how many are done per second."""
        (first_s, first), (_, last) = self._seen[0], self._seen[-1]
        return max(0, last - first) / (now_s - first_s) if now_s > first_s else 0.0

    def quiet_s(self, *, now_s: float) -> float:
        """Return for how long nothing has been done."""
        return now_s - self._changed_s

    def sentence(self, done: int, total: int, *, now_s: float) -> str:
        """Return the time left and the rate in words, and whether nothing comes any more."""
        rate, quiet_s = self.rate(now_s=now_s), self.quiet_s(now_s=now_s)
        said = []
        if rate:
            left = datetime.timedelta(seconds=round(max(0, total - done) / rate))
            said = [f"{left} left", f"{rate:,.3g}/s"]
        if quiet_s >= _QUIET_S:
            said.append(f"nothing new for {quiet_s // 10 * 10:.0f} s")
        return ", ".join(said)


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
        self._num_free = 0
        self._note: str | Callable[[], str] = ""
        started_s = time.monotonic()
        self._pace = Pace(started_s)
        self._next_log = started_s + _LOG_S
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
        num_free: int = 0,
    ) -> None:
        """Say that ``done`` are done of ``total``, or ``done`` of a part of the report's total.

        ``num_free`` of all parts took no time, so the time left is not told from them.
        """
        self._done[part] = done
        self._total = total or self._total
        self._note, self._num_free = note, num_free

    def end(self, *, finished: bool) -> None:
        """Stop showing; what is finished stands at 100 %, other work where it stopped."""
        self._ended.set()
        self._thread.join()
        done, total = sum(self._done.values()), self._total or 0
        if finished:
            self._show(100.0, f"{self._artifact[1]}: {done:,}, finished")
        elif total:
            said = f"stopped at {done:,} of {total:,}"
            self._show(100.0 * done / total, f"{self._artifact[1]}: {said}")

    def _show_until_ended(self) -> None:
        shown = None
        while not self._ended.wait(_UPDATE_S):
            now_s, done, total = time.monotonic(), sum(self._done.values()), self._total or 1
            self._pace.note(done, now_s=now_s, num_free=self._num_free)
            note = self._note if isinstance(self._note, str) else self._note()
            is_quiet = self._pace.quiet_s(now_s=now_s) // 10
            if (done, note, is_quiet) == shown:
                continue
            shown = done, note, is_quiet
            pace = ", ".join(filter(None, [self._pace.sentence(done, total, now_s=now_s), note]))
            if self._bar and self._task is not None:
                self._bar.update(self._task, completed=done, total=self._total, note=pace)
            count = f"{done:,} of {total:,}" if self._total else "starting"
            said = ", ".join(filter(None, [count, pace]))
            if now_s >= self._next_log and self._bar is None:
                self._next_log = now_s + _LOG_S
                logger.info("%s: %s", self._name, said)
            self._show(100.0 * done / total, f"{self._artifact[1]}: {said}")

    def _show(self, percent: float, description: str) -> None:
        """Update the artifact; work that goes on is worth more than a bar."""
        try:
            update_progress_artifact(
                self._artifact[0], progress=round(percent, 1), description=description
            )
        except Exception as error:
            logger.warning("progress of %s is not shown: %s", self._name, error)


@contextmanager
def progress_report(name: str, note: str, total: int | None = None) -> Iterator[ProgressReport]:
    """Yield a report of the progress of the stage ``name``; the artifact ends at 100 %."""
    key = artifact_key(f"progress-{name}")
    artifact_id = cast("UUID", create_progress_artifact(0.0, key=key, description=note))
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
    from rich.table import Column

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=8),
        MofNCompleteColumn(),
        # What is too wide for the terminal is cut here, at its end, and not from the counts.
        TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True)),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True, expand=True)
