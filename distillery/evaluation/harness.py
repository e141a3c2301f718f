"""The stage that runs a contestant on tasks of lm-evaluation-harness.

What a student has forgotten of what it could do before shows in no test row of its own task. The
harness is run as it comes, without a chat template, so that figures compare with published ones.
Source: https://github.com/EleutherAI/lm-evaluation-harness
"""

import contextlib
import importlib.metadata
import importlib.util
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillery.evaluation.contestants import trained_model
from distillery.models.hardware import cpu_threads
from distillery.models.local import LocalModel
from distillery.storage.fingerprint import file_hash, model_identity
from distillery.storage.scratch import scratch_folder
from distillery.storage.stage import Attempt, Stage, StageResult, run_stage
from distillery.storage.store import Store
from schemas.comparison import HarnessFigure, HarnessFigures
from schemas.contestants import (
    ContestantSpec,
    PretrainedContestant,
    TeacherContestant,
    TrainedContestant,
)
from schemas.errors import RecipeError, StageError
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.teacher import TransformersTeacher

_LOGIC_VERSION = 1
_FILE = "harness.json"


def takes_harness(spec: ContestantSpec, evaluation: EvaluationSpec) -> bool:
    """Return whether the harness is run on ``spec``: on models that are loaded here."""
    if isinstance(spec, TeacherContestant):
        is_here = not spec.teacher.is_panel and not spec.teacher.is_served
        return bool(evaluation.lm_eval) and is_here
    return bool(evaluation.lm_eval) and isinstance(spec, PretrainedContestant | TrainedContestant)


def harness_stage(spec: ContestantSpec, evaluation: EvaluationSpec) -> Stage:
    """Return what identifies a contestant's results: its weights, the tasks, the harness.

    Data that a task file reads from elsewhere do not count: force the stage when they change.
    """
    return Stage(
        StageName.RUN_LM_EVAL,
        _LOGIC_VERSION,
        inputs={"contestant": _weights(spec)},
        spec={
            "tasks": {name: _version(name) for name in evaluation.lm_eval},
            "seed": evaluation.seed,
        },
    )


def _weights(spec: ContestantSpec) -> str:
    """Return what tells a contestant's weights and precision from others."""
    match spec:
        case TrainedContestant():
            return spec.model.uri
        case PretrainedContestant(student=model):
            return f"{model_identity(model.model, model.revision, role='student')} {model.dtype}"
        case TeacherContestant(teacher=TransformersTeacher() as model):
            return f"{model_identity(model.model, model.revision, role='teacher')} {model.dtype}"
    raise StageError(f"{spec.name!r} is not loaded here, so the harness cannot run on it.")


def _version(name: str) -> str:
    """Return what tells a task from others of its name: its file, or the harness."""
    return file_hash(Path(name)) if _is_path(name) else importlib.metadata.version("lm_eval")


def run_lm_eval(
    spec: ContestantSpec, evaluation: EvaluationSpec, store: StoreSpec, execution: ExecutionSpec
) -> StageResult:
    """Return output `harness`: every metric of every task, with its standard error.

    Raises:
        RecipeError: The harness is not installed, or knows no such task.
    """
    check_harness(evaluation)

    def work(attempt: Attempt) -> None:
        with cpu_threads(execution), _loaded(spec, attempt.store) as model:
            found = _evaluate(model, evaluation)
        with scratch_folder("harness") as folder:
            (folder / _FILE).write_text(found.model_dump_json(indent=1), "utf-8")
            attempt.add_folder("harness", folder)
        attempt.counts |= {"tasks": len(evaluation.lm_eval), "figures": len(found.figures)}

    return run_stage(harness_stage(spec, evaluation), store, execution, work)


def check_harness(evaluation: EvaluationSpec) -> None:
    """Return when the harness is installed and knows every task.

    Raises:
        RecipeError: It is not, or does not.
    """
    if not evaluation.lm_eval:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise RecipeError(
            "evaluation.lm_eval names tasks, but lm-evaluation-harness is not installed. Install "
            "it: pip install 'distillery[lm-eval]'."
        )
    names = [name for name in evaluation.lm_eval if not _is_path(name)]
    for name in evaluation.lm_eval:
        if _is_path(name) and not Path(name).is_file():
            raise RecipeError(
                f"evaluation.lm_eval names the task file {name!r}, which is not there. Correct it."
            )
    if names:
        from lm_eval.tasks import TaskManager

        known = set(TaskManager().all_tasks)
        if unknown := [name for name in names if name not in known]:
            raise RecipeError(
                f"evaluation.lm_eval names {unknown[0]!r}, which is not a task of "
                "lm-evaluation-harness. Name one that `lm-eval ls tasks` lists, or a task file "
                "(.yaml)."
            )


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


@contextlib.contextmanager
def _loaded(spec: ContestantSpec, store: Store) -> Iterator[LocalModel]:
    match spec:
        case PretrainedContestant():
            yield LocalModel.of(spec.student, device=spec.device)
        case TrainedContestant():
            with trained_model(spec, store) as model:
                yield model
        case TeacherContestant(teacher=TransformersTeacher() as teacher):
            yield LocalModel.of(teacher, device=teacher.device)


def _evaluate(model: LocalModel, evaluation: EvaluationSpec) -> HarnessFigures:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        wrapped = HFLM(
            pretrained=model.model, tokenizer=model.tokenizer, batch_size=evaluation.batch_size
        )
        results = lm_eval.simple_evaluate(
            model=wrapped,
            tasks=list(evaluation.lm_eval),
            log_samples=False,
            bootstrap_iters=1000,
            random_seed=evaluation.seed,
            numpy_random_seed=evaluation.seed,
            torch_random_seed=evaluation.seed,
            fewshot_random_seed=evaluation.seed,
        )
    return HarnessFigures(
        version=importlib.metadata.version("lm_eval"),
        figures=tuple(
            HarnessFigure(
                task=name, metric=metric, value=value, stderr=_stderr(found, metric, version)
            )
            for name, found in results["results"].items()
            for key, value in found.items()
            if isinstance(value, float | int) and not isinstance(value, bool) and "," in key
            for metric, version in [key.split(",", 1)]
            if not metric.endswith("_stderr")
        ),
    )


def _stderr(found: dict[str, Any], metric: str, version: str) -> float | None:
    value = found.get(f"{metric}_stderr,{version}")
    return float(value) if isinstance(value, float) and math.isfinite(value) else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness from telling at length what it does."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
