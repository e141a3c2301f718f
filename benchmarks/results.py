"""The head of a result: command, machine, versions, load. Works where no more than torch is."""

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import Metric, dated_name, machine

LIBRARIES = ("torch", "transformers", "trl", "accelerate", "datasets")


def heading(title: str, module: str, *, load: Sequence[float], minutes: float) -> list[str]:
    """Return the lines above the tables of a result.

    Args:
        title: What was measured.
        module: What was run, as `python -m` takes it.
        load: Of :func:`load_average`, at the start.
        minutes: What all of it took.
    """
    busy = ", ".join(f"{value:.2f}" for value in load)
    return [
        f"# {title}",
        "",
        f"- Command: `{' '.join(['python -m', module, *sys.argv[1:]])}`",
        f"- Machine: {', '.join([machine(), *accelerators()])}",
        f"- Versions: {versions()}",
        f"- Load average at the start: {busy}; minutes in all: {minutes:.1f}",
        "",
    ]


class Line(NamedTuple):
    """One line of a table: one value per repeat."""

    case: str
    metric: Metric
    values: Sequence[float]


def goal_table(lines: Sequence[Line]) -> str:
    """Return goals and what was measured.

    >>> print(goal_table([Line("storage", Metric("bytes", goal=300), [200, 190, 210])]))
    | case | | goal | median [min, max] | met? |
    |---|---|---:|---:|---|
    | storage | bytes | <= 300 | 200 [190, 210] | yes |
    """
    rows = [
        [line.case, line.metric.name, line.metric.goal_text(), line.metric.cell(line.values),
         line.metric.met(line.values)]
        for line in lines
    ]  # fmt: skip
    head = ["| case | | goal | median [min, max] | met? |", "|---|---|---:|---:|---|"]
    return "\n".join(head + ["| " + " | ".join(row) + " |" for row in rows])


def versions() -> str:
    """Return the versions that matter, and the commit when this is a checkout."""
    found = [f"python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    if commit():
        found.append(f"commit {commit()}")
    return ", ".join(found)


@functools.cache
def commit() -> str:
    """Return the commit of this checkout, as first asked; empty where it is none."""
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip()


def accelerators() -> list[str]:
    """Return the names of the GPUs."""
    import torch

    return [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]


def result_path(subject: str) -> Path:
    """Return where the dated result of ``subject`` belongs; a GPU's name comes first."""
    name = dated_name(subject)
    if found := accelerators():
        gpu = re.sub(r"[^a-z0-9]+", "-", found[0].lower()).strip("-")
        name = f"{subject}_{gpu}_{name.removeprefix(f'{subject}_')}"
    return Path(__file__).parent / name


def load_average() -> tuple[float, float, float]:
    """Return how busy the machine is, over 1, 5 and 15 minutes."""
    return os.getloadavg()
