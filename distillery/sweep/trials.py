"""Trials are run one after the other, or a few at a time, until the sweep has had enough."""

import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from distillery.storage.fingerprint import model_identity, sha256, tokenizer_identity
from distillery.storage.stage import StageResult
from distillery.sweep.study import Study, study_name
from distillery.sweep.trial import worth
from distillery.teacher import teacher_identity
from schemas.errors import (
    BudgetError,
    DistilleryError,
    InputDataError,
    RecipeError,
    RegistryError,
    StoreError,
    TeacherError,
    TrainingError,
    TrialPruned,
)
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef
from schemas.student import FromScratchStudent
from schemas.sweep import SweepRecipe, Trial

logger = logging.getLogger("distillery.run")

_MOST_CHARS = 2000

Try = Callable[[Trial], None]
"""Runs a trial and notes in the study how it ended; what it raises ends the sweep."""


def open_study(recipe: SweepRecipe, prompts: DatasetRef) -> Study:
    """Return the study of a sweep over the valid rows ``prompts``; close it after use."""
    student = recipe.student
    identities = {"teacher": sha256(teacher_identity(recipe.teacher))}
    if not isinstance(student, FromScratchStudent):
        identities["student"] = model_identity(student.model, student.revision, role="student")
    elif student.tokenizer is not None:
        identities["student"] = tokenizer_identity(student.tokenizer)
    return Study(recipe.store, study_name(recipe, prompts, identities), recipe.sweep)


def run_trials(study: Study, try_one: Try) -> None:
    """Run the trials of ``study`` that have not ended, and new ones up to `sweep.num_trials`.

    Raises:
        TrainingError: The first `sweep.startup_trials` all failed. The study is deleted, so that
            the same sweep starts over once the cause is gone.
    """

    def run(trial: Trial) -> None:
        try_one(trial)
        ended = study.trial(trial.number)
        said = f": {ended.reason}" if ended.reason else ""
        if ended.quality is not None:
            said = f": {study.sweep.metric or 'its quality'} is {ended.quality.estimate:.4f}"
        logger.info("trial %d %s%s", ended.number, ended.state, said)

    def next_trial() -> Trial | None:
        _refuse_hopeless(study)
        return study.next_trial()

    if study.sweep.parallel_trials == 1:
        while (trial := next_trial()) is not None:
            run(trial)
        _refuse_hopeless(study, are_all=True)
        return
    with ThreadPoolExecutor(study.sweep.parallel_trials) as threads:
        running: set[Future[None]] = set()
        while True:
            while len(running) < study.sweep.parallel_trials and (trial := next_trial()):
                running.add(threads.submit(contextvars.copy_context().run, run, trial))
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
    _refuse_hopeless(study, are_all=True)


def _refuse_hopeless(study: Study, *, are_all: bool = False) -> None:
    """Raise when the first trials have all failed, as the next ones would."""
    trials = study.trials()
    ended = [trial for trial in trials if trial.state != "running"]
    enough = 1 if are_all else study.sweep.startup_trials
    if len(ended) < enough or any(trial.state != "failed" for trial in ended):
        return
    study.forget()
    raise TrainingError(
        f"the first {len(ended)} trials of the sweep {study.name!r} all failed, so it stops. The "
        f"last one: {ended[-1].reason} Correct the cause and run again: the sweep starts over."
    )


# What ends the whole sweep: the next trial would meet it too, or it costs money.
_ABOUT_ALL = (StoreError, TeacherError, BudgetError, RegistryError, InputDataError)
# What a trial's own values may lead to: a recipe that cannot be, a loss that is not finite, memory
# that runs out.
_ABOUT_ONE = (RecipeError, RuntimeError, MemoryError)


def settle(study: Study, number: int, run: Callable[[], StageResult]) -> None:
    """Run a trial and note in its study how it ended.

    Raises:
        DistilleryError: What ends the sweep; the trial is taken up again by the next run.
    """
    try:
        quality, costs = worth(run())
    except TrialPruned as given_up:
        study.give_up(number, str(given_up))
    except _ABOUT_ALL:
        raise
    except _ABOUT_ONE as error:
        # Of a trial that ran elsewhere only its own process knows why.
        study.fail(number, study.trial(number).reason or _sentence(error))
    else:
        study.complete(number, quality, costs)


@contextlib.contextmanager
def noting_failure(store: StoreSpec, execution: ExecutionSpec) -> Iterator[None]:
    """Note in the study why the trial that this process runs fails, for its parent."""
    try:
        yield
    except (TrialPruned, *_ABOUT_ALL):
        raise
    except _ABOUT_ONE as error:
        if execution.trial is not None:
            with Study(store, execution.trial.study) as study:
                study.note_reason(execution.trial.number, _sentence(error))
        raise


def _sentence(error: BaseException) -> str:
    """Return what an error says; of others than ours with its kind."""
    text = " ".join(str(error).split())[:_MOST_CHARS]
    return text if isinstance(error, DistilleryError) else f"{type(error).__name__}: {text}"
