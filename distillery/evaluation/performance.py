"""The stage that measures speed and size: the contestants in turn, in one process, on one machine.

Whatever drifts over minutes (a clock that throttles, a neighbour on the machine) hits every model
alike, because they alternate row by row and batch by batch. So all are in memory together.
"""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from distillery.evaluation.answers import answers_stage, questions
from distillery.evaluation.contestants import Answered, Conversation, Opened, contestant
from distillery.evaluation.harness import harness_stage, takes_harness
from distillery.models.hardware import cpu_threads, hardware_record
from distillery.storage.scratch import scratch_folder
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from schemas.comparison import Comparison, HarnessFigures, Measurement, Measurements, Performance
from schemas.contestants import ContestantSpec
from schemas.errors import StoreError
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef, Evaluated, ReportRef
from schemas.task import TaskSpec

_LOGIC_VERSION = 2
_FILE = "measurements.json"
_HARNESS = "lm_eval of "

# What the stage reads of the evaluation section beside what decides the answers.
_READ = {
    "latency_rows",
    "latency_warmup",
    "throughput_rows",
    "throughput_batch_size",
    "context_tokens",
}

Clock = Callable[[], float]

_FiguresT = TypeVar("_FiguresT", Measurements, Comparison, HarnessFigures)


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
    inputs = {"answers": answers}
    if evaluation.lm_eval:
        harness = (
            harness_stage(s, evaluation) for s in contestants if takes_harness(s, evaluation)
        )
        inputs["harness"] = {stage.inputs["contestant"]: stage.fingerprint for stage in harness}
    return Stage(
        StageName.MEASURE_PERFORMANCE,
        _LOGIC_VERSION,
        inputs=inputs,
        spec={"evaluation": evaluation.model_dump(include=_READ)},
    )


def measure_performance(
    answers: Mapping[str, DatasetRef],
    harness: Mapping[str, ReportRef],
    prompts: DatasetRef,
    contestants: tuple[ContestantSpec, ...],
    task: TaskSpec,
    evaluation: EvaluationSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> StageResult:
    """Return output `measurements`, and the contestants' answers by name as outputs beside it.

    So one manifest names all that a comparison needs (results of lm-evaluation-harness too), and
    figures of different machines never meet in one table. See :func:`evaluated`. The first test
    rows of ``prompts`` are timed.

    Raises:
        RecipeError: A model cannot be loaded.
        TeacherError: The endpoint left requests without an answer.
    """

    def work(attempt: Attempt) -> None:
        rows = itertools.chain.from_iterable(questions(prompts, attempt.store))
        latency_rows = evaluation.latency_rows + evaluation.latency_warmup
        most = max(latency_rows, evaluation.throughput_rows)
        timed = [row.conversation for row in itertools.islice(rows, most)]
        known = {
            spec.name: contestant(spec, prompts, task, evaluation, store) for spec in contestants
        }
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
            )
        with scratch_folder("measurements") as folder:
            (folder / _FILE).write_text(measurements.model_dump_json(indent=1), "utf-8")
            attempt.add_folder("measurements", folder)
        attempt.outputs |= answers
        attempt.outputs |= {f"{_HARNESS}{name}": ref for name, ref in harness.items()}
        attempt.counts |= {"contestants": len(known), "rows": len(timed)}

    stage = performance_stage(prompts, contestants, task, evaluation)
    return run_stage(stage, store, execution, work)


def evaluated(measured: StageResult) -> Evaluated:
    """Return what :func:`measure_performance` left: measurements and everybody's answers."""
    outputs = measured.manifest.outputs
    return Evaluated(
        answers={
            name: measured.dataset(name)
            for name, ref in outputs.items()
            if isinstance(ref, DatasetRef)
        },
        measurements=measured.report("measurements"),
        harness={
            name.removeprefix(_HARNESS): measured.report(name)
            for name in outputs
            if name.startswith(_HARNESS)
        },
    )


def read_figures(
    report: ReportRef, file: str, contract: type[_FiguresT], store: Store
) -> _FiguresT:
    """Return the figures in one file of a report folder.

    Raises:
        StoreError: It is gone from the store.
    """
    raw = store.read_json(f"{report.uri}/{file}")
    if raw is None:
        raise StoreError(
            f"{store.path(report.uri)!r} has no {file}. Run again: the stage is repeated."
        )
    return contract.model_validate(raw)


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
    batches = _throughput(contestants, conversations, evaluation, clock)
    return {name: _performance(latencies[name], *batches[name]) for name in contestants}


def _timed(
    one: Opened, rows: Sequence[Conversation], batch_size: int, clock: Clock
) -> tuple[list[Answered], float]:
    """Return the answers that were answers, and the seconds that it took."""
    start = clock()
    answers = one.answer(rows, batch_size)
    seconds = clock() - start
    return [answer for answer in answers if answer.response is not None], seconds


def _performance(
    latencies: Sequence[float], answers: Sequence[Answered], seconds: float
) -> Performance:
    tokens = [answer.new_tokens for answer in answers if answer.new_tokens is not None]
    read = [answer.prompt_tokens for answer in answers if answer.prompt_tokens is not None]
    timed = bool(answers) and seconds > 0
    is_counted = timed and len(tokens) == len(answers)
    p95 = np.quantile(latencies, 0.95, method="inverted_cdf") if latencies else None
    return Performance(
        latency_p50_s=statistics.median(latencies) if latencies else None,
        latency_p95_s=p95,
        latency_rows=len(latencies),
        queries_per_hour=len(answers) / seconds * 3600 if timed else None,
        tokens_per_s=sum(tokens) / seconds if is_counted else None,
        throughput_rows=len(answers),
        prompt_tokens=statistics.median(read) if read and len(read) == len(answers) else None,
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

    for row in itertools.islice(itertools.cycle(others), evaluation.latency_warmup):
        for one in contestants.values():
            one.answer([row], 1)
    for number, row in enumerate(timed):
        for name in _rotated(list(contestants), number):
            answers, seconds = _timed(contestants[name], [row], 1, clock)
            latencies[name] += [seconds for _ in answers]
    return latencies


def _throughput(
    contestants: Mapping[str, Opened],
    conversations: Sequence[Conversation],
    evaluation: EvaluationSpec,
    clock: Clock,
) -> dict[str, tuple[list[Answered], float]]:
    """Return answers and seconds by model; each takes its next batch in turn."""
    timed = conversations[: evaluation.throughput_rows]
    found: dict[str, tuple[list[Answered], float]] = {name: ([], 0.0) for name in contestants}
    for one in contestants.values():
        if one.warm_batch:
            one.answer(timed[: one.batch_size], one.batch_size)
    turn = 0
    while waiting := [n for n, c in contestants.items() if turn * c.batch_size < len(timed)]:
        for name in _rotated(waiting, turn):
            size = contestants[name].batch_size
            rows = timed[turn * size : (turn + 1) * size]
            answers, seconds = _timed(contestants[name], rows, size, clock)
            found[name] = found[name][0] + answers, found[name][1] + seconds
        turn += 1
    return found


def _rotated(names: Sequence[str], turn: int) -> list[str]:
    """Return ``names`` beginning with another one each turn."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]
