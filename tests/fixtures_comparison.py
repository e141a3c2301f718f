"""Comparisons with hand-picked figures, and the sealed evaluation they would come from."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from distillery.evaluation.comparison import build_comparison
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from schemas.comparison import (
    Comparison,
    Measurements,
    ModelMeasurement,
    ModelRole,
    Performance,
)
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.frames import PromptFrame, ScoreFrame, arrow_schema, check_frame
from schemas.refs import DatasetRef
from schemas.task import TaskKind, TaskSpec
from schemas.teacher import DeclaredModel

TASK = TaskSpec(name="tickets", type=TaskKind.CLASSIFICATION)
EVALUATION = EvaluationSpec(bootstrap_samples=200)
STUDENT_FINGERPRINT = "5" * 64

# teacher 19/20, baseline 12/20, student 18/20
SCORES: dict[ModelRole, list[float]] = {
    "teacher": [1.0] * 19 + [0.0],
    "baseline": [1.0] * 12 + [0.0] * 8,
    "student": [1.0] * 18 + [0.0] * 2,
}


def measurement(
    parameters: int | None, size: int | None, latency_s: float | None, identity: str = "i" * 64
) -> ModelMeasurement:
    """Return a measurement whose memory is twice ``size``."""
    return ModelMeasurement(
        name="some/model",
        identity=identity,
        hosted=size is None,
        num_parameters=parameters,
        weight_bytes=size,
        kv_cache_bytes=size,
        performance=Performance(
            latency_p50_s=latency_s,
            latency_p95_s=latency_s and 2 * latency_s,
            latency_rows=30,
            queries_per_hour=latency_s and 3600 / latency_s,
            tokens_per_s=latency_s and 10 / latency_s,
            throughput_rows=256,
        ),
    )


def measurements(**changed: ModelMeasurement) -> Measurements:
    """Return a teacher of 1 M parameters, 1 MiB and 100 ms, and students a tenth of it."""
    models: dict[ModelRole, ModelMeasurement] = {
        "teacher": measurement(1_000_000, 2**19, 0.1),
        "baseline": measurement(100_000, 2**15, 0.01),
        "student": measurement(100_000, 2**15, 0.01, STUDENT_FINGERPRINT),
    }
    return Measurements(
        models={**models, **changed},
        hardware={"cpu": "Zilog Z80", "cores": 1, "gpu": None, "versions": {"torch": "2.13"}},
        process_peak_bytes=2**30,
    )


def comparison(
    scores: Mapping[ModelRole, Sequence[float]] = SCORES,
    *,
    measured: Measurements | None = None,
    declared: DeclaredModel | None = None,
    funnel: dict[str, int] | None = None,
) -> Comparison:
    """Return the comparison of these scores."""
    return build_comparison(
        {role: np.array(values) for role, values in scores.items()},
        measured or measurements(),
        task=TASK,
        evaluation=EVALUATION,
        declared=declared,
        fingerprints={"evaluate_models": "e" * 64},
        funnel=funnel,
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
            "reference": "yes",
            "content_hash": "0" * 64,
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


def seal_scores(
    store: StoreSpec, scores: Mapping[ModelRole, Sequence[float]] = SCORES
) -> StageResult:
    """Return an evaluation with these scores, as `evaluate_models` would seal it."""

    def work(attempt: Attempt) -> None:
        with attempt.row_writer("scores", arrow_schema(ScoreFrame)) as writer:
            for role, values in scores.items():
                frame = pd.DataFrame(
                    {
                        "model": role,
                        "prompt_id": [f"test-{number:03d}" for number in range(len(values))],
                        "answer": ["yes" if value else "<b>no</b>" for value in values],
                        "reference": "yes",
                        "score": values,
                        "new_tokens": 1,
                    }
                )
                writer.write(check_frame(frame, ScoreFrame))
        attempt.facts["measurements"] = measurements().model_dump(mode="json")

    stage = Stage(StageName.EVALUATE_MODELS, 1, inputs={}, spec={"scores": dict(scores)})
    return run_stage(stage, store, ExecutionSpec(), work)
