"""The machine that a model runs on: what it is, and how much of it a process takes."""

import contextlib
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from schemas.errors import RecipeError
from schemas.execution import ExecutionSpec
from schemas.units import bytes_text

_IS_LINUX = sys.platform == "linux"
_GROUPS_OF_PROCESS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def hardware_record() -> dict[str, str | int | None]:
    """Return what the figures depend on besides the models: machine, threads, versions.

    And the most memory that this process, all models together, has held so far.
    """
    import psutil
    import torch

    has_gpu = torch.cuda.is_available()
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if _IS_LINUX else os.cpu_count(),
        "memory": bytes_text(psutil.virtual_memory().total),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "torch_threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "peak_of_the_measuring_process": bytes_text(process_peak_bytes()),
    }


def resolve_device(device: str) -> str:
    """Return ``device`` with 'auto' resolved.

    Raises:
        RecipeError: It is not there.
    """
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if num_gpus else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise RecipeError(
            f"device {device!r} is not one that torch knows. Write auto, cpu, cuda or cuda:1."
        ) from None
    if wanted.type == "cuda" and (wanted.index or 0) >= num_gpus:
        raise RecipeError(
            f"device {device!r} asked for, but torch sees {num_gpus} GPUs here. Set device to auto "
            "or cpu, or run where a GPU is."
        )
    return device


@contextlib.contextmanager
def cpu_threads(execution: ExecutionSpec) -> Iterator[None]:
    """Hold torch to `execution.cpu_threads` threads inside."""
    if execution.cpu_threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(execution.cpu_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def process_peak_bytes() -> int:
    """Return the most resident memory that this process ever held."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's getrusage counts what the parent held when it started us
        [peak_kib] = re.findall(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        return int(peak_kib) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory(device: Any) -> int:
    """Return how many bytes this process can hold on ``device``, what it holds already included.

    On a CPU that is what the machine, and the control group where one has a limit, can still give,
    and this process' own memory, without that of files and libraries.

    Args:
        device: A torch device or its name.
    """
    import psutil
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    own = psutil.Process().memory_info()
    rooms = [psutil.virtual_memory().available, *_group_rooms(_GROUPS_OF_PROCESS, _GROUPS)]
    return int(min(rooms) + own.rss - getattr(own, "shared", 0))


def free_memory(device: Any) -> int:
    """Return how many more bytes this process can hold on ``device``."""
    import psutil
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return available_memory(device) - int(torch.cuda.memory_allocated(device))
    own = psutil.Process().memory_info()
    return available_memory(device) - int(own.rss - getattr(own, "shared", 0))


def _group_rooms(of_process: Path, groups: Path) -> Iterator[int]:
    """Yield what each control group of this process can still give, where it has a limit."""
    if not of_process.is_file():  # no Linux
        return
    for line in of_process.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = groups / controllers
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(root):
                yield from _group_room(group)


def _group_room(group: Path) -> Iterator[int]:
    """Yield the room of one control group; its page cache is given up when memory is wanted."""
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for limit, usage, cache in names:
        with contextlib.suppress(OSError, ValueError, KeyError):  # no limit: 'max', or no file
            counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / usage).read_text()) - int(counts[cache])
            yield max(0, int((group / limit).read_text()) - used)


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
