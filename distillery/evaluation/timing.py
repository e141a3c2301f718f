"""Speed of several models: latency one by one, then throughput under load, all of them in turn.

Whatever drifts over minutes (a clock that throttles, a neighbour on the machine) hits every model
alike, because they alternate row by row and batch by batch. So all are in memory together.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from distillery.evaluation.protocol import Answered, Conversation, Opened
from schemas.comparison import Load, Performance
from schemas.evaluation import EvaluationSpec

_BATCHES = 8  # at one concurrency; of a served model the requests come as places become free
_LEAST_GROWTH = 1.05

Clock = Callable[[], float]


@dataclasses.dataclass
class Timed:
    """What a model answered at one concurrency, and how long that took."""

    concurrency: int
    answers: list[Answered] = dataclasses.field(default_factory=list)
    """Without those that were declined."""
    latencies_s: list[float] = dataclasses.field(default_factory=list)
    """Of each answer."""
    seconds: float = 0.0

    def ask(self, one: Opened, rows: Sequence[Conversation], clock: Clock) -> None:
        """Add the answers of ``one`` to ``rows``."""
        start = clock()
        answers = one.answer(rows, self.concurrency)
        seconds = clock() - start
        self.seconds += seconds
        for answer in answers:
            if answer.response is not None:
                self.answers.append(answer)
                own = answer.latency_s
                self.latencies_s.append(seconds if own is None else own)

    @property
    def queries_per_hour(self) -> float:
        """Return the answers per hour, 0 without any."""
        return len(self.answers) / self.seconds * 3600 if self.answers else 0.0

    def mean(self, counts: Callable[[Answered], int | None]) -> float | None:
        """Return the mean of a number of tokens; None where some answer does not tell."""
        known = [count for answer in self.answers if (count := counts(answer)) is not None]
        return statistics.mean(known) if known and len(known) == len(self.answers) else None

    def load(self) -> Load:
        """Return the figures of so many answers, at least one."""
        return Load(
            concurrency=self.concurrency,
            queries_per_hour=self.queries_per_hour,
            latency_p95_s=nearest_rank(self.latencies_s, 0.95),
            num_rows=len(self.answers),
        )


def time_models(
    contestants: Mapping[str, Opened],
    conversations: Sequence[Conversation],
    evaluation: EvaluationSpec,
    *,
    clock: Clock = time.perf_counter,
) -> dict[str, Performance]:
    """Return the speed of every model: latency at batch size 1, then throughput under load.

    Args:
        contestants: The models, already loaded.
        conversations: Prompts; the first `latency_rows` and `throughput_rows` of them are timed.
        evaluation: Rows, warm-up and concurrencies.
        clock: Monotonic seconds.

    Returns:
        By name. A figure is None where no row was answered.
    """
    single = _one_by_one(contestants, conversations, evaluation, clock)
    rows = conversations[: evaluation.throughput_rows]
    levels = {name: _levels(one, len(rows), evaluation) for name, one in contestants.items()}
    loads = {name: [single[name]] if 1 in levels[name] else [] for name in contestants}
    for level in sorted(set().union(*levels.values()) - {1}):
        growing = [name for name in contestants if level in levels[name] and _grows(loads[name])]
        found = _at_once(level, {name: contestants[name] for name in growing}, rows, clock)
        for name, timed in found.items():
            loads[name].append(timed)
    return {name: _performance(single[name], loads[name]) for name in contestants}


def _levels(one: Opened, num_rows: int, evaluation: EvaluationSpec) -> set[int]:
    """Return at how many requests at once a model is measured: not at more than there are."""
    most = min(num_rows, one.max_concurrency or num_rows)
    return {min(level, most) for level in evaluation.concurrencies}


def _grows(loads: Sequence[Timed]) -> bool:
    """Return whether the last throughput was still worth it."""
    rates = [load.queries_per_hour for load in loads]
    return len(rates) < 2 or rates[-1] >= _LEAST_GROWTH * max(rates[:-1])


def _performance(single: Timed, loads: Sequence[Timed]) -> Performance:
    latencies_s = single.latencies_s
    answered = [load for load in loads if load.answers]
    best = max(answered, key=lambda load: load.queries_per_hour, default=None)
    new_tokens = best.mean(lambda answer: answer.new_tokens) if best else None
    first_tokens = [a.first_token_s for a in single.answers if a.first_token_s is not None]
    return Performance(
        latency_p50_s=statistics.median(latencies_s) if latencies_s else None,
        latency_p95_s=nearest_rank(latencies_s, 0.95) if latencies_s else None,
        latency_p99_s=nearest_rank(latencies_s, 0.99) if latencies_s else None,
        first_token_p50_s=statistics.median(first_tokens) if first_tokens else None,
        latency_rows=len(latencies_s),
        queries_per_hour=best.queries_per_hour if best else None,
        loads=tuple(load.load() for load in answered),
        tokens_per_s=new_tokens * best.queries_per_hour / 3600
        if best and new_tokens is not None
        else None,
        prompt_tokens=best.mean(lambda answer: answer.prompt_tokens) if best else None,
        new_tokens=new_tokens,
    )


def nearest_rank(values: Sequence[float], share: float) -> float:
    """Return the least value that so large a share of all values does not exceed.

    >>> nearest_rank([5.0, 1.0, 3.0, 2.0, 4.0], 0.5)
    3.0
    """
    return float(np.quantile(values, share, method="inverted_cdf"))


def _one_by_one(
    contestants: Mapping[str, Opened],
    conversations: Sequence[Conversation],
    evaluation: EvaluationSpec,
    clock: Clock,
) -> dict[str, Timed]:
    """Return what was answered one by one; who comes first changes from row to row."""
    timed = conversations[: evaluation.latency_rows]
    # The warm-up takes other rows where there are some: a server that keeps prefixes would answer
    # a row that it has just seen faster.
    others = conversations[len(timed) :] or conversations
    found = {name: Timed(1) for name in contestants}
    for row in itertools.islice(itertools.cycle(others), evaluation.latency_warmup):
        for one in contestants.values():
            one.answer([row], 1)
    for number, row in enumerate(timed):
        for name in _rotated(list(contestants), number):
            found[name].ask(contestants[name], [row], clock)
    return found


def _at_once(
    level: int,
    contestants: Mapping[str, Opened],
    rows: Sequence[Conversation],
    clock: Clock,
) -> dict[str, Timed]:
    """Return what was answered at one concurrency, the same whole batches by all.

    One batch goes before the clock counts, so that memory for it is there. A served model has its
    memory already, and costs money; it is given everything at once, as it would idle at the end of
    every batch.
    """
    rows = rows[: level * min(_BATCHES, len(rows) // level)]
    found = {name: Timed(level) for name in contestants}
    for one in contestants.values():
        if not one.is_served:
            one.answer(rows[:level], level)
    for turn, start in enumerate(range(0, len(rows), level)):
        for name in _rotated(list(contestants), turn):
            if not contestants[name].is_served:
                found[name].ask(contestants[name], rows[start : start + level], clock)
            elif start == 0:
                found[name].ask(contestants[name], rows, clock)
    return found


def _rotated(names: Sequence[str], turn: int) -> list[str]:
    """Return ``names`` beginning with another one each turn."""
    first = turn % max(1, len(names))
    return [*names[first:], *names[:first]]
