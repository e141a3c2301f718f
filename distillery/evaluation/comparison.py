"""The comparison stage: scores and measurements in, one table and one report out."""

import json
from collections.abc import Mapping
from typing import get_args

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads

from distillery.evaluation.report import render_report
from distillery.evaluation.statistics import (
    Scores,
    difference_interval,
    mean_interval,
    ratio_interval,
)
from distillery.evaluation.tables import markdown
from distillery.storage.scratch import scratch_folder
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from schemas.comparison import (
    Comparison,
    Disagreement,
    Measurements,
    ModelFigures,
    ModelMeasurement,
    ModelRole,
)
from schemas.errors import StageError, StoreError
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import DatasetRef, ReportRef
from schemas.task import TaskSpec
from schemas.teacher import DeclaredModel

_LOGIC_VERSION = 1
_ROLES: tuple[ModelRole, ...] = get_args(ModelRole)
_NUM_EXAMPLES = 20


def compare_models(
    scores: DatasetRef,
    prompts: DatasetRef,
    *,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    declared: DeclaredModel | None,
    store: StoreSpec,
    execution: ExecutionSpec,
    funnel: Mapping[str, int] | None = None,
) -> StageResult:
    """Return output `report`: comparison.json, comparison.md and report.html in one folder.

    Args:
        scores: Output of `evaluate_models`; its manifest holds what was measured.
        prompts: Where the report's examples take their prompts from.
        task: Titles the report.
        evaluation: Resamples, level and seed of the intervals.
        declared: Size of a hosted teacher; not used for a teacher that was measured.
        store: The store.
        execution: How the run is carried out.
        funnel: Rows of the training set by what became of them, for the report.
    """
    stage = Stage(
        StageName.COMPARE_MODELS,
        _LOGIC_VERSION,
        inputs={"scores": scores.fingerprint, "prompts": prompts.fingerprint},
        spec={
            "task": task.name,
            "declared": declared,
            "intervals": _interval_settings(evaluation),
            "context_tokens": evaluation.context_tokens,
            "max_new_tokens": evaluation.max_new_tokens,
            "funnel": dict(funnel or {}),
        },
    )

    def work(attempt: Attempt) -> None:
        comparison = build_comparison(
            read_scores(scores, attempt.store),
            measurements_of(scores, attempt.store),
            task=task,
            evaluation=evaluation,
            declared=declared,
            fingerprints={
                "prompts": prompts.fingerprint,
                "evaluate_models": scores.fingerprint,
                "compare_models": stage.fingerprint,
            },
            funnel=dict(funnel or {}),
        )
        examples, num_disagreements = disagreements(scores, prompts, attempt.store)
        with scratch_folder("report") as folder:
            page = render_report(comparison, examples, num_disagreements=num_disagreements)
            (folder / "comparison.json").write_text(comparison.model_dump_json(indent=1), "utf-8")
            (folder / "comparison.md").write_text(markdown(comparison), "utf-8")
            (folder / "report.html").write_text(page, "utf-8")
            attempt.add_folder("report", folder)
        attempt.counts |= {"rows": comparison.num_rows, "disagreements": num_disagreements}

    return run_stage(stage, store, execution, work)


def _interval_settings(evaluation: EvaluationSpec) -> dict[str, float]:
    return evaluation.model_dump(include={"bootstrap_samples", "confidence", "seed"})


def read_comparison(report: ReportRef, store: Store) -> Comparison:
    """Return the comparison of a report folder.

    Raises:
        StoreError: The folder has no comparison.json.
    """
    raw = store.read_json(f"{report.uri}/comparison.json")
    if raw is None:
        raise StoreError(
            f"report {store.path(report.uri)!r} has no comparison.json. Run again with "
            "execution.force=[compare_models]."
        )
    return Comparison.model_validate(raw)


def measurements_of(scores: DatasetRef, store: Store) -> Measurements:
    """Return what the evaluation that made ``scores`` measured besides.

    Raises:
        StageError: The evaluation is not sealed in this store.
    """
    manifest = store.find(StageName.EVALUATE_MODELS, scores.fingerprint)
    if manifest is None:
        raise StageError(
            f"the evaluation {scores.fingerprint[:12]!r} has no manifest in store {store.root!r}, "
            "so its measurements are missing. Run evaluate_models again."
        )
    return Measurements.model_validate(manifest.facts["measurements"])


def read_scores(scores: DatasetRef, store: Store) -> dict[ModelRole, Scores]:
    """Return the scores by role, the same rows in the same order, NaN where unscored."""
    by_model = _scores_by_model(scores, store)
    present = [role for role in _ROLES if role in by_model]
    return {role: by_model[role].to_numpy(dtype="float64") for role in present}


def _scores_by_model(scores: DatasetRef, store: Store) -> pd.DataFrame:
    """Return one row per prompt id, sorted, and one column of scores per model."""
    frame = store.dataset(scores).to_table(columns=["model", "prompt_id", "score"]).to_pandas()
    by_model: pd.DataFrame = frame.pivot(index="prompt_id", columns="model", values="score")
    return by_model


