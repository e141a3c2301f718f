"""The comparison stage: scored answers and measurements in, one table and one report out."""

import json
from collections.abc import Collection, Mapping
from types import MappingProxyType

import pandas as pd
import pyarrow.dataset as pads

from distillery.evaluation.answers import JudgedSplit
from distillery.evaluation.cards import data_card, model_card
from distillery.evaluation.cost import Prices, cost_of_requests, distillation_cost
from distillery.evaluation.differences import (
    Metrics,
    difference,
    differences,
    gap_recovered,
    pairs,
)
from distillery.evaluation.judgement import read_judgement
from distillery.evaluation.labels import label_recalls, majority_answer, student_confusions
from distillery.evaluation.lineage import baseline_text, funnel, read_origins
from distillery.evaluation.markdown import markdown
from distillery.evaluation.metrics import fidelity, metric_sums
from distillery.evaluation.performance import read_figures
from distillery.evaluation.report import render_report
from distillery.evaluation.slices import Division, divide_rows, slice_figures
from distillery.evaluation.statistics import Bootstrap, mean_sums
from distillery.evaluation.wins_and_losses import differing_rows
from distillery.storage.scratch import scratch_folder
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from distillery.task_types import TaskType, task_type
from schemas.comparison import (
    MAJORITY,
    Comparison,
    ContestantFigures,
    HarnessFigures,
    Judgement,
    Measurement,
    Measurements,
)
from schemas.contestants import STUDENT, TEACHER
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.funnel import FunnelStep
from schemas.refs import DatasetRef, Evaluated, Lineage, ReportRef
from schemas.task import TaskSpec
from schemas.teacher import DeclaredModel

_LOGIC_VERSION = 9

# What the stage reads of the evaluation section beside what decides answers and measurements.
_READ = {"bootstrap_samples", "confidence", "seed", "slices", "min_slice_rows"}


