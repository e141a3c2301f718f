"""The stage that measures speed, size and memory: of all contestants, in one process."""

import contextlib
import itertools
from collections.abc import Mapping
from typing import Any, TypeVar

from distillery.evaluation.answers import answers_stage, questions
from distillery.evaluation.contestants import contestant
from distillery.evaluation.harness import harness_stage, takes_harness
from distillery.evaluation.peak_memory import MemoryWatch
from distillery.evaluation.protocol import Conversation
from distillery.evaluation.timing import time_models
from distillery.models.hardware import cpu_threads, hardware_record
from distillery.storage.scratch import scratch_folder
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from schemas.comparison import Comparison, HarnessFigures, Measurement, Measurements
from schemas.contestants import ContestantSpec, ExportedContestant, TeacherContestant
from schemas.errors import StoreError
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.panel import singles
from schemas.refs import DatasetRef, Evaluated, ReportRef
from schemas.task import TaskSpec

_LOGIC_VERSION = 3
_FILE = "measurements.json"
_HARNESS = "lm_eval of "

# What the stage reads of the evaluation section beside what decides the answers.
_READ = {"latency_rows", "latency_warmup", "throughput_rows", "concurrencies", "context_tokens"}

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
    where = {spec.name: found for spec in contestants if (found := _where(spec, evaluation))}
    inputs: dict[str, Any] = {"answers": answers, "where": where}
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


def _where(spec: ContestantSpec, evaluation: EvaluationSpec) -> str | int | list[str | int] | None:
    """Return what decides a contestant's speed and none of its answers.

    The device of a local model; of a served one the most requests in flight, as far as it counts.
    """
    if isinstance(spec, ExportedContestant):
        return None
    if not isinstance(spec, TeacherContestant):
        return spec.device
    found = [
        min(each.concurrency, max(evaluation.concurrencies)) if each.is_served else each.device
        for each in singles(spec.teacher)
    ]
    return found if spec.teacher.is_panel else found[0]


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
        longest = sorted(timed, key=_num_chars, reverse=True)[: max(evaluation.concurrencies)]
        known = {
            spec.name: contestant(spec, prompts, task, evaluation, store) for spec in contestants
        }
        with contextlib.ExitStack() as files, cpu_threads(execution):
            opened, peaks = {}, {}
            for name, one in known.items():
                watch = MemoryWatch()
                opened[name] = files.enter_context(one.opened(attempt.store))
                peaks[name] = watch.peak_bytes(opened[name], longest)
            speeds = time_models(opened, timed, evaluation)
            measurements = Measurements(
                contestants={
                    name: Measurement(
                        model=one.model,
                        identity=one.identity,
                        size=opened[name].size,
                        performance=speeds[name],
                        peak_memory_bytes=peaks[name],
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


def _num_chars(conversation: Conversation) -> int:
    return sum(len(message["content"]) for message in conversation)


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
