"""The stage that measures speed and size: the contestants in turn, in one process, on one machine.

Whatever drifts over minutes (a clock that throttles, a neighbour on the machine) hits every model
alike, because they alternate row by row and batch by batch. So all are in memory together.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from distillery.evaluation.answers import answers_stage, count_questions, questions
from distillery.evaluation.contestants import Answered, Conversation, Opened, contestant
from distillery.models.hardware import (
    accelerator_peak_bytes,
    cpu_threads,
    hardware_record,
    process_peak_bytes,
)
from distillery.storage.scratch import scratch_folder
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from schemas.comparison import Measurement, Measurements, Performance
from schemas.contestants import ContestantSpec
from schemas.errors import StoreError
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef, Evaluated, ReportRef
from schemas.task import TaskSpec

_LOGIC_VERSION = 1
_FILE = "measurements.json"

# What the stage reads of the evaluation section beside what decides the answers.
_READ = {
    "latency_rows",
    "latency_warmup",
    "throughput_rows",
    "throughput_batch_size",
    "context_tokens",
}

Clock = Callable[[], float]


def performance_stage(
    prompts: DatasetRef,
    contestants: tuple[ContestantSpec, ...],
    task: TaskSpec,
    evaluation: EvaluationSpec,
) -> Stage:
    """Return what identifies a measurement: everybody's answers, and what is timed."""
    answers = {
        spec.name: answers_stage(spec, prompts, task, evaluation).fingerprint
        for spec in contestants
    }
    return Stage(
        StageName.MEASURE_PERFORMANCE,
        _LOGIC_VERSION,
        inputs={"answers": answers},
        spec={"evaluation": evaluation.model_dump(include=_READ)},
    )