def compare_models(
    evaluated: Evaluated,
    judged: DatasetRef | None,
    lineage: Lineage,
    *,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    declared: DeclaredModel | None,
    prices: Prices,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> StageResult:
    """Return output `report`: one folder with the page, the figures, and cards of model and data.

    Args:
        evaluated: Everybody's answers, with their speed and size.
        judged: A judge's verdicts, where one was asked.
        lineage: Where prompts, training set and student come from.
        task: What is compared.
        evaluation: How.
        declared: Size of a hosted teacher, which cannot be measured.
        prices: Of tokens and of the machine.
        store: Where everything is.
        execution: What to rerun.
    """
    prompts = lineage.prompts.prompts
    stage = Stage(
        StageName.COMPARE_MODELS,
        _LOGIC_VERSION,
        inputs={
            "measurements": evaluated.measurements.fingerprint,
            "judged": judged and judged.fingerprint,
            "harness": {name: ref.fingerprint for name, ref in evaluated.harness.items()},
            "lineage": lineage.model_dump(mode="json"),
        },
        spec={
            "task": task.name,
            "declared": declared,
            "prices": prices._asdict(),
            "evaluation": evaluation.model_dump(include=_READ),
        },
    )

    def work(attempt: Attempt) -> None:
        opened = attempt.store
        test_rows = read_judged_rows(prompts, opened)
        divided = divide_rows(test_rows, task_type(task), evaluation)
        origins = read_origins(lineage, evaluated, judged, opened)
        answers = {name: read_answers(ref, opened) for name, ref in evaluated.answers.items()}
        asked = answers[TEACHER].index  # it may have been asked fewer rows than the others
        answers = {name: frame.loc[asked] for name, frame in answers.items()}
        comparison = build_comparison(
            answers,
            test_rows,
            read_figures(evaluated.measurements, "measurements.json", Measurements, opened),
            task=task,
            evaluation=evaluation,
            declared=declared,
            prices=prices,
            exported=lineage.exported,
            fingerprints={
                "prompts": prompts.fingerprint,
                **{f"answers of {name}": r.fingerprint for name, r in evaluated.answers.items()},
                "measure_performance": evaluated.measurements.fingerprint,
                "compare_models": stage.fingerprint,
            },
            funnel=funnel(lineage, origins, prices.tokens),
            harness={
                name: read_figures(ref, "harness.json", HarnessFigures, opened)
                for name, ref in evaluated.harness.items()
            },
            judgement=_judgement(judged, test_rows, evaluation, opened),
            divided=divided,
        )
        cost = distillation_cost(comparison, lineage, prices, opened)
        left_out = len(test_rows) - len(asked)
        comparison = comparison.model_copy(
            update={
                "distillation_cost": cost,
                "num_left_out": left_out,
                "baseline": baseline_text(comparison, origins),
            }
        )
        rows, num_differing = differing_rows(
            answers, comparison.metric, prompts, opened, slices=divided
        )
        files = {
            "comparison.json": comparison.model_dump_json(indent=1),
            "comparison.md": markdown(comparison),
            "report.html": render_report(comparison, origins, rows, num_differing=num_differing),
            "model-card.md": model_card(comparison, origins, task),
            "data-card.md": data_card(comparison, origins, task),
        }
        with scratch_folder("report") as folder:
            for name, text in files.items():
                (folder / name).write_text(text, "utf-8")
            attempt.add_folder("report", folder)
        attempt.counts |= {"rows": comparison.num_rows, "differing": num_differing}

    return run_stage(stage, store, execution, work)


def _judgement(
    judged: DatasetRef | None, test_rows: pd.DataFrame, evaluation: EvaluationSpec, store: Store
) -> Judgement | None:
    if judged is None or evaluation.judge is None:
        return None
    verdicts = store.dataset(judged).to_table().to_pandas()
    return read_judgement(verdicts, evaluation.judge, dict(test_rows["cluster"]), evaluation)


def read_comparison(report: ReportRef, store: Store) -> Comparison:
    """Return the comparison of a report folder."""
    return read_figures(report, "comparison.json", Comparison, store)


def read_answers(answers: DatasetRef, store: Store) -> pd.DataFrame:
    """Return a contestant's ScoreFrame by prompt id, sorted, and a column for every metric."""
    frame: pd.DataFrame = store.dataset(answers).to_table().to_pandas()
    frame = frame.set_index("prompt_id").sort_index()
    metrics = pd.DataFrame(
        [json.loads(text) for text in frame.pop("metrics")], index=frame.index, dtype="float64"
    )
    return frame.join(metrics)


def read_judged_rows(
    prompts: DatasetRef, store: Store, split: JudgedSplit = "test"
) -> pd.DataFrame:
    """Return the rows of ``split`` of a PromptFrame by prompt id."""
    is_judged = pads.field("split") == split
    frame: pd.DataFrame = store.dataset(prompts).to_table(filter=is_judged).to_pandas()
    return frame.set_index("prompt_id")


def build_comparison(
    answers: Mapping[str, pd.DataFrame],
    test_rows: pd.DataFrame,
    measurements: Measurements,
    *,
    task: TaskSpec,
    evaluation: EvaluationSpec,
    declared: DeclaredModel | None,
    prices: Prices,
    fingerprints: dict[str, str],
    funnel: tuple[FunnelStep, ...],
    exported: Collection[str] = (),
    harness: Mapping[str, HarnessFigures] = MappingProxyType({}),
    judgement: Judgement | None = None,
    divided: Mapping[str, Division] = MappingProxyType({}),
) -> Comparison:
    """Return all figures of the contestants, alone and against each other.

    Args:
        answers: By contestant what :func:`read_answers` returns, the same prompts in each.
        test_rows: What :func:`read_judged_rows` returns.
        measurements: Speed and size of each.
        task: What is compared.
        evaluation: How.
        declared: Size of a hosted teacher.
        prices: Of requests and machines, where they are known.
        fingerprints: Of the stages it rests on.
        funnel: Rows of the training set by what became of them.
        exported: Which contestants are the student in another format.
        harness: What lm-evaluation-harness found, by contestant.
        judgement: What a judge said.
        divided: What :func:`divide_rows` returns.
    """
    kind = task_type(task)
    metric = kind.primary
    references = next(iter(answers.values()))["references"]
    clusters = test_rows["cluster"].loc[references.index]
    bootstrap = Bootstrap(clusters.to_list(), evaluation)
    metrics = {name: metric_sums(frame, kind) for name, frame in answers.items()}
    primary = {name: sums[metric] for name, sums in metrics.items()}
    rows = {
        name: _figures(
            name,
            measurements.contestants[name],
            frame,
            metrics[name],
            kind,
            bootstrap,
            declared,
            prices,
            teacher=None if name == TEACHER else answers[TEACHER],
        )
        for name, frame in answers.items()
    }
    majority, always = majority_answer(references, kind)
    leads = (
        difference(name, MAJORITY, metric, found, found.p_value)
        for name, sums in primary.items()
        if majority is not None and (found := bootstrap.compare(sums, mean_sums(always)))
    )
    scores = {name: frame[metric].to_numpy(dtype="float64") for name, frame in answers.items()}
    slices, num_small_slices = slice_figures(
        scores,
        pd.factorize(clusters)[0],
        {column: values.loc[references.index] for column, values in divided.items()},
        metric,
        evaluation,
        exported=tuple(exported),
    )
    return Comparison(
        task=task.name,
        metric=metric,
        num_rows=len(references),
        num_clusters=bootstrap.num_clusters,
        context_tokens=evaluation.context_tokens,
        max_new_tokens=evaluation.max_new_tokens,
        confidence=evaluation.confidence,
        contestants=tuple(rows.values()),
        differences=(
            *(
                found
                for name, against in pairs(answers, exported)
                for found in differences(rows[name], rows[against], metrics, bootstrap)
            ),
            *leads,
        ),
        majority_answer=majority,
        majority_score=None if majority is None else float(always.mean()),
        labels=label_recalls(references, scores, kind) if kind.has_labels else (),
        confusions=student_confusions(answers[STUDENT], kind) if kind.has_labels else (),
        gap_recovered=gap_recovered(primary, bootstrap),
        detectable_loss=bootstrap.detectable_loss(primary[STUDENT], primary[TEACHER]),
        judgement=judgement,
        slices=slices,
        num_small_slices=num_small_slices,
        hardware=measurements.hardware,
        fingerprints=fingerprints,
        funnel=funnel,
        harness=dict(harness),
    )


def _figures(
    name: str,
    measured: Measurement,
    frame: pd.DataFrame,
    metrics: Metrics,
    kind: TaskType,
    bootstrap: Bootstrap,
    declared: DeclaredModel | None,
    prices: Prices,
    *,
    teacher: pd.DataFrame | None,
) -> ContestantFigures:
    """Return the figures of one model; a hosted one's size is the declared one, or unknown.

    Its answers are compared with the references, and with those of ``teacher`` where given.
    """
    size = measured.size
    shown = declared if size is None else None
    memory_bytes = size.weight_bytes + size.kv_cache_bytes if size else None
    return ContestantFigures(
        name=name,
        model=measured.model,
        identity=measured.identity,
        num_parameters=shown.num_parameters if shown else size and size.num_parameters,
        memory_bytes=round(shown.memory_gib * 2**30) if shown else memory_bytes,
        disk_bytes=size and size.disk_bytes,
        peak_memory_bytes=measured.peak_memory_bytes,
        cost=prices.panel
        if prices.panel and name == TEACHER
        else cost_of_requests(measured.performance, prices, is_served=size is None),
        declared_source=shown.source if shown else None,
        performance=measured.performance,
        metrics={name: bootstrap.interval(sums) for name, sums in metrics.items()},
        fidelity={} if teacher is None else fidelity(frame, teacher, kind, bootstrap),
        num_unscored=int(frame[kind.primary].isna().sum()),
    )
