"""How fast an endpoint may be asked: configured, or learnt from its refusals.

The window bounds the requests in flight, the pace bounds requests per second, a bucket bounds
tokens per second. What the endpoint bears is found by asking for a little more until it objects.

Times are `time.monotonic()` seconds, given by the caller, so that tests need not wait.
"""

import collections
import dataclasses
import random

_FIRST_WINDOW = 64
_DECREASE = 0.5
_MAX_PAUSE_S = 30.0
_FIRST_PAUSE_S = 0.5
# A pause too short to tell the endpoint's pace from its burst teaches nothing.
_MIN_PAUSE_S = 0.25
_LEARN_FROM_S = 60.0
_LEARN_REQUESTS = 5
_GROWTH = 0.004  # of the learnt pace, times the square of the seconds since
_BURST_S = 1.0
# One 429 among many answers is about its own request; so many of the last ones are a limit.
_RECENT = 32
_LIMIT_FRACTION = 0.75
_FEWEST_RECENT = 16


class Window:
    """Requests in flight: additive increase, multiplicative decrease.

    Starts with 64, which costs an endpoint that bears less one round of refusals, and doubles per
    round trip until the endpoint objects for the first time or ``most`` is reached; then one more
    per round trip, and half as many at each objection.

    Source: Jacobson 1988, Congestion Avoidance and Control.

    >>> window = Window(256)
    >>> for _ in range(64): window.grow()
    >>> window.size
    128
    >>> window.shrink(sent_at=0.0, now=1.0)
    >>> window.size
    64
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._size = float(min(_FIRST_WINDOW, most))
        self._is_starting = True
        self._shrunk_at = float("-inf")

    @property
    def size(self) -> int:
        """Return how many requests may be in flight, at least 1."""
        return max(1, int(min(self._size, self.most)))

    def grow(self) -> None:
        """Note an answer that came while the window was full."""
        self._size = min(
            float(self.most), self._size + (1 if self._is_starting else 1 / self._size)
        )

    def shrink(self, *, sent_at: float, now: float) -> None:
        """Note an objection; requests sent before the last decrease tell nothing new."""
        if sent_at < self._shrunk_at:
            return
        self._size = max(1.0, min(self._size, self.most) * _DECREASE)
        self._is_starting = False
        self._shrunk_at = now


@dataclasses.dataclass
class Bucket:
    """A token bucket: ``rate`` per second, at most ``capacity`` saved up."""

    rate: float
    capacity: float
    level: float
    at: float

    def wait_s(self, amount: float, now: float) -> float:
        """Return the seconds until ``amount`` may be taken; more than fits waits for a full one."""
        self._fill(now)
        return max(0.0, (min(amount, self.capacity) - self.level) / self.rate)

    def take(self, amount: float, now: float) -> None:
        """Take ``amount``, below zero if need be; a negative amount gives back."""
        self._fill(now)
        self.level = min(self.capacity, self.level - amount)

    def _fill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + (now - self.at) * self.rate)
        self.at = now


class Pace:
    """Requests per second: as configured, or as learnt from 429s.

    Between two moments at which an endpoint's budget was empty, it has accepted exactly what its
    limit allows: that is the estimate, over the last minute. Before the first 429 there is no pace
    at all; after it, the estimate, raised slowly at first and faster the longer nothing is
    refused. Refusals count for half a request: an endpoint that refuses a part of all requests,
    however few there are, would else be followed down to nothing.

    Until three in four of the last replies are 429s, each delays its own request alone: servers
    with many workers, and gateways before several of them, refuse one now and then.
    """

    def __init__(self, told_per_s: float | None, now: float) -> None:
        self._told = told_per_s
        self._bucket: Bucket | None = None
        self._resume_at = now
        self._let_out = 0.0
        self._paused_at = float("-inf")
        # Moments of an empty budget, each with the requests that it was tried with until then.
        self._marks: collections.deque[tuple[float, float]] = collections.deque()
        self._pauses = 0
        self._learnt = 0.0
        self._learnt_at = now
        self._recent: collections.deque[bool] = collections.deque(maxlen=_RECENT)
        if told_per_s is not None:
            self._set_rate(told_per_s, now, level=max(1.0, told_per_s * _BURST_S))

    @property
    def rate_per_s(self) -> float | None:
        """Return the pace; None when nothing limits it."""
        return self._bucket.rate if self._bucket else None

    def wait_s(self, now: float) -> float:
        """Return the seconds until the next request may be sent."""
        pause_s = self._resume_at - now
        if pause_s > 0 or self._bucket is None:
            return max(0.0, pause_s)
        self._grow(self._bucket, now)
        return self._bucket.wait_s(1.0, now)

    def take(self, now: float) -> None:
        """Note that a request is sent."""
        if self._bucket is not None:
            self._bucket.take(1.0, now)

    def hold(self, wait_s: float, now: float) -> None:
        """Send nothing for so long: the endpoint has said that there is nothing left until then."""
        self._resume_at = max(self._resume_at, now + wait_s)

    def accepted(self) -> None:
        """Note that the endpoint let a request in, whatever became of it."""
        self._recent.append(False)
        self._let_out += 1
        self._pauses = 0

    def refused(self, retry_after_s: float | None, *, sent_at: float, now: float) -> bool:
        """Note a 429 and return whether all have to wait; if not, it is about one request."""
        self._recent.append(True)
        is_hint = retry_after_s is not None and retry_after_s < _MIN_PAUSE_S
        num_refused, num_recent = sum(self._recent), len(self._recent)
        is_clear = (
            num_refused >= _LIMIT_FRACTION * num_recent
            if num_recent >= _FEWEST_RECENT
            else num_refused == num_recent and not is_hint
        )
        if not (self._marks or is_clear):
            return False
        if sent_at < self._paused_at:  # it belongs to the 429 that began the pause
            return True
        self._paused_at = now
        if retry_after_s is None:
            retry_after_s = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2**self._pauses)
            retry_after_s *= random.uniform(0.5, 1)
        self._pauses += 1
        self._resume_at = now + max(_MIN_PAUSE_S, retry_after_s)
        self._let_out += 0.5
        self._marks.append((now, self._let_out))
        while len(self._marks) > 2 and self._marks[1][0] <= now - _LEARN_FROM_S:
            self._marks.popleft()
        elapsed_s, sent = now - self._marks[0][0], self._let_out - self._marks[0][1]
        if sent >= _LEARN_REQUESTS:
            self._set_rate(sent / elapsed_s, now, level=0.0)
        return True

    def _set_rate(self, rate: float, now: float, *, level: float) -> None:
        """Keep to ``rate`` from now on; what a pause saves up may be sent at its end."""
        if self._told is not None:
            rate = min(rate, self._told)
        capacity = max(1.0, rate * max(_BURST_S, self._resume_at - now))
        self._bucket = Bucket(rate, capacity, min(level, capacity), now)
        self._learnt, self._learnt_at = rate, now

    def _grow(self, bucket: Bucket, now: float) -> None:
        """Ask for a little more: limits are raised, and other clients leave."""
        most = self._told if self._told is not None else float("inf")
        waited_s = max(0.0, now - max(self._learnt_at, self._resume_at))
        bucket.rate = min(most, self._learnt * (1 + _GROWTH * waited_s**2))
        bucket.capacity = max(bucket.capacity, bucket.rate * _BURST_S)