def measure_performance(
    answers: Mapping[str, DatasetRef],
    prompts: DatasetRef,
    contestants: Sequence[ContestantSpec],
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> StageResult:
    """Return output `measurements`, and the contestants' answers by name as outputs beside it.

    So one manifest names all that a comparison needs, and figures of different machines never meet
    in one table. See :func:`evaluated`.

    Args:
        answers: Outputs of `answer_test_prompts` by contestant.
        prompts: Output of `validate_prompts`; the first test rows are timed.
        contestants: Who is timed.
        task: Part of what a teacher is asked.
        evaluation: Rows, warm-up and limits.
        store: Store and ledger.
        execution: How the run is carried out.

    Raises:
        RecipeError: A model cannot be loaded.
        TeacherError: The endpoint left requests without an answer.
    """

    def work(attempt: Attempt) -> None:
        count_questions(prompts, attempt.store)
        rows = itertools.chain.from_iterable(questions(prompts, attempt.store))
        timed = [row.conversation for row in itertools.islice(rows, _rows_to_time(evaluation))]
        known = {spec.name: contestant(spec, task, evaluation, store) for spec in contestants}
        with contextlib.ExitStack() as files, cpu_threads(execution):
            opened = {
                name: files.enter_context(one.opened(attempt.store)) for name, one in known.items()
            }
            speeds = time_models(opened, timed, evaluation)
            measurements = Measurements(
                contestants={
                    name: Measurement(
                        model=one.model,
                        identity=one.identity,
                        size=opened[name].size,
                        performance=speeds[name],
                    )
                    for name, one in known.items()
                },
                hardware=hardware_record(),
                process_peak_bytes=process_peak_bytes(),
                accelerator_peak_bytes=accelerator_peak_bytes(),
            )
        with scratch_folder("measurements") as folder:
            (folder / _FILE).write_text(measurements.model_dump_json(indent=1), "utf-8")
            attempt.add_folder("measurements", folder)
        attempt.outputs |= answers
        attempt.counts |= {"contestants": len(known), "rows": len(timed)}

    stage = performance_stage(prompts, contestants, task, evaluation)
    return run_stage(stage, store, execution, work)


def evaluated(measured: StageResult) -> Evaluated:
    """Return what :func:`measure_performance` left: measurements and everybody's answers."""
    names = [name for name in measured.manifest.outputs if name != "measurements"]
    return Evaluated(
        answers={name: measured.dataset(name) for name in names},
        measurements=measured.report("measurements"),
    )


def read_measurements(measured: ReportRef, store: Store) -> Measurements:
    """Return the content of output `measurements`.

    Raises:
        StoreError: It is gone from the store.
    """
    raw = store.read_json(f"{measured.uri}/{_FILE}")
    if raw is None:
        raise StoreError(
            f"{store.path(measured.uri)!r} is gone from the store. Run again: the measurement is "
            "repeated."
        )
    return Measurements.model_validate(raw)


@dataclass
class _Tally:
    """Rows, tokens and seconds so far."""

    rows: int = 0
    tokens: int | None = 0
    seconds: float = 0.0

    def count(self, answer: Answered) -> None:
        """Add one answer, if it is one; tokens that are not counted leave the sum unknown."""
        if answer.response is not None:
            self.rows += 1
            known = self.tokens is not None and answer.new_tokens is not None
            self.tokens = (self.tokens or 0) + (answer.new_tokens or 0) if known else None


def time_models(
    contestants: Mapping[str, Opened],
    conversations: Sequence[Conversation],
    evaluation: EvaluationSpec,
    *,
    clock: Clock = time.perf_counter,
) -> dict[str, Performance]:
    """Return the speed of every model: latency at batch size 1, then throughput in batches.

    Args:
        contestants: The models, already loaded. All stay in memory together, as they alternate.
        conversations: Prompts; the first `latency_rows` and `throughput_rows` of them are timed.
        evaluation: Rows, warm-up and limits.
        clock: Monotonic seconds.

    Returns:
        By name. A figure is None where no row was answered.
    """
    latencies = _latencies(contestants, conversations, evaluation, clock)
    tallies = _throughput(contestants, conversations, evaluation, clock)
    return {name: _performance(latencies[name], tallies[name]) for name in contestants}


def _rows_to_time(evaluation: EvaluationSpec) -> int:
    """Return how many rows `time_models` can make use of."""
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
    contestants: Mapping[str, Opened],
    conversations: Sequence[Conversation],
    evaluation: EvaluationSpec,
    clock: Clock,
) -> dict[str, list[float]]:
    """Return the seconds of every answered row; who comes first changes from row to row."""
    timed = conversations[: evaluation.latency_rows]
    # The warm-up takes other rows where there are some: a server that keeps prefixes would answer
    # a row that it has just seen faster.
    others = conversations[len(timed) :] or conversations
    latencies: dict[str, list[float]] = {name: [] for name in contestants}

    def ask(name: str, row: Conversation) -> tuple[bool, float]:
        start = clock()
        answers = contestants[name].answer([row], 1)
        return answers[0].response is not None, clock() - start

    for row in _cycled(others, evaluation.latency_warmup):
        for name in contestants:
            ask(name, row)
    for number, row in enumerate(timed):
        for name in _rotated(list(contestants), number):
            answered, seconds = ask(name, row)
            if answered:
                latencies[name].append(seconds)
    return latencies


def _throughput(
    contestants: Mapping[str, Opened],
    conversations: Sequence[Conversation],
    evaluation: EvaluationSpec,
    clock: Clock,
) -> dict[str, _Tally]:
    """Return rows, tokens and seconds by model; each takes its next batch in turn."""
    timed = conversations[: evaluation.throughput_rows]
    tallies: dict[str, _Tally] = {name: _Tally() for name in contestants}

    def ask(name: str, first: int) -> tuple[list[Answered], float]:
        size = contestants[name].batch_size
        start = clock()
        answers = contestants[name].answer(timed[first : first + size], size)
        return answers, clock() - start

    for name, opened in contestants.items():
        if opened.warm_batch:
            ask(name, 0)
    turn = 0
    while waiting := [n for n, c in contestants.items() if turn * c.batch_size < len(timed)]:
        for name in _rotated(waiting, turn):
            answers, seconds = ask(name, turn * contestants[name].batch_size)
            tallies[name].seconds += seconds
            for answer in answers:
                tallies[name].count(answer)
        turn += 1
    return tallies


def _rotated(names: Sequence[str], turn: int) -> list[str]:
    """Return ``names`` beginning with another one each turn."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def _cycled(rows: Sequence[Conversation], count: int) -> list[Conversation]:
    return [rows[number % len(rows)] for number in range(count)]
