"""The limiter against simulated endpoints: time is computed, nothing waits."""

import heapq
import math
import random
from dataclasses import dataclass, field
from typing import Protocol

import pytest

from distillery.teacher.http.limiter import Bucket, Pace, Window

LATENCY_S = 0.05


@dataclass
class TokenBucketEndpoint:
    """Lets in ``rate`` per second, up to ``burst`` at once; says when to come back, or not."""

    rate: float
    burst: float
    retry_after: str
    level: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.burst

    def ask(self, now: float) -> tuple[bool, float | None]:
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level >= 1:
            self.level -= 1
            return True, None
        wait_s = (1 - self.level) / self.rate
        said = {"fraction": wait_s, "seconds": float(math.ceil(wait_s)), "nothing": None}
        return False, said[self.retry_after]


@dataclass
class MinuteWindowEndpoint:
    """Lets in ``most`` per minute of the clock."""

    most: int
    window: int = -1
    count: int = 0

    def ask(self, now: float) -> tuple[bool, float | None]:
        if int(now / 60) != self.window:
            self.window, self.count = int(now / 60), 0
        self.count += 1
        return self.count <= self.most, float(math.ceil(60 * (self.window + 1) - now))


@dataclass
class FickleEndpoint:
    """Refuses a part of all requests, however few there are."""

    part: float
    draw: random.Random = field(default_factory=lambda: random.Random(1))

    def ask(self, _: float) -> tuple[bool, float | None]:
        return self.draw.random() > self.part, 0.0


@dataclass
class EveryTenthEndpoint:
    """Refuses every tenth request, to come back ``retry_after_s`` later."""

    retry_after_s: float | None
    count: int = 0

    def ask(self, _: float) -> tuple[bool, float | None]:
        self.count += 1
        return self.count % 10 != 0, self.retry_after_s


@dataclass
class Outcome:
    seconds: float
    num_429: int
    rate: float | None
    most_in_flight: int


class Endpoint(Protocol):
    def ask(self, now: float) -> tuple[bool, float | None]:
        """Return whether a request is let in, and when to come back if not."""


def simulate(endpoint: Endpoint, rows: int, *, concurrency: int = 64) -> Outcome:
    """Ask for ``rows`` through window and pace as the channel does; 429s go back into the queue."""
    draw = random.Random(7)
    random.seed(7)  # of the pauses that the pace draws
    window, pace = Window(concurrency), Pace(None, 0.0)
    now, waiting, done, in_flight, num_429, most = 0.0, rows, 0, 0, 0, 0
    # When, and either a reply with the moment of its request, or the end of a wait.
    events: list[tuple[float, int, float | None, tuple[bool, float | None]]] = []
    wake_at = 0.0

    def at(moment: float, sent_at: float | None, reply: tuple[bool, float | None]) -> None:
        heapq.heappush(events, (moment, draw.getrandbits(60), sent_at, reply))

    while done < rows:
        while waiting and in_flight < window.size:
            if (wait_s := pace.wait_s(now)) > 0:
                if wake_at <= now:
                    wake_at = now + wait_s + 1e-6
                    at(wake_at, None, (True, None))
                break
            pace.take(now)
            waiting, in_flight = waiting - 1, in_flight + 1
            reply = endpoint.ask(now + 0.001)
            at(now + (LATENCY_S * draw.uniform(0.9, 1.2) if reply[0] else 0.003), now, reply)
        most = max(most, in_flight)
        now, _, sent_at, (is_let_in, retry_after_s) = heapq.heappop(events)
        if sent_at is None:
            waiting += not is_let_in  # a request has waited by itself
            wake_at = 0.0
            continue
        was_full = in_flight >= window.size
        in_flight -= 1
        if is_let_in:
            done += 1
            pace.accepted()
            if was_full:
                window.grow()
            continue
        num_429 += 1
        if pace.refused(retry_after_s, sent_at=sent_at, now=now):
            waiting += 1
            window.shrink(sent_at=sent_at, now=now)
        else:
            at(now + (0.25 if retry_after_s is None else retry_after_s), None, (False, None))
    return Outcome(now, num_429, pace.rate_per_s, most)


