"""The table of a benchmark: medians and spreads against goals, and the machine they are from."""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import psutil

from distillery.models.hardware import processor

_VERSIONS = ("prefect", "aiohttp", "SQLAlchemy")


@dataclasses.dataclass(frozen=True)
class Metric:
    """One row of the table."""

    name: str
    """What is measured, with its unit."""
    ideal: str = "-"
    """What no client can beat."""
    goal: float | None = None
    """The bound that the median has to keep. None: for information."""
    better: Literal["lower", "higher"] = "lower"
    """Whether the goal is the most or the least that is allowed."""
    digits: int = 0
    """Decimal places."""

    def goal_text(self) -> str:
        """Return the goal as it stands in the table."""
        if self.goal is None:
            return "-"
        return f"{'<=' if self.better == 'lower' else '>='} {self.goal:,.{self.digits}f}"

    def met(self, values: Sequence[float]) -> str:
        """Return whether the median keeps the goal, in a word; a dash when there is none.

        >>> Metric("429s", goal=150).met([100, 400, 120])
        'yes'
        """
        if self.goal is None or not values:
            return "-"
        median = statistics.median(values)
        kept = median <= self.goal if self.better == "lower" else median >= self.goal
        return "yes" if kept else "**no**"

    def cell(self, values: Sequence[float]) -> str:
        """Return the median, and the extremes when there are several values.

        >>> Metric("time over ideal", digits=2).cell([1.2, 1.0, 1.5])
        '1.20 [1.00, 1.50]'
        """
        if not values:
            return "-"
        median, low, high = (
            f"{value:,.{self.digits}f}"
            for value in (statistics.median(values), min(values), max(values))
        )
        return median if len(values) == 1 else f"{median} [{low}, {high}]"


def markdown_table(
    metrics: Sequence[tuple[str, Metric]],
    values: Mapping[tuple[str, str, str], Sequence[float]],
    crashed: Mapping[tuple[str, str], str],
) -> str:
    """Return the table of all metrics.

    Args:
        metrics: Each after the letter of its case.
        values: One value per repeat, by letter, name of the metric, and client.
        crashed: Why a case ended early, by letter and client.
    """
    lines = [
        "| case | | ideal | goal | ours: median [min, max] | bare client | met? |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for letter, metric in metrics:
        cells, ours = {}, values.get((letter, metric.name, "ours"), [])
        for client in ("ours", "bare"):
            found = values.get((letter, metric.name, client), [])
            cells[client] = metric.cell(found)
            if (letter, client) in crashed:
                cells[client] = "crashed" if not found else f"{cells[client]}, then crashed"
        met = "**crashed**" if (letter, "ours") in crashed else metric.met(ours)
        row = [letter, metric.name, metric.ideal, metric.goal_text(), *cells.values(), met]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def machine() -> str:
    """Return processor, cores and memory."""
    memory_gib = psutil.virtual_memory().total / 2**30
    return f"{processor()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB"


def versions() -> str:
    """Return the versions that matter, and the commit when this is a checkout."""
    found = [f"python {platform.python_version()}"]
    found += [f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS]
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True)
    if done.returncode == 0:
        found.append(f"commit {done.stdout.strip()}")
    return ", ".join(found)


def dated_name(subject: str) -> str:
    """Return the file name of a result: subject, hardware and date."""
    hardware = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
    return f"{subject}_{hardware}-{os.cpu_count()}-cores_{datetime.date.today():%Y-%m-%d}.md"
