from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from distillery.evaluation.contestants import Answered, Conversation, Opened
from distillery.evaluation.performance import time_models
from schemas.comparison import Performance
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
    fails_on: frozenset[str] = field(default_factory=frozenset)

    def answer(self, conversations: Sequence[Conversation], batch_size: int) -> list[Answered]:
        rows = [conversation[0]["content"] for conversation in conversations]
        self.calls.append((self.name, rows, batch_size))
        self.clock.now += self.seconds
        self.seconds += self.growth
        return [Answered(None if row in self.fails_on else "yes", False, 5, 2) for row in rows]


EVALUATION = EvaluationSpec(
    latency_rows=5, latency_warmup=2, throughput_rows=8, throughput_batch_size=4, max_new_tokens=9
)


def conversations(count: int) -> list[Conversation]:
    return [[{"role": "user", "content": f"row {number}"}] for number in range(count)]


def measured(
    *, rows: int = 12, fails_on: frozenset[str] = frozenset(), batch_sizes: tuple[int, ...] = (4, 4)
) -> tuple[dict[str, Performance], list[tuple[str, list[str], int]]]:
    clock = Clock()
    calls: list[tuple[str, list[str], int]] = []
    teacher = TimedModel("teacher", clock, calls, seconds=3.0, fails_on=fails_on)
    student = TimedModel("student", clock, calls)
    contestants = {
        "teacher": Opened(teacher.answer, batch_sizes[0]),
        "student": Opened(student.answer, batch_sizes[1]),
    }
    found = time_models(contestants, conversations(rows), EVALUATION, clock=clock)
    return found, calls


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
    assert found["teacher"].throughput_rows == 8


def test_figures_are_the_hand_computed_ones() -> None:
    found, _ = measured()
    assert found["teacher"] == Performance(
        latency_p50_s=3.0,
        latency_p95_s=3.0,
        latency_rows=5,
        queries_per_hour=8 / 6 * 3600,
        tokens_per_s=16 / 6,
        throughput_rows=8,
        prompt_tokens=5.0,
    )
    assert found["student"].queries_per_hour == 8 / 2 * 3600


def test_a_model_with_larger_batches_still_answers_every_row_once() -> None:
    found, calls = measured(batch_sizes=(8, 3))
    assert found["teacher"].throughput_rows == found["student"].throughput_rows == 8
    student = [rows for name, rows, size in calls if name == "student" and size == 3]
    assert [len(rows) for rows in student] == [3, 3, 3, 2]  # the first one warms up


def test_rows_that_got_no_answer_are_not_timed_as_fast_ones() -> None:
    found, _ = measured(fails_on=frozenset({"row 0", "row 1"}))
    assert found["teacher"].latency_rows == 3
    assert found["teacher"].throughput_rows == 6


def test_a_model_that_never_answers_has_no_figures() -> None:
    found, _ = measured(fails_on=frozenset(f"row {number}" for number in range(12)))
    assert found["teacher"] == Performance()


def test_few_rows_are_enough() -> None:
    found, _ = measured(rows=2)
    assert found["student"].latency_rows == 2
    assert found["student"].throughput_rows == 2


@pytest.mark.parametrize(("count", "rank"), [(5, 5), (19, 19), (20, 19), (30, 29), (100, 95)])
def test_p95_is_the_nearest_rank(count: int, rank: int) -> None:
    clock = Clock()
    model = TimedModel("model", clock, [], growth=1.0)
    evaluation = EVALUATION.model_copy(update={"latency_rows": count, "latency_warmup": 1})
    contestants = {"model": Opened(model.answer, 4)}
    found = time_models(contestants, conversations(count), evaluation, clock=clock)
    assert found["model"].latency_p95_s == 1.0 + rank  # the warm-up took 1.0