@pytest.mark.parametrize(
    ("retry_after_s", "concurrency"), [(0.0, 8), (0.04, 8), (0.04, 64), (None, 8)]
)
def test_429s_among_many_answers_cost_their_own_requests_and_no_others(
    retry_after_s: float | None, concurrency: int
) -> None:
    outcome = simulate(EveryTenthEndpoint(retry_after_s), 3000, concurrency=concurrency)
    without = simulate(TokenBucketEndpoint(1e6, 1e6, "nothing"), 3000, concurrency=concurrency)
    assert without.num_429 == 0
    assert outcome.num_429 == pytest.approx(333, abs=2)
    assert outcome.rate is None
    assert outcome.seconds <= 1.3 * without.seconds


@pytest.mark.parametrize("retry_after", ["fraction", "seconds", "nothing"])
@pytest.mark.parametrize(
    ("rate", "burst", "rows", "most_429s"), [(100, 100, 1500, 100), (100 / 60, 100, 300, 300)]
)
def test_unannounced_limit_is_learnt_and_used_up(
    retry_after: str, rate: float, burst: float, rows: int, most_429s: int
) -> None:
    outcome = simulate(TokenBucketEndpoint(rate, burst, retry_after), rows)
    ideal_s = (rows - burst) / rate
    assert outcome.seconds <= 1.08 * ideal_s
    assert outcome.num_429 <= most_429s
    assert outcome.rate == pytest.approx(rate, rel=0.25)


def test_minute_window_is_waited_for_and_its_rate_learnt() -> None:
    outcome = simulate(MinuteWindowEndpoint(500), 1500)
    assert outcome.num_429 <= 100
    assert outcome.seconds <= 1.15 * 120


@pytest.mark.parametrize(("part", "most_s"), [(0.05, 1.3), (0.33, 500)])
def test_refusals_that_no_pace_can_avoid_are_not_followed_down_to_nothing(
    part: float, most_s: float
) -> None:
    assert simulate(FickleEndpoint(part), 1000).seconds <= most_s


def test_pace_is_unlimited_before_the_first_429() -> None:
    outcome = simulate(TokenBucketEndpoint(1e6, 1e6, "seconds"), 2000)
    assert (outcome.num_429, outcome.rate, outcome.most_in_flight) == (0, None, 64)


def test_window_halves_once_per_round_trip_and_then_grows_by_one() -> None:
    window = Window(64)
    for _ in range(200):
        window.grow()
    assert window.size == 64
    window.shrink(sent_at=0.0, now=1.0)
    window.shrink(sent_at=0.5, now=1.1)  # sent before the decrease: tells nothing new
    assert window.size == 32
    window.shrink(sent_at=1.05, now=1.2)
    assert window.size == 16
    for _ in range(17):
        window.grow()
    assert window.size == 17


def test_window_never_falls_below_one() -> None:
    window = Window(4)
    for second in range(10):
        window.shrink(sent_at=float(second), now=float(second))
    assert window.size == 1


def test_told_rate_is_never_passed() -> None:
    pace = Pace(5.0, 0.0)
    sent, now = 0, 0.0
    while now < 100:
        if pace.wait_s(now) == 0:
            pace.take(now)
            sent += 1
        now += 0.01
    assert 5 * 100 * 0.98 <= sent <= 5 * 100 + 10


def test_nothing_accepted_between_two_429s_teaches_no_rate() -> None:
    pace = Pace(None, 0.0)
    for second in range(1, 6):
        assert pace.refused(None, sent_at=float(second), now=float(second))
    assert pace.rate_per_s is None
    assert 0 < pace.wait_s(5.0) <= 16


def test_bucket_waits_for_no_more_than_it_can_hold() -> None:
    bucket = Bucket(rate=2.0, capacity=4.0, level=0.0, at=0.0)
    assert bucket.wait_s(100.0, 0.0) == 2.0
    bucket.take(100.0, 2.0)
    assert bucket.wait_s(1.0, 2.0) == pytest.approx(48.5)
    bucket.take(-98.0, 2.0)  # it was less than expected
    assert bucket.wait_s(1.0, 2.0) == 0.0
