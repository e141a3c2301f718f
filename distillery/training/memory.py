"""What a training will take of a device's memory, known before it starts, and what to change."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillery.models.hardware import process_peak_bytes
from distillery.training.memory_advice import memory_advice
from distillery.training.memory_plan import MemoryPlan, ModelShape, TeacherSize
from schemas.errors import TrainingError
from schemas.training import TrainingSpec
from schemas.units import bytes_text

__all__ = [
    "MemoryEstimate",
    "PeakMemory",
    "TeacherSize",
    "available_memory",
    "estimate_memory",
    "peak_memory",
]

_SAMPLING_S = 0.005
_GROUPS_OF_PROCESS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """What one process of a training takes of its device, bytes."""

    plan: MemoryPlan

    @property
    def parts(self) -> dict[str, int]:
        """Return bytes by part."""
        return self.plan.parts

    @property
    def total(self) -> int:
        """Return the most bytes that are held at one time; not all parts are, always."""
        return self.plan.peak

    @property
    def sentence(self) -> str:
        """Return the total and its parts in one line."""
        parts = ", ".join(f"{name} {bytes_text(size)}" for name, size in self.parts.items())
        return f"{bytes_text(self.total)} of memory: {parts}"

    def check(self, available_bytes: int, device_name: str) -> None:
        """Return when it fits.

        Args:
            available_bytes: What the device has for this training.
            device_name: Its name, as torch gives it. Processes on a CPU share its memory.

        Raises:
            TrainingError: It does not fit; the message says what to change, and what comes of it.
        """
        on_cpu, num_processes = device_name.startswith("cpu"), self.plan.num_processes
        room = available_bytes // num_processes if on_cpu else available_bytes
        if self.total <= room:
            return
        largest, size = max(self.parts.items(), key=lambda part: part[1])
        each = f" for each of {num_processes} processes" if on_cpu and num_processes > 1 else ""
        raise TrainingError(
            f"training takes about {bytes_text(self.total)} of memory, {bytes_text(size)} of it "
            f"{largest}, but {device_name} has {bytes_text(room)}{each}. "
            + memory_advice(self.plan, room, on_cpu=on_cpu)
        )


def estimate_memory(
    model_config: Any,
    num_parameters: int,
    num_trainable: int,
    training: TrainingSpec,
    *,
    max_length: int,
    vocab_size: int,
    teacher: TeacherSize | None,
    num_processes: int,
    chunk_tokens: int,
    holds_logits: bool,
) -> MemoryEstimate | None:
    """Return what training will take of each process's device; no weights are needed.

    None where the configuration does not tell the shape of the layers, as that of a state-space
    model does not: only trial steps show then what they keep.

    Trained weights and their gradients are float32, and so are AdamW's two states; frozen weights
    are in the precision of the forward pass. Attention is taken to be
    PyTorch's own (SDPA), which keeps no attention weights. A feed-forward block is taken to be
    gated; one that is not takes less. It is what tensors take: within a tenth of the measured peak
    of Llamas of 10 M and 60 M parameters. What an allocator keeps of memory that was given back
    comes on top: on a CPU glibc's was seen to hold half as much again, and with adapters and
    checkpointing, whose tensors are short-lived, two to three times as much.

    Args:
        model_config: The student's transformers configuration.
        num_parameters: Of the student, adapters included.
        num_trainable: Those among them that are trained.
        training: How.
        max_length: Tokens of the longest row.
        vocab_size: Logits that count.
        teacher: Who runs beside the student, if one does.
        num_processes: Processes, each with its own device or a share of the CPU.
        chunk_tokens: Response tokens whose logits exist at a time.
        holds_logits: All logits of a forward pass exist at a time, as the student changes them.
    """
    shape = ModelShape.of(model_config, vocab_size)
    if shape is None:
        return None
    return MemoryEstimate(
        MemoryPlan(
            shape=shape,
            num_parameters=num_parameters,
            num_trainable=num_trainable,
            training=training,
            max_length=max_length,
            vocab_size=vocab_size,
            teacher=teacher,
            num_processes=num_processes,
            chunk_tokens=chunk_tokens,
            holds_logits=holds_logits,
        )
    )


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


@dataclasses.dataclass
class PeakMemory:
    """The most memory that was held over a time."""

    bytes: int = 0


@contextlib.contextmanager
def peak_memory(device: Any) -> Iterator[PeakMemory]:
    """Yield a record of the most memory held inside, which is filled in at the end.

    Tensors of this process on a GPU; on a CPU all of this process' resident memory, looked at every
    few milliseconds.
    """
    import torch

    device, peak = torch.device(device), PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        try:
            yield peak
        finally:
            peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    is_over, before = threading.Event(), process_peak_bytes()
    sampler = threading.Thread(target=_sample, args=(peak, is_over), daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        is_over.set()
        sampler.join()
        # What the system remembers is exact, but not of this time unless it was never more before.
        after = process_peak_bytes()
        if before is not None and after is not None and after > before:
            peak.bytes = after


def _sample(peak: PeakMemory, is_over: threading.Event) -> None:
    import psutil

    process = psutil.Process()
    while True:
        peak.bytes = max(peak.bytes, process.memory_info().rss)
        if is_over.wait(_SAMPLING_S):
            return