def build_comparison(
    scores: Mapping[ModelRole, Scores],
    measurements: Measurements,
    *,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    declared: DeclaredModel | None,
    fingerprints: dict[str, str],
    funnel: dict[str, int] | None = None,
) -> Comparison:
    """Return all figures of the models, alone and against the teacher."""
    teacher = _alone("teacher", measurements.models["teacher"], scores, evaluation, declared)
    rows = [teacher]
    for role in ("baseline", "student"):
        if role in scores:
            alone = _alone(role, measurements.models[role], scores, evaluation, None)
            rows.append(_against(alone, teacher, scores, evaluation))
    has_baseline = "baseline" in scores
    return Comparison(
        task=task.name,
        num_rows=len(scores["teacher"]),
        context_tokens=evaluation.context_tokens,
        max_new_tokens=evaluation.max_new_tokens,
        confidence=evaluation.confidence,
        models=tuple(rows),
        student_minus_teacher=difference_interval(scores["student"], scores["teacher"], evaluation),
        gain=difference_interval(scores["student"], scores["baseline"], evaluation)
        if has_baseline
        else None,
        gap_recovered=gap_recovered(scores) if has_baseline else None,
        hardware=measurements.hardware,
        process_peak_bytes=measurements.process_peak_bytes,
        accelerator_peak_bytes=measurements.accelerator_peak_bytes,
        fingerprints=fingerprints,
        funnel=funnel or {},
    )


def _alone(
    role: ModelRole,
    measured: ModelMeasurement,
    scores: Mapping[ModelRole, Scores],
    evaluation: EvaluationSpec,
    declared: DeclaredModel | None,
) -> ModelFigures:
    """Return the figures of one model; a hosted one's size is the declared one, or unknown."""
    shown = declared if measured.hosted else None
    memory_bytes = None
    if measured.weight_bytes is not None and measured.kv_cache_bytes is not None:
        memory_bytes = measured.weight_bytes + measured.kv_cache_bytes
    return ModelFigures(
        role=role,
        name=measured.name,
        identity=measured.identity,
        num_parameters=shown.num_parameters if shown else measured.num_parameters,
        memory_bytes=round(shown.memory_gib * 2**30) if shown else memory_bytes,
        declared=shown is not None,
        declared_source=shown.source if shown else None,
        performance=measured.performance,
        accuracy=mean_interval(scores[role], evaluation),
        num_unscored=int(pd.isna(scores[role]).sum()),
    )


def _against(
    row: ModelFigures,
    teacher: ModelFigures,
    scores: Mapping[ModelRole, Scores],
    evaluation: EvaluationSpec,
) -> ModelFigures:
    """Return ``row`` with its figures relative to the teacher's."""
    latency, teacher_latency = row.performance.latency_p50_s, teacher.performance.latency_p50_s
    return row.model_copy(
        update={
            "retention": ratio_interval(scores[row.role], scores["teacher"], evaluation),
            "latency_reduction": reduction(latency, teacher_latency),
            "memory_reduction": reduction(row.memory_bytes, teacher.memory_bytes),
            "parameter_reduction": reduction(row.num_parameters, teacher.num_parameters),
        }
    )


def reduction(value: float | None, teacher_value: float | None) -> float | None:
    """Return 1 - value / teacher_value; None when either is not known or the teacher's is 0.

    >>> reduction(15.0, 100.0), reduction(15.0, None)
    (0.85, None)
    """
    if value is None or not teacher_value:
        return None
    return 1 - value / teacher_value


def gap_recovered(scores: Mapping[ModelRole, Scores]) -> float | None:
    """Return (student - baseline) / (teacher - baseline) on the rows scored for all three.

    None, not 0, when the teacher is not better than the baseline: there is no gap to recover.
    """
    rows = pd.DataFrame({role: scores[role] for role in _ROLES}).dropna()
    means = rows.mean()
    gap = means["teacher"] - means["baseline"]
    return float((means["student"] - means["baseline"]) / gap) if gap > 0 else None


def disagreements(
    scores: DatasetRef, prompts: DatasetRef, store: Store, *, limit: int = _NUM_EXAMPLES
) -> tuple[list[Disagreement], int]:
    """Return test rows that teacher and student score differently: the first ones, and how many.

    Rows are in the order of their ids.
    """
    paired = _scores_by_model(scores, store)
    differing = paired[(paired["teacher"] - paired["student"]).abs() > 0]
    ids = list(differing.index[:limit])
    answers = (
        store.dataset(scores)
        .to_table(filter=pads.field("prompt_id").isin(pa.array(ids, pa.string())))
        .to_pandas()
        .set_index(["prompt_id", "model"])
    )
    texts = _prompt_texts(prompts, ids, store)
    examples = [
        Disagreement(
            prompt_id=prompt_id,
            prompt=texts.get(prompt_id, ""),
            reference=answers.at[(prompt_id, "teacher"), "reference"],
            teacher_answer=answers.at[(prompt_id, "teacher"), "answer"],
            teacher_score=differing.at[prompt_id, "teacher"],
            student_answer=answers.at[(prompt_id, "student"), "answer"],
            student_score=differing.at[prompt_id, "student"],
        )
        for prompt_id in ids
    ]
    return examples, len(differing)


def _prompt_texts(prompts: DatasetRef, ids: list[str], store: Store) -> dict[str, str]:
    """Return the last user message of each prompt."""
    is_wanted = pads.field("prompt_id").isin(pa.array(ids, pa.string()))
    condition = is_wanted & (pads.field("split") == "test")
    table = store.dataset(prompts).to_table(columns=["prompt_id", "messages"], filter=condition)
    return {
        row["prompt_id"]: json.loads(row["messages"])[-1]["content"] for row in table.to_pylist()
    }
