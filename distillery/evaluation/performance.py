"""Speed and memory: the models in turn on the same rows, in one process, on one machine.

Whatever drifts over minutes (a clock that throttles, a neighbour on the machine) hits every model
alike, because they alternate row by row and batch by batch.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from schemas.comparison import ModelRole, Performance
from schemas.evaluation import EvaluationSpec

Conversation = list[dict[str, str]]


class TimedAnswer(Protocol):
    """What is read of an answer while the clock runs."""

    @property
    def completion_tokens(self) -> int | None:
        """New tokens of the answer; None where nobody counted them."""


class AnsweringModel(Protocol):
    """A model that answers conversations, greedily, and returns when all are answered."""

    def answer(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, batch_size: int
    ) -> Sequence[TimedAnswer | None]:
        """Return the answers in order; None where there is none."""


@dataclass(frozen=True)
class Contestant:
    """A model, and how its throughput is measured."""

    model: AnsweringModel
    batch_size: int
    """Rows that it is given at once."""

    warm_batch: bool = True
    """Whether one batch goes before the clock counts, so that memory for it is there. A hosted
    model has its memory already, and its answers cost money."""


@dataclass
class _Tally:
    """Rows, tokens and seconds so far."""

    rows: int = 0
    tokens: int | None = 0
    seconds: float = 0.0

    def count(self, tokens: int | None) -> None:
        """Add the tokens of one answer; one that is not counted leaves the sum unknown."""
        self.tokens = None if tokens is None or self.tokens is None else self.tokens + tokens


Clock = Callable[[], float]


def measure_performance(
    contestants: Mapping[ModelRole, Contestant],
    conversations: Sequence[Conversation],
    evaluation: EvaluationSpec,
    *,
    clock: Clock = time.perf_counter,
) -> dict[ModelRole, Performance]:
    """Return the speed of every model: latency at batch size 1, then throughput in batches.

    Args:
        contestants: The models, already loaded. All stay in memory together, as they alternate.
        conversations: Prompts; the first `latency_rows` and `throughput_rows` of them are timed.
        evaluation: Rows, warm-up and limits.
        clock: Monotonic seconds.

    Returns:
        By role. A figure is None where no row was answered.
    """
    latencies = _latencies(contestants, conversations, evaluation, clock)
    tallies = _throughput(contestants, conversations, evaluation, clock)
    return {role: _performance(latencies[role], tallies[role]) for role in contestants}


def rows_to_time(evaluation: EvaluationSpec) -> int:
    """Return how many rows `measure_performance` can make use of."""
    latency_rows = evaluation.latency_rows + evaluation.latency_warmup
    return max(latency_rows, evaluation.throughput_rows)


def nearest_rank(values: Sequence[float], fraction: float) -> float:
    """Return the smallest value that at least ``fraction`` of all values do not exceed.

    >>> nearest_rank([4.0, 1.0, 3.0, 2.0], 0.95), nearest_rank([4.0, 1.0, 3.0, 2.0], 0.5)
    (4.0, 2.0)
    """
    ordered = sorted(values)
    rank = -int(-fraction * len(ordered) // 1)  # rounded up
    return ordered[max(rank, 1) - 1]


def _performance(latencies: Sequence[float], tally: _Tally) -> Performance:
    timed = tally.rows > 0 and tally.seconds > 0
    return Performance(
        latency_p50_s=statistics.median(latencies) if latencies else None,
        latency_p95_s=nearest_rank(latencies, 0.95) if latencies else None,
        latency_rows=len(latencies),
        queries_per_hour=tally.rows / tally.seconds * 3600 if timed else None,
        tokens_per_s=tally.tokens / tally.seconds if timed and tally.tokens is not None else None,
        throughput_rows=tally.rows,
    )


def _latencies(
    contestants: Mapping[ModelRole, Contestant],
    conversations: Sequence[Conversation],
    evaluation: EvaluationSpec,
    clock: Clock,
) -> dict[ModelRole, list[float]]:
    """Return the seconds of every answered row; who comes first changes from row to row."""
    timed = conversations[: evaluation.latency_rows]
    # The warm-up takes other rows where there are some: a server that keeps prefixes would answer
    # a row that it has just seen faster.
    others = conversations[len(timed) :] or conversations
    latencies: dict[ModelRole, list[float]] = {role: [] for role in contestants}

    def ask(role: ModelRole, row: Conversation) -> tuple[bool, float]:
        start = clock()
        answers = contestants[role].model.answer(
            [row], max_new_tokens=evaluation.max_new_tokens, batch_size=1
        )
        return answers[0] is not None, clock() - start

    for row in _cycled(others, evaluation.latency_warmup):
        for role in contestants:
            ask(role, row)
    for number, row in enumerate(timed):
        for role in _rotated(list(contestants), number):
            answered, seconds = ask(role, row)
            if answered:
                latencies[role].append(seconds)
    return latencies


def _throughput(
    contestants: Mapping[ModelRole, Contestant],
    conversations: Sequence[Conversation],
    evaluation: EvaluationSpec,
    clock: Clock,
) -> dict[ModelRole, _Tally]:
    """Return rows, tokens and seconds by model; each takes its next batch in turn."""
    timed = conversations[: evaluation.throughput_rows]
    tallies: dict[ModelRole, _Tally] = {role: _Tally() for role in contestants}

    def ask(role: ModelRole, first: int) -> tuple[Sequence[TimedAnswer | None], float]:
        size = contestants[role].batch_size
        start = clock()
        answers = contestants[role].model.answer(
            timed[first : first + size], max_new_tokens=evaluation.max_new_tokens, batch_size=size
        )
        return answers, clock() - start

    for role, contestant in contestants.items():
        if contestant.warm_batch:
            ask(role, 0)
    turn = 0
    while waiting := [r for r, c in contestants.items() if turn * c.batch_size < len(timed)]:
        for role in _rotated(waiting, turn):
            answers, seconds = ask(role, turn * contestants[role].batch_size)
            answered = [answer for answer in answers if answer is not None]
            tallies[role].rows += len(answered)
            for answer in answered:
                tallies[role].count(answer.completion_tokens)
            tallies[role].seconds += seconds
        turn += 1
    return tallies


def _rotated(roles: Sequence[ModelRole], turn: int) -> list[ModelRole]:
    """Return ``roles`` beginning with another one each turn."""
    first = turn % len(roles)
    return [*roles[first:], *roles[:first]]


def _cycled(rows: Sequence[Conversation], count: int) -> list[Conversation]:
    return [rows[number % len(rows)] for number in range(count)]
