"""Trials are run one after the other, or a few at a time, until the sweep has had enough."""

import contextlib
import contextvars
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from distillery.storage.fingerprint import (
    canonical_json,
    model_identity,
    sha256,
    tokenizer_identity,
)
from distillery.storage.stage import StageResult
from distillery.sweep.study import Study, study_name
from distillery.sweep.trial import worth
from distillery.teacher import teacher_identity
from schemas.errors import (
    BudgetError,
    CrashedError,
    DistilleryError,
    InputDataError,
    RegistryError,
    StageError,
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
    """Return the study of a sweep over the valid rows ``prompts``; close it after use.

    Raises:
        StoreError: The ledger's database cannot hold it, or another process runs this sweep.
    """
    return Study(recipe.store, _name(recipe, prompts), recipe.sweep)


def refuse_other_rows(recipe: SweepRecipe, prompts: DatasetRef, study: str) -> None:
    """Return when a trial reads the rows that its sweep began with.

    Raises:
        InputDataError: It does not: its student would be compared with those of other rows.
    """
    if _name(recipe, prompts) != study:
        raise InputDataError(
            f"the rows of data, or the files of teacher or student, are not those that the sweep "
            f"{study!r} began with, so its students could not be compared. Run it again as a new "
            "sweep; of a log that grows, name a file that does not in data."
        )


def _name(recipe: SweepRecipe, prompts: DatasetRef) -> str:
    student = recipe.student
    identities = {"teacher": sha256(teacher_identity(recipe.teacher))}
    if not isinstance(student, FromScratchStudent):
        identities["student"] = model_identity(student.model, student.revision, role="student")
    elif student.tokenizer is not None:
        identities["student"] = tokenizer_identity(student.tokenizer)
    return study_name(recipe, prompts, identities)


def run_trials(study: Study, metric: str, try_one: Try) -> None:
    """Run the trials of ``study`` that have not ended, and new ones up to `sweep.num_trials`.

    What ends the sweep lets trials that are running end first; all of them are kept.

    Args:
        study: Its trials.
        metric: What their quality is called.
        try_one: Runs one of them.

    Raises:
        TrainingError: No trial has come to anything, and `sweep.startup_trials` of them have failed
            in this run, or none is left.
    """
    before = {trial.number for trial in study.trials() if trial.state != "running"}

    def run(trial: Trial) -> None:
        try_one(trial)
        ended = study.trial(trial.number)
        said = f": {ended.reason}" if ended.reason else ""
        if ended.quality is not None:
            said = f": {metric} is {ended.quality.estimate:.4f}"
        logger.info("trial %d %s%s", ended.number, ended.state, said)

    def next_trial() -> Trial | None:
        ended = [trial for trial in study.trials() if trial.state != "running"]
        failed = [trial for trial in ended if trial.number not in before]
        is_hopeless = all(trial.state == "failed" for trial in ended)
        if is_hopeless and len(failed) >= study.sweep.startup_trials:
            return None
        return study.next_trial()

    if study.sweep.parallel_trials == 1:
        while (trial := next_trial()) is not None:
            run(trial)
    else:
        _run_in_parallel(study.sweep.parallel_trials, next_trial, run)
    _refuse_all_failed(study)


def _run_in_parallel(
    num_threads: int, next_trial: Callable[[], Trial | None], run: Callable[[Trial], None]
) -> None:
    running: set[Future[None]] = set()
    with ThreadPoolExecutor(num_threads) as threads:  # which waits for those that are running
        while True:
            while len(running) < num_threads and (trial := next_trial()):
                running.add(threads.submit(contextvars.copy_context().run, run, trial))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                if future.exception() is not None and running:
                    logger.warning(
                        "the sweep stops once %d running trials have ended", len(running)
                    )
                future.result()


def _refuse_all_failed(study: Study) -> None:
    """Raise when no trial was completed: there is no winner."""
    trials = study.trials()
    if any(trial.state == "complete" for trial in trials):
        return
    last = trials[-1]
    chose = ", ".join(f"{field}={canonical_json(value)}" for field, value in last.values.items())
    again = f"this sweep goes on with trial {len(trials)}"
    if len(trials) >= study.sweep.num_trials:
        again = f"this sweep goes on once sweep.num_trials is above {len(trials)}"
    raise TrainingError(
        f"all {len(trials)} trials of the sweep {study.name!r} failed, so it stops. The last one, "
        f"with {chose}: {(last.reason or 'no reason').rstrip('.')}. Correct the cause and run "
        f"again: {again}, a changed recipe is a new sweep."
    )


# What ends the whole sweep: the next trial would meet it too, or it costs money.
_ABOUT_ALL = (StoreError, TeacherError, BudgetError, RegistryError, InputDataError)
# What a trial's own values may lead to: a recipe that cannot be, modules that the model does not
# have, a loss that is not finite, memory that runs out.
_ABOUT_ONE = (ValueError, RuntimeError, MemoryError)


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
        # Of a trial that ran elsewhere only its own process knows why. Where it says nothing it met
        # what ends the sweep, or was cancelled, or nobody ran it; unless it had no time to say it.
        reason = study.trial(number).reason
        has_not_said = isinstance(error, StageError) and reason is None
        if has_not_said and not isinstance(error, CrashedError):
            raise
        study.fail(number, reason or _sentence(error))
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
