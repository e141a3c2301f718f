"""When the next request may be sent, and how many may be on their way."""

import time

from distillery.teacher.http.limiter import Bucket, Pace, Window
from distillery.teacher.http.replies import PassingFault, RateLimited
from schemas.teacher import OpenAITeacher

_OVERLOADED = (503, 529)
# How long the first request goes alone: a wrong key is refused at once, and an endpoint that takes
# its time is at work and need not be waited for.
_REFUSED_WITHIN_S = 0.2
_TRIPS = 8
_FEWEST = 3
_MAX_PAUSE_S = 30.0


class Gate:
    """Keeps to all limits, configured and learnt, and records what became of each request."""

    def __init__(self, spec: OpenAITeacher, *, backoff_s: float) -> None:
        now = time.monotonic()
        self.window = Window(spec.concurrency)
        self.pace = Pace(spec.requests_per_minute and spec.requests_per_minute / 60, now)
        self.outage = Outage(spec.max_outage_s, 2 * backoff_s)
        self._tokens: Bucket | None = None
        if spec.tokens_per_minute is not None:
            per_s = spec.tokens_per_minute / 60
            self._tokens = Bucket(per_s, per_s, per_s, now)
        self._first_sent_at = float("inf")
        self._limited_since: float | None = None
        self.is_heard = False
        """Whether the endpoint has replied anything at all."""
        self.in_flight = 0
        self.num_429 = 0

    @property
    def limit(self) -> int:
        """Return how many requests may be in flight: one until the endpoint is heard of."""
        is_at_work = time.monotonic() - self._first_sent_at >= _REFUSED_WITHIN_S
        return self.window.size if self.is_heard or is_at_work else 1

    def wait_s(self, tokens: float, now: float) -> float:
        """Return the seconds until a request of so many expected ``tokens`` may be sent."""
        wait_s = max(self.outage.wait_s(in_flight=self.in_flight, now=now), self.pace.wait_s(now))
        return max(wait_s, self._tokens.wait_s(tokens, now)) if self._tokens else wait_s

    def enter(self, tokens: float, now: float) -> float | None:
        """Let a request through; for the first one, return after how long to look again."""
        self.in_flight += 1
        self.pace.take(now)
        if self._tokens is not None:
            self._tokens.take(tokens, now)
        if self._first_sent_at < now:
            return None
        self._first_sent_at = now
        return 1.01 * _REFUSED_WITHIN_S

    def leave(self, *, expected: float, tokens: float) -> None:
        """Note that a request is dealt with; it took so many tokens instead of those expected."""
        self.in_flight -= 1
        if self._tokens is not None:
            self._tokens.take(tokens - expected, time.monotonic())

    def note_answer(self, used_up_s: float | None) -> None:
        """Note a reply to what was asked, refusals included."""
        self.is_heard, self._limited_since = True, None
        self.pace.accepted()
        self.outage.answered()
        if used_up_s is not None:
            self.pace.hold(used_up_s, time.monotonic())

    def note_limit(self, error: RateLimited, sent_at: float, now: float) -> tuple[bool, float]:
        """Note a 429; return whether all wait, and the seconds for which nothing has come in."""
        self.is_heard = True
        self.num_429 += 1
        all_wait = self.pace.refused(error.retry_after_s, sent_at=sent_at, now=now)
        if all_wait:
            self.window.shrink(sent_at=sent_at, now=now)
        self._limited_since = self._limited_since or sent_at
        return all_wait, max(error.retry_after_s or 0.0, now - self._limited_since)

    def note_fault(self, error: PassingFault, sent_at: float, now: float) -> None:
        """Note an attempt that failed."""
        if error.status is not None:
            self.is_heard = True
            self.pace.accepted()
        if error.status in _OVERLOADED or isinstance(error.__cause__, TimeoutError):
            self.window.shrink(sent_at=sent_at, now=now)


class Outage:
    """Counts failures with not one answer between them.

    After eight in a row (one, while the endpoint was never heard of) one request at a time is
    sent, with growing pauses between them, until one is answered or the endpoint has been away
    for ``longest_s``: then the run should end.

    >>> outage = Outage(longest_s=120.0, first_pause_s=1.0)
    >>> outage.answered()
    >>> for second in range(8): outage.failed(sent_at=float(second), now=second + 0.5)
    >>> outage.wait_s(in_flight=0, now=7.5), outage.is_over(8.0), outage.is_over(121.0)
    (1.0, False, True)
    >>> outage.answered()
    >>> outage.wait_s(in_flight=5, now=7.5)
    0.0
    """

    def __init__(self, longest_s: float, first_pause_s: float) -> None:
        self._longest_s, self._first_pause_s = longest_s, first_pause_s
        self._was_there = False
        self.failures = 0
        self._since = 0.0
        self._pause_s = first_pause_s
        self._resume_at = 0.0

    def answered(self) -> None:
        """Note an answer of whatever kind but the endpoint's own failure."""
        self._was_there = True
        self.reset()

    def reset(self) -> None:
        """Start counting again."""
        self.failures, self._pause_s = 0, self._first_pause_s

    def failed(self, *, sent_at: float, now: float) -> None:
        """Note a request that the endpoint did not answer, or answered with its own failure."""
        if self.failures == 0:
            self._since = sent_at
        self.failures += 1
        if self.is_open and now >= self._resume_at:
            self._resume_at = now + self._pause_s
            self._pause_s = min(_MAX_PAUSE_S, 2 * self._pause_s)

    @property
    def is_open(self) -> bool:
        """Return whether requests go one at a time now."""
        return self.failures >= (_TRIPS if self._was_there else 1)

    def wait_s(self, *, in_flight: int, now: float) -> float:
        """Return the seconds until the next request may be sent; infinity: not before an answer."""
        if not self.is_open:
            return 0.0
        return float("inf") if in_flight else max(0.0, self._resume_at - now)

    def is_over(self, now: float) -> bool:
        """Return whether the endpoint has been away for longer than is worth waiting."""
        fewest = _FEWEST if self._was_there else 1
        return self.failures >= fewest and now - self._since > self._longest_s
