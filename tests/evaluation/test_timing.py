from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from distillery.evaluation.protocol import Answered, Conversation, Opened
from distillery.evaluation.timing import time_models
from schemas.comparison import Load, Performance
from schemas.evaluation import EvaluationSpec


@dataclass
class Clock:
    """Seconds that pass only when a model answers."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class TimedModel:
    """Takes ``seconds`` per call, then ``growth`` more, for two tokens; notes every call."""

    name: str
    clock: Clock
    calls: list[tuple[str, list[str], int]]
    seconds: float = 1.0
    growth: float = 0.0
    per_row: float = 0.0
    fails_on: frozenset[str] = field(default_factory=frozenset)

    def answer(self, conversations: Sequence[Conversation], concurrency: int) -> list[Answered]:
        rows = [conversation[0]["content"] for conversation in conversations]
        self.calls.append((self.name, rows, concurrency))
        self.clock.now += self.seconds + self.per_row * len(rows)
        self.seconds += self.growth
        return [
            Answered(None if row in self.fails_on else "yes", False, 5, 2, first_token_s=0.25)
            for row in rows
        ]


EVALUATION = EvaluationSpec(
    latency_rows=5, latency_warmup=2, throughput_rows=8, concurrencies=(4, 1), max_new_tokens=9
)


def conversations(count: int) -> list[Conversation]:
    return [[{"role": "user", "content": f"row {number}"}] for number in range(count)]


def measured(
    *,
    rows: int = 12,
    fails_on: frozenset[str] = frozenset(),
    evaluation: EvaluationSpec = EVALUATION,
    per_row: float = 0.0,
    **teacher_is: Any,
) -> tuple[dict[str, Performance], list[tuple[str, list[str], int]]]:
    clock = Clock()
    calls: list[tuple[str, list[str], int]] = []
    teacher = TimedModel("teacher", clock, calls, 3.0, per_row=per_row, fails_on=fails_on)
    student = TimedModel("student", clock, calls)
    contestants = {
        "teacher": Opened(teacher.answer, **teacher_is),
        "student": Opened(student.answer),
    }
    found = time_models(contestants, conversations(rows), evaluation, clock=clock)
    return found, calls


def concurrencies(**measured_how: Any) -> list[int]:
    """Return at how many requests at once the teacher was measured."""
    found, _ = measured(**measured_how)
    return [load.concurrency for load in found["teacher"].loads]


def test_models_alternate_row_by_row_and_who_is_first_rotates() -> None:
    _, calls = measured()
    single = [(name, rows[0]) for name, rows, size in calls if size == 1]
    warmup, timed = single[:4], single[4:]
    assert warmup == [
        ("teacher", "row 5"),
        ("student", "row 5"),
        ("teacher", "row 6"),
        ("student", "row 6"),
    ]
    assert timed == [
        ("teacher", "row 0"),
        ("student", "row 0"),
        ("student", "row 1"),
        ("teacher", "row 1"),
        ("teacher", "row 2"),
        ("student", "row 2"),
        ("student", "row 3"),
        ("teacher", "row 3"),
        ("teacher", "row 4"),
        ("student", "row 4"),
    ]


def test_batches_alternate_after_one_uncounted_batch_each() -> None:
    found, calls = measured()
    batches = [(name, rows[0]) for name, rows, size in calls if size == 4]
    assert batches == [
        ("teacher", "row 0"),
        ("student", "row 0"),
        ("teacher", "row 0"),
        ("student", "row 0"),
        ("student", "row 4"),
        ("teacher", "row 4"),
    ]
    assert found["teacher"].loads[1].num_rows == 8


def test_a_served_model_is_given_everything_at_once_and_nothing_before_the_clock_counts() -> None:
    found, calls = measured(is_served=True)
    batches = [(name, rows[0], len(rows)) for name, rows, size in calls if size == 4]
    assert batches == [
        ("student", "row 0", 4),
        ("teacher", "row 0", 8),
        ("student", "row 0", 4),
        ("student", "row 4", 4),
    ]
    assert found["teacher"].queries_per_hour == 8 / 3 * 3600


def test_figures_are_the_hand_computed_ones() -> None:
    found, _ = measured()
    one = Load(concurrency=1, queries_per_hour=1200.0, latency_p95_s=3.0, num_rows=5)
    four = Load(concurrency=4, queries_per_hour=4800.0, latency_p95_s=3.0, num_rows=8)
    assert found["teacher"] == Performance(
        latency_p50_s=3.0,
        latency_p95_s=3.0,
        latency_p99_s=3.0,
        first_token_p50_s=0.25,
        latency_rows=5,
        queries_per_hour=4800.0,
        loads=(one, four),
        tokens_per_s=16 / 6,
        prompt_tokens=5.0,
        new_tokens=2.0,
    )
    assert found["student"].queries_per_hour == 8 / 2 * 3600


def test_throughput_is_tried_up_to_where_it_stops_growing() -> None:
    more = EVALUATION.model_copy(update={"concurrencies": (1, 2, 4, 8), "throughput_rows": 64})
    # 3 s per call: every doubling of the batch doubles the rate.
    assert concurrencies(rows=64, evaluation=more) == [1, 2, 4, 8]
    # 60 s per row besides: 3 + 60 n seconds for n rows grow by 2.4 % at the first doubling.
    found, calls = measured(rows=64, evaluation=more, per_row=60.0)
    teacher = found["teacher"]
    assert [load.concurrency for load in teacher.loads] == [1, 2]
    assert teacher.queries_per_hour == teacher.loads[1].queries_per_hour
    assert not any(name == "teacher" and size > 2 for name, _, size in calls)


def test_a_concurrency_gets_eight_batches_at_most() -> None:
    many = EVALUATION.model_copy(update={"throughput_rows": 256})
    found, _ = measured(rows=256, evaluation=many)
    assert found["student"].loads[1].num_rows == 32


def test_nobody_is_measured_at_more_requests_than_it_takes_or_there_are_rows() -> None:
    several = EVALUATION.model_copy(update={"concurrencies": (1, 2, 100)})
    assert concurrencies(evaluation=several) == [1, 2, 8]
    assert concurrencies(evaluation=several, max_concurrency=3) == [1, 2, 3]
    assert concurrencies(evaluation=several, max_concurrency=1) == [1]


def test_the_time_that_a_request_took_by_itself_is_its_latency() -> None:
    def answer(rows: Sequence[Conversation], _: int) -> list[Answered]:
        clock.now += 10.0
        return [Answered("yes", False, 5, 2, latency_s=1.0 + number) for number in range(len(rows))]

    clock = Clock()
    opened = {"teacher": Opened(answer, is_served=True)}
    found = time_models(opened, conversations(8), EVALUATION, clock=clock)["teacher"]
    assert found.latency_p50_s == 1.0
    assert found.loads[1].latency_p95_s == 8.0
    assert found.loads[1].queries_per_hour == 8 / 10 * 3600


def test_rows_that_got_no_answer_are_not_timed_as_fast_ones() -> None:
    found, _ = measured(fails_on=frozenset({"row 0", "row 1"}))
    assert found["teacher"].latency_rows == 3
    assert found["teacher"].loads[1].num_rows == 6


def test_a_model_that_never_answers_has_no_figures() -> None:
    found, _ = measured(fails_on=frozenset(f"row {number}" for number in range(12)))
    assert found["teacher"] == Performance()


def test_few_rows_are_enough() -> None:
    found, _ = measured(rows=2)
    assert found["student"].latency_rows == 2
    assert [(load.concurrency, load.num_rows) for load in found["student"].loads] == [
        (1, 2),
        (2, 2),
    ]


@pytest.mark.parametrize(("count", "rank"), [(5, 5), (19, 19), (20, 19), (30, 29), (100, 95)])
def test_p95_is_the_nearest_rank(count: int, rank: int) -> None:
    clock = Clock()
    model = TimedModel("model", clock, [], growth=1.0)
    evaluation = EVALUATION.model_copy(update={"latency_rows": count, "latency_warmup": 1})
    found = time_models(
        {"model": Opened(model.answer)}, conversations(count), evaluation, clock=clock
    )
    assert found["model"].latency_p95_s == 1.0 + rank  # the warm-up took 1.0
    assert found["model"].latency_p99_s == 1.0 + max(rank, round(0.99 * count))
