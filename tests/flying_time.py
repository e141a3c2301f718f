"""Time that flies for the endpoint teacher while nothing but time can help it.

A time-out in real seconds is too short on a busy machine, where any answer may be late, and takes
too long on every other. Here the teacher's clock jumps to the next time-out or the end of a pause
as soon as only those requests are on their way that are never answered. So the time-outs of a
test may be as long as those of a run, and it waits for none of them.
"""

import asyncio
import selectors
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from distillery.teacher.http import channel as channel_module
from distillery.teacher.http import gate as gate_module
from distillery.teacher.http.channel import Channel


class _Clock:
    """Real seconds and those that have flown by; in place of the module `time`."""

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.flown_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.flown_s


def let_time_fly(
    monkeypatch: pytest.MonkeyPatch, hangs: Callable[[str], bool] = lambda _: False
) -> None:
    """Have teachers wait for nothing but answers; ``hangs`` tells the prompts without one."""
    clock = _Clock()
    channels: list[Channel] = []
    opened = Channel.__init__

    def open_and_note(channel: Channel, *args: Any, **named: Any) -> None:
        channels.append(channel)
        opened(channel, *args, **named)

    def channel_here() -> Channel | None:
        """Return the channel whose loop runs in this thread."""
        here, connections = (
            threading.current_thread(),
            [vars(c).get("_connection") for c in channels],
        )
        found = (c for c, used in zip(channels, connections, strict=True) if used is not None)
        return next((c for c in found if c._connection.thread is here), None)

    loop_time, select = asyncio.BaseEventLoop.time, selectors.DefaultSelector.select

    def time_of_loop(loop: asyncio.BaseEventLoop) -> float:
        return loop_time(loop) + (clock.flown_s if channel_here() else 0.0)

    def select_or_fly(selector: Any, timeout: float | None = None) -> Any:
        channel = channel_here()
        if channel is None or timeout is None or timeout <= 0:
            return select(selector, timeout)
        if (ready := select(selector, 0)) or not _is_stuck(channel, hangs):
            return ready or select(selector, min(timeout, 0.01))
        clock.flown_s += timeout
        return []

    monkeypatch.setattr(Channel, "__init__", open_and_note)
    monkeypatch.setattr(channel_module, "time", clock)
    monkeypatch.setattr(gate_module, "time", clock)
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", time_of_loop)
    monkeypatch.setattr(selectors.DefaultSelector, "select", select_or_fly)


def _is_stuck(channel: Channel, hangs: Callable[[str], bool]) -> bool:
    """Return whether all that is on its way, if anything is, hangs."""
    paused = set(channel._queue.waiting())
    on_their_way = [item for item in channel._queue.unfinished() if item not in paused]
    return all(hangs(item.request.messages[0]["content"]) for item in on_their_way)
