"""When the next request may be sent, and how many may be on their way."""

import time

from distillery.teacher.http.limiter import Bucket, Latencies, Pace, Window
from distillery.teacher.http.outage import Outage
from distillery.teacher.http.replies import PassingFault, RateLimited
from schemas.teacher import OpenAITeacher

_OVERLOADED = (503, 529)
# How long the first request goes alone: a wrong key is refused at once, and an endpoint that takes
# its time is at work and need not be waited for.
_REFUSED_WITHIN_S = 0.2
_CHARS_PER_TOKEN = 4.0
_MEMORY = 0.05


class Gate:
    """Keeps to all limits, configured and learnt, and records what became of each request."""

    def __init__(self, spec: OpenAITeacher, *, backoff_s: float) -> None:
        now = time.monotonic()
        self._spec = spec
        self._window = Window(spec.concurrency)
        self.pace = Pace(spec.requests_per_minute and spec.requests_per_minute / 60, now)
        self._latencies = Latencies(spec.timeout_s)
        self.outage = Outage(spec.max_outage_s, 2 * backoff_s)
        self._tokens: Bucket | None = None
        if spec.tokens_per_minute is not None:
            per_s = spec.tokens_per_minute / 60
            self._tokens = Bucket(per_s, per_s, per_s, now)
        self._mean_tokens: float | None = None
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
        return self._window.size if self.is_heard or is_at_work else 1

    def wait_s(self, tokens: float, now: float) -> float:
        """Return the seconds until a request of so many expected ``tokens`` may be sent."""
        wait_s = max(self.outage.wait_s(in_flight=self.in_flight, now=now), self.pace.wait_s(now))
        return max(wait_s, self._tokens.wait_s(tokens, now)) if self._tokens else wait_s

    def expected_tokens(self, num_chars: int, max_new_tokens: int) -> float:
        """Return how many tokens a request is expected to take."""
        if self._mean_tokens is not None:
            return self._mean_tokens
        return num_chars / _CHARS_PER_TOKEN + max_new_tokens

    def timeout_s(self, failures: int) -> float:
        """Return how long to wait for a response to a request that has failed so often."""
        is_last = failures + 1 >= self._spec.max_attempts
        return self._latencies.timeout_s(attempt=failures + 1, last=is_last)

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

    def note_response(self, latency_s: float, tokens: int, *, was_full: bool) -> None:
        """Note what a response took; ``was_full``: as many as allowed were in flight with it."""
        self._latencies.add(latency_s)
        old = self._mean_tokens if self._mean_tokens is not None else float(tokens)
        self._mean_tokens = old + _MEMORY * (tokens - old)
        if was_full:
            self._window.grow()

    def note_limit(self, error: RateLimited, sent_at: float, now: float) -> tuple[bool, float]:
        """Note a 429; return whether all wait, and the seconds for which nothing has come in."""
        self.is_heard = True
        self.num_429 += 1
        all_wait = self.pace.refused(error.retry_after_s, sent_at=sent_at, now=now)
        if all_wait:
            self._window.shrink(sent_at=sent_at, now=now)
        self._limited_since = self._limited_since or sent_at
        return all_wait, max(error.retry_after_s or 0.0, now - self._limited_since)

    def note_fault(self, error: PassingFault, sent_at: float, now: float) -> None:
        """Note an attempt that failed."""
        if error.status is not None:
            self.is_heard = True
            self.pace.accepted()
        timed_out = isinstance(error.__cause__, TimeoutError)
        is_slow = timed_out and now - sent_at >= self._spec.timeout_s
        if error.status in _OVERLOADED or is_slow:
            self._window.shrink(sent_at=sent_at, now=now)
