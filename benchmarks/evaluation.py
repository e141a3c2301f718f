"""Measure what evaluation costs beside the models: answering, scoring, intervals, the report.

    python -m benchmarks.evaluation [--parts overhead,scoring,bootstrap,report,cache] [--quick]

Prints figures with their goals and, when all parts ran, writes a dated result beside this file.
"""

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.report import Metric
from benchmarks.results import Line, goal_table, heading, load_average, result_path
from distillery.evaluation.answers import answer_questions
from distillery.evaluation.comparison import compare_models
from distillery.evaluation.cost import Prices
from distillery.evaluation.performance import evaluated, measure_performance
from distillery.evaluation.statistics import Bootstrap, mean_sums
from distillery.storage.scratch import scratch_folder
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from distillery.task_types import task_type
from schemas.comparison import Measurement, Measurements, Performance, Size
from schemas.contestants import BASELINE, CHAMPION, STUDENT, TEACHER, TrainedContestant
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.frames import PromptFrame, ScoreFrame, arrow_schema
from schemas.refs import DatasetRef, Evaluated, FilteredSet, Lineage, ModelRef, PromptSet
from schemas.student import FromScratchStudent
from schemas.task import TaskKind, TaskSpec

_EXECUTION = ExecutionSpec(cpu_threads=1)
_NUM_LABELS = 77
_TASK = TaskSpec(name="bench", type=TaskKind.CLASSIFICATION)
_TEXT = "my card payment was declined at the shop and the money has not come back yet"
_WORDS = _TEXT.split(" ")

Part = Callable[[StoreSpec, bool], list[Line]]


def overhead(store: StoreSpec, is_quick: bool) -> list[Line]:
    """Answering the test rows and measuring the speed, over the time inside of `generate`."""
    from transformers import LlamaForCausalLM

    cache(store, is_quick)  # imports whatever is needed
    prompts = _seal_prompts(store, 64 if is_quick else 512)
    spec = _contestant(store, STUDENT, seed=0, hidden_size=64 if is_quick else 384)
    evaluation = EvaluationSpec(max_new_tokens=16)
    seconds = [0.0]
    with _timed(LlamaForCausalLM, "generate", seconds):
        answered = answer_questions(spec, prompts, _TASK, evaluation, store, _EXECUTION)
        in_answers, seconds[0] = seconds[0], 0.0
        answers = {STUDENT: answered.dataset("answers")}
        measured = measure_performance(
            answers, {}, prompts, (spec,), _TASK, evaluation, store, _EXECUTION
        )
    totals = [done.manifest.timings_s["total"] for done in (answered, measured)]
    goal = Metric("evaluation / time in the model", goal=1.05, digits=3)
    return [
        Line("all", goal, [sum(totals) / (in_answers + seconds[0])]),
        Line("answers", Metric("stage / time in the model", digits=3), [totals[0] / in_answers]),
        Line("speed", Metric("stage / time in the model", digits=3), [totals[1] / seconds[0]]),
    ]


def scoring(store: StoreSpec, is_quick: bool) -> list[Line]:
    """Rows per second of one core, by task type; every second answer is wrong."""
    texts = {
        TaskKind.CLASSIFICATION: ("card declined", "card lost"),
        TaskKind.NLI: ("entailment", "contradiction"),
        TaskKind.QA: ("the old town hall", "a church in the old town"),
        TaskKind.MATH: ("12 and 30 is 42. #### 42", "It is 41. #### 41"),
        TaskKind.SUMMARIZATION: (" ".join(_WORDS * 3), " ".join(_WORDS[::-1] * 3)),
        TaskKind.CONVERSATION: (" ".join(_WORDS * 3), " ".join(_WORDS[::-1] * 3)),
    }
    lines = []
    for name, (right, wrong) in texts.items():
        kind, num_rows = task_type(TaskSpec(name="bench", type=name)), 200 if is_quick else 2000
        rows = [right if number % 2 else wrong for number in range(num_rows)]
        kind.score(right, [right], prompt=right)  # loads what it needs
        start = time.perf_counter()
        for response in rows:
            kind.score(response, [right], prompt=right)
        rate = num_rows / (time.perf_counter() - start)
        lines.append(Line(f"scoring {name}", Metric("rows/s", better="higher"), [rate]))
    return lines


