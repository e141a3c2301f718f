"""The most memory that a contestant of this process takes.

Measured while nobody else works, and before anything is timed: watching costs a little.
"""

import contextlib
import ctypes
import gc
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distillery.evaluation.protocol import Conversation, Opened

_EVERY_S = 0.002


class MemoryWatch:
    """Knows what this process held before a contestant was loaded: make one before that."""

    def __init__(self) -> None:
        _give_back()
        self._gpu_before, self._before = _on_gpus(), _resident()

    def peak_bytes(self, opened: "Opened", rows: Sequence["Conversation"]) -> int | None:
        """Return the most memory that answering ``rows`` takes, as many at once as it can.

        The weights, and what answering holds beside them. Weights are at least counted by their
        own size: a contestant that shares them, or that found room which another one left, has
        taken none. Likewise a first, short answer comes before the measuring, as a file that is
        mapped is read then.

        Returns:
            GPU memory where it takes some, resident memory otherwise. None: it is served.
        """
        if opened.is_served:
            return None
        weights = opened.size.weight_bytes if opened.size else 0
        opened.answer(rows[:1], 1)
        _give_back()
        gpu_loaded, loaded = _on_gpus(), _resident()
        with most_resident() as seen, _most_on_gpus() as gpu_seen:
            opened.answer(rows, min(len(rows), opened.max_concurrency or len(rows)))
        gpu_beside = max(gpu_seen) - gpu_loaded
        if gpu_beside > 0:
            return max(gpu_loaded - self._gpu_before, weights) + gpu_beside
        return max(loaded - self._before, weights) + max(seen) - loaded


def _give_back() -> None:
    """Return to the system what is free, so that what is taken next shows as growth."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # glibc has it, and nobody else
        ctypes.CDLL(None).malloc_trim(0)


def _on_gpus() -> int:
    import torch

    return sum(map(torch.cuda.memory_allocated, _gpus()))


def _gpus() -> range:
    import torch

    return range(torch.cuda.device_count() if torch.cuda.is_available() else 0)


@contextlib.contextmanager
def _most_on_gpus() -> Iterator[list[int]]:
    """Yield a list that holds the most bytes allocated inside, afterwards."""
    import torch

    for gpu in _gpus():
        torch.cuda.reset_peak_memory_stats(gpu)
    seen: list[int] = []
    yield seen
    seen.append(sum(map(torch.cuda.max_memory_allocated, _gpus())))


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


@contextlib.contextmanager
def most_resident() -> Iterator[list[int]]:
    """Yield a list of the resident bytes inside, looked up every 2 ms."""
    seen, is_over = [_resident()], threading.Event()

    def watch() -> None:
        while not is_over.wait(_EVERY_S):
            seen[0] = max(seen[0], _resident())

    watcher = threading.Thread(target=watch, name="memory-watch", daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        is_over.set()
        watcher.join()
        seen[0] = max(seen[0], _resident())
