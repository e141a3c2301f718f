"""Comparisons with hand-picked figures, and the sealed stages they would come from."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

import pandas as pd

from distillery.evaluation.comparison import build_comparison
from distillery.evaluation.cost import Prices
from distillery.evaluation.performance import evaluated
from distillery.storage.scratch import scratch_folder
from distillery.storage.stage import Attempt, Stage, run_stage
from schemas.comparison import Comparison, Measurement, Measurements, Performance, Size
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.frames import PromptFrame, ScoreFrame, arrow_schema, check_frame
from schemas.funnel import FunnelStep
from schemas.refs import DatasetRef, Evaluated, ModelRef
from schemas.task import TaskSpec
from schemas.teacher import DeclaredModel

TASK = TaskSpec.model_validate({"name": "tickets", "type": "classification"})
EVALUATION = EvaluationSpec(bootstrap_samples=200)
NO_PRICES = Prices()
STUDENT_FINGERPRINT = "5" * 64
STUDENT_REF = ModelRef(
    uri=f"train_student/{STUDENT_FINGERPRINT}/a/model",
    fingerprint=STUDENT_FINGERPRINT,
    num_parameters=100_000,
)
CHAMPION_REF = STUDENT_REF.model_copy(
    update={"uri": f"train_student/{'c' * 64}/a/model", "fingerprint": "c" * 64}
)

# teacher 19/20, baseline 12/20, student 18/20
SCORES: dict[str, list[float]] = {
    "teacher": [1.0] * 19 + [0.0],
    "baseline": [1.0] * 12 + [0.0] * 8,
    "student": [1.0] * 18 + [0.0] * 2,
}
REFERENCES = ["yes"] * 8 + ["no"] * 6 + ["maybe"] * 6


def measurement(
    parameters: int,
    size: int | None,
    latency_s: float | None,
    ref: ModelRef | None = None,
    prompt_tokens: float | None = None,
) -> Measurement:
    """Return a measurement whose memory is twice ``size``; None: of a hosted model."""
    return Measurement(
        model=ref.uri if ref else "some/model",
        identity=ref.fingerprint if ref else "i" * 64,
        size=Size(num_parameters=parameters, weight_bytes=size, kv_cache_bytes=size)
        if size is not None
        else None,
        performance=Performance(
            latency_p50_s=latency_s,
            latency_p95_s=latency_s and 2 * latency_s,
            latency_rows=30,
            queries_per_hour=latency_s and 3600 / latency_s,
            tokens_per_s=latency_s and 10 / latency_s,
            prompt_tokens=prompt_tokens,
        ),
    )


def measurements(**changed: Measurement) -> Measurements:
    """Return a teacher of 1 M parameters, 1 MiB and 100 ms, and students a tenth of it."""
    contestants = {
        "teacher": measurement(1_000_000, 2**19, 0.1),
        "baseline": measurement(100_000, 2**15, 0.01),
        "anybody": measurement(100_000, 2**15, 0.01),
        "champion": measurement(100_000, 2**15, 0.01, CHAMPION_REF),
        "in-context student": measurement(100_000, 2**15, 0.02, prompt_tokens=1203.5),
        "onnx int4": measurement(100_000, 2**13, 0.005),
        "student": measurement(100_000, 2**15, 0.01, STUDENT_REF, prompt_tokens=17),
    }
    return Measurements(
        contestants={**contestants, **changed},
        hardware={"cpu": "Zilog Z80", "cores": 1, "gpu": None, "torch": "2.13"},
    )


def answer_frame(scores: Sequence[float], references: Sequence[str] = REFERENCES) -> pd.DataFrame:
    """Return answers with these scores, as `read_answers` returns them."""
    ids = [f"test-{number:03d}" for number in range(len(scores))]
    right = zip(scores, references, strict=True)
    return pd.DataFrame(
        {
            "references": [json.dumps([reference]) for reference in references],
            "response": [reference if score else "<b>no</b>" for score, reference in right],
            "truncated": False,
            "accuracy": scores,
        },
        index=pd.Index(ids, name="prompt_id"),
    )


def comparison(
    scores: Mapping[str, Sequence[float]] = SCORES,
    *,
    references: Sequence[str] = REFERENCES,
    measured: Measurements | None = None,
    declared: DeclaredModel | None = None,
    prices: Prices = NO_PRICES,
    funnel: tuple[FunnelStep, ...] = (),
    task: TaskSpec = TASK,
    clusters: Sequence[str] | None = None,
    divided: Mapping[str, Sequence[str | None]] = MappingProxyType({}),
    evaluation: EvaluationSpec = EVALUATION,
) -> Comparison:
    """Return the comparison of these scores; each row is a cluster unless ``clusters`` says."""
    answers = {name: answer_frame(values, references) for name, values in scores.items()}
    return compared(
        answers,
        task=task,
        measured=measured,
        declared=declared,
        prices=prices,
        funnel=funnel,
        clusters=clusters,
        divided=divided,
        evaluation=evaluation,
    )


def compared(
    answers: Mapping[str, pd.DataFrame],
    *,
    task: TaskSpec = TASK,
    measured: Measurements | None = None,
    declared: DeclaredModel | None = None,
    prices: Prices = NO_PRICES,
    funnel: tuple[FunnelStep, ...] = (),
    clusters: Sequence[str] | None = None,
    divided: Mapping[str, Sequence[str | None]] = MappingProxyType({}),
    evaluation: EvaluationSpec = EVALUATION,
) -> Comparison:
    """Return the comparison of these answers, as `read_answers` returns them."""
    ids = next(iter(answers.values())).index
    return build_comparison(
        answers,
        pd.DataFrame({"cluster": list(clusters or ids)}, index=ids),
        measured or measurements(),
        task=task,
        evaluation=evaluation,
        declared=declared,
        prices=prices,
        fingerprints={"compare_models": "e" * 64},
        funnel=funnel,
        divided={name: pd.Series(found, ids, dtype=object) for name, found in divided.items()},
        exported=[name for name in answers if name.startswith(("onnx", "gguf"))],
    )


def prompt_frame(num_rows: int) -> pd.DataFrame:
    """Return test prompts whose right answer is 'yes'."""
    ids = [f"test-{number:03d}" for number in range(num_rows)]
    messages = [
        json.dumps([{"role": "user", "content": f"<script>alert({number})</script> ok?"}])
        for number in range(num_rows)
    ]
    return pd.DataFrame(
        {
            "prompt_id": ids,
            "split": "test",
            "messages": messages,
            "references": '["yes"]',
            "content_hash": "0" * 64,
            "cluster": ids,
            "slices": pd.array([None] * num_rows, dtype="str"),
            "source_row": range(1, num_rows + 1),
        }
    )


def seal_prompts(store: StoreSpec, frame: pd.DataFrame) -> DatasetRef:
    """Return ``frame`` as the output of `validate_prompts`."""

    def work(attempt: Attempt) -> None:
        with attempt.row_writer("prompts", arrow_schema(PromptFrame)) as writer:
            writer.write(check_frame(frame, PromptFrame))

    stage = Stage(StageName.VALIDATE_PROMPTS, 1, inputs={}, spec={"rows": len(frame)})
    return run_stage(stage, store, ExecutionSpec(), work).dataset("prompts")


def seal_scores(store: StoreSpec, scores: Mapping[str, Sequence[float]] = SCORES) -> Evaluated:
    """Return answers with these scores and measurements, as `evaluate_models` would seal them."""

    def answer(values: Sequence[float], attempt: Attempt) -> None:
        frame = answer_frame(values).reset_index()
        frame.insert(3, "metrics", [json.dumps({"accuracy": v}) for v in frame.pop("accuracy")])
        with attempt.row_writer("answers", arrow_schema(ScoreFrame)) as writer:
            writer.write(check_frame(frame, ScoreFrame))

    answers = {}
    for name, values in scores.items():
        stage = Stage(StageName.ANSWER_TEST_PROMPTS, 1, inputs={"contestant": name}, spec={})
        done = run_stage(stage, store, ExecutionSpec(), partial(answer, values))
        answers[name] = done.dataset("answers")

    def measure(attempt: Attempt) -> None:
        with scratch_folder("measurements") as folder:
            (folder / "measurements.json").write_text(measurements().model_dump_json())
            attempt.add_folder("measurements", folder)
        attempt.outputs |= answers

    stage = Stage(StageName.MEASURE_PERFORMANCE, 1, inputs={}, spec={})
    return evaluated(run_stage(stage, store, ExecutionSpec(), measure))