def bootstrap(store: StoreSpec, is_quick: bool) -> list[Line]:
    """Difference, ratio and test of a pair, of right and wrong and of graded scores."""
    size, lines = 1000 if is_quick else 10_000, []
    draws = np.random.default_rng(0)
    evaluation = EvaluationSpec(bootstrap_samples=size)
    for name, scores in (
        ("right or wrong", [(draws.random(size) < rate).astype(float) for rate in (0.9, 0.8)]),
        ("graded", [draws.random(size) for _ in range(2)]),
    ):
        start = time.perf_counter()
        Bootstrap(range(size), evaluation).compare(*map(mean_sums, scores))
        seconds = time.perf_counter() - start
        metric = Metric(f"s for {size:,} rows x {size:,} resamples", goal=2.0, digits=2)
        lines.append(Line(f"bootstrap, {name}", metric, [seconds]))
    return lines


def report(store: StoreSpec, is_quick: bool) -> list[Line]:
    """The comparison of three contestants: its page with all rows that differ."""
    from distillery.evaluation import comparison

    num_rows = 2000 if is_quick else 100_000
    prompts = _seal_prompts(store, num_rows)
    rates = {TEACHER: 0.9, BASELINE: 0.5, STUDENT: 0.85}
    sealed = _seal_scores(store, num_rows, rates)
    seconds = [0.0]
    with (
        _timed(comparison, "render_report", seconds),
        _timed(comparison, "differing_rows", seconds),
        _timed(comparison, "markdown", seconds),
    ):
        done = compare_models(
            sealed,
            None,
            _lineage(prompts),
            task=_TASK,
            evaluation=EvaluationSpec(),
            declared=None,
            prices=Prices(),
            store=store,
            execution=_EXECUTION,
        )
    with Store(store.root).local_copy(done.report("report")) as folder:
        num_bytes = (folder / "report.html").stat().st_size
    case = f"report, {num_rows:,} rows"
    whole = Metric("s of the whole stage, 2,000 resamples", digits=1)
    return [
        Line(case, Metric("s to write it", goal=10.0, digits=1), seconds),
        Line(case, Metric("MB of its page", goal=5.0, digits=2), [num_bytes / 1e6]),
        Line(case, whole, [done.manifest.timings_s["total"]]),
    ]


def cache(store: StoreSpec, is_quick: bool) -> list[Line]:
    """Who answers again when one contestant of four changes."""
    prompts, names = _seal_prompts(store, 32), (TEACHER, BASELINE, CHAMPION, STUDENT)
    evaluation = EvaluationSpec(max_new_tokens=2)

    def answer_all(seeds: Mapping[str, int]) -> list[StageResult]:
        return [
            answer_questions(
                _contestant(store, name, seed=seeds[name], hidden_size=32),
                *(prompts, _TASK, evaluation, store, _EXECUTION),
            )
            for name in names
        ]

    before = {name: number for number, name in enumerate(names)}
    answer_all(before)
    again = [not done.reused for done in answer_all(before | {STUDENT: 99})]
    others = Metric("other contestants that answered again", goal=0)
    return [Line("one of four changed", others, [float(sum(again[:-1]))])]


PARTS: dict[str, Part] = {
    "overhead": overhead,
    "scoring": scoring,
    "bootstrap": bootstrap,
    "report": report,
    "cache": cache,
}


@contextlib.contextmanager
def _timed(owner: object, name: str, seconds: list[float]) -> Iterator[None]:
    """Add the time inside a function to ``seconds``."""
    plain = getattr(owner, name)

    def watched(*args: object, **named: object) -> object:
        start = time.perf_counter()
        try:
            return plain(*args, **named)
        finally:
            seconds[0] += time.perf_counter() - start

    setattr(owner, name, watched)
    try:
        yield
    finally:
        setattr(owner, name, plain)


def _contestant(store: StoreSpec, name: str, *, seed: int, hidden_size: int) -> TrainedContestant:
    """Return a new Llama in the store; its answers are noise."""
    import torch

    from distillery.models.students import open_student

    student = FromScratchStudent(
        num_layers=6,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_heads=4,
        vocab_size=1024,
    )

    def work(attempt: Attempt) -> None:
        torch.manual_seed(seed)
        model, chat_format = open_student(student, [" ".join(_WORDS)], dtype=torch.float32)
        with scratch_folder("model") as folder:
            model.save_pretrained(folder)
            chat_format.tokenizer.save_pretrained(folder)
            attempt.add_model("model", folder, num_parameters=model.num_parameters())

    stage = Stage(StageName.TRAIN_STUDENT, 0, {"seed": seed, "hidden_size": hidden_size}, {})
    model = run_stage(stage, store, _EXECUTION, work).model("model")
    return TrainedContestant(name=name, model=model, device="cpu")


