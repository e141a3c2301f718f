"""A circuit breaker: tells a request that fails from an endpoint that is down.

Times are `time.monotonic()` seconds, given by the caller.
"""

_TRIPS = 8
_FEWEST = 3
_MAX_PAUSE_S = 30.0


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
        """Begin to count anew."""
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
