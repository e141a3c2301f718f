"""The requests of all callers that are on their way, and those that wait to be sent."""

import asyncio
import collections
import dataclasses
import heapq
import itertools
import threading
from collections.abc import Iterator, Sequence

from distillery.teacher.attempts import Attempts
from distillery.teacher.protocol import OnResponse, Request


@dataclasses.dataclass(eq=False)
class Item:
    """One request on its way."""

    attempts: Attempts
    batch: "Batch"
    failures: int = 0
    """Attempts that brought no reply to what was asked."""
    num_limited: int = 0
    """429s."""
    num_unexplained: int = 0
    """Responses without a finish_reason."""
    num_refused: int = 0
    """Refusals; the first is not believed while nothing was answered."""
    last_fault: str = ""
    is_handed_over: bool = False
    is_done: bool = False

    @property
    def request(self) -> Request:
        """Return what was asked for."""
        return self.attempts.request


class Batch:
    """The requests of one call of :meth:`Channel.run`."""

    def __init__(self, requests: Sequence[Request], on_response: OnResponse) -> None:
        self.on_response = on_response
        self.items = [Item(Attempts(request), self) for request in requests]
        self.num_left = len(self.items)
        self.tasks: set[asyncio.Task[None]] = set()
        self.error: BaseException | None = None
        self.done = threading.Event()

    def end(self, error: BaseException) -> None:
        """End it with an error; what it has in flight is given up."""
        self.error = error
        mine = asyncio.current_task()
        for task in self.tasks - {mine}:
            task.cancel()
        self.done.set()


class Queue:
    """What waits to be sent: ready, or not before some moment."""

    def __init__(self) -> None:
        self.batches: set[Batch] = set()
        self._ready: collections.deque[Item] = collections.deque()
        self._later: list[tuple[float, int, Item]] = []
        self._numbers = itertools.count()

    def add(self, batch: Batch) -> None:
        """Add all requests of a batch."""
        self.batches.add(batch)
        self._ready.extend(batch.items)

    def first(self, now: float, *, others_first: bool) -> Item | None:
        """Return the next request to send, which stays where it is; None when none is ready.

        Args:
            now: Moment; requests that waited for it are ready.
            others_first: Whether those go behind the ones that wait already.
        """
        add = self._ready.append if others_first else self._ready.appendleft
        while self._later and self._later[0][0] <= now:
            add(heapq.heappop(self._later)[2])
        while self._ready and self._ready[0].batch.error is not None:
            self._ready.popleft()
        return self._ready[0] if self._ready else None

    def take_first(self) -> Item:
        """Take out what :meth:`first` returned."""
        return self._ready.popleft()

    def put_first(self, item: Item) -> None:
        """Have ``item`` sent next."""
        self._ready.appendleft(item)

    def put_last(self, item: Item) -> None:
        """Have ``item`` sent after what waits."""
        self._ready.append(item)

    def put_later(self, item: Item, due: float) -> None:
        """Have ``item`` sent at ``due`` or later."""
        heapq.heappush(self._later, (due, next(self._numbers), item))

    @property
    def next_due(self) -> float:
        """Return when the next request that waits for a moment is ready."""
        return self._later[0][0] if self._later else float("inf")

    def take_all(self) -> list[Item]:
        """Take out whatever waits."""
        waiting = self.waiting()
        self._ready.clear()
        self._later.clear()
        return [item for item in waiting if item.batch.error is None]

    def waiting(self) -> list[Item]:
        """Return what is not on its way now."""
        return [*self._ready, *(item for _, _, item in self._later)]

    def unfinished(self) -> Iterator[Item]:
        """Yield the requests that have come to no end yet, waiting or not."""
        return (item for batch in self.batches for item in batch.items if not item.is_done)