def _label(number: int) -> str:
    return f"label {number % _NUM_LABELS}"


def _seal_prompts(store: StoreSpec, num_rows: int) -> DatasetRef:
    """Return test rows of 8 to 32 words."""

    def text(number: int) -> str:
        return " ".join(_WORDS[(number + n) % len(_WORDS)] for n in range(8 + number % 25))

    prompt_ids = [f"test-{number:06d}" for number in range(num_rows)]
    frame = pd.DataFrame(
        {
            "prompt_id": prompt_ids,
            "split": "test",
            "messages": [
                json.dumps([{"role": "user", "content": f"{number} {text(number)}"}])
                for number in range(num_rows)
            ],
            "references": [json.dumps([_label(number)]) for number in range(num_rows)],
            "content_hash": "0" * 64,
            "cluster": prompt_ids,
            "slices": "{}",
            "source_row": range(1, num_rows + 1),
        }
    )
    stage = Stage(StageName.VALIDATE_PROMPTS, 0, {"rows": num_rows}, {})
    done = run_stage(stage, store, _EXECUTION, partial(_write, "prompts", frame, PromptFrame))
    return done.dataset("prompts")


def _seal_scores(store: StoreSpec, num_rows: int, rates: Mapping[str, float]) -> Evaluated:
    """Return answers of which so many are right, and measurements."""
    draws, answers = np.random.default_rng(0), {}
    for name, rate in rates.items():
        right = draws.random(num_rows) < rate
        frame = pd.DataFrame(
            {
                "prompt_id": [f"test-{number:06d}" for number in range(num_rows)],
                "references": [json.dumps([_label(number)]) for number in range(num_rows)],
                "response": [_label(n + (not is_right)) for n, is_right in enumerate(right)],
                "metrics": [json.dumps({"accuracy": float(is_right)}) for is_right in right],
                "truncated": False,
            }
        )
        stage = Stage(StageName.ANSWER_TEST_PROMPTS, 0, {"name": name, "rows": num_rows}, {})
        done = run_stage(stage, store, _EXECUTION, partial(_write, "answers", frame, ScoreFrame))
        answers[name] = done.dataset("answers")

    def measure(attempt: Attempt) -> None:
        size = Size(num_parameters=10**6, weight_bytes=10**6, kv_cache_bytes=10**5)
        one = Measurement(model="m", identity="i", size=size, performance=Performance())
        figures = Measurements(contestants=dict.fromkeys(rates, one), hardware={})
        with scratch_folder("measurements") as folder:
            (folder / "measurements.json").write_text(figures.model_dump_json(), "utf-8")
            attempt.add_folder("measurements", folder)
        attempt.outputs |= answers

    stage = Stage(StageName.MEASURE_PERFORMANCE, 0, {"rows": num_rows}, {})
    return evaluated(run_stage(stage, store, _EXECUTION, measure))


def _write(name: str, frame: pd.DataFrame, contract: type, attempt: Attempt) -> None:
    with attempt.row_writer(name, arrow_schema(contract)) as writer:
        writer.write(frame)


def _lineage(prompts: DatasetRef) -> Lineage:
    """Return a lineage of which nothing but the prompts is in the store."""
    absent = {"fingerprint": "0" * 64}
    rows = DatasetRef(uri="absent/0/a/rows", num_rows=0, columns=(), **absent)
    model = ModelRef(uri="train_student/0/a/model", num_parameters=1, **absent)
    filtered = FilteredSet(kept=rows, rejected=rows, num_responses=0, drop_reasons={})
    return Lineage(
        prompts=PromptSet(prompts=prompts, gold=rows, quarantined=rows),
        responses=rows,
        filtered=filtered,
        training_set=rows,
        soft_targets=None,
        baseline=None,
        student=model,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, print the table and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="few rows, no dated result")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"there are no parts {sorted(unknown)}. Known: {', '.join(PARTS)}.")
    began, load, lines = time.monotonic(), load_average(), []
    folder = Path(tempfile.mkdtemp(prefix="bench-evaluation-"))
    try:
        for name in asked.parts:
            lines += PARTS[name](StoreSpec(root=str(folder / name)), asked.quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    minutes = (time.monotonic() - began) / 60
    text = "\n".join(
        [
            *heading("Evaluation", "benchmarks.evaluation", load=load, minutes=minutes),
            goal_table(lines),
        ]
    )
    print(text)
    if asked.parts == list(PARTS) and not asked.quick:
        result_path("evaluation").write_text(text + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
