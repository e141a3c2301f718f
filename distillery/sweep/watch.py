"""The validation curve of a trial's training goes to its study, which may give the trial up."""

import contextlib
from collections.abc import Callable, Iterator

from distillery.sweep.curves import meaning, share
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.refs import DatasetRef
from schemas.student import StudentSpec
from schemas.training import TrainingSpec

Watch = Callable[[int, int, dict[str, float]], None]
"""Told of a training's progress as its `on_progress` is; raises TrialPruned to end it."""


@contextlib.contextmanager
def watched(
    rows: DatasetRef,
    student: StudentSpec,
    training: TrainingSpec,
    store: StoreSpec,
    execution: ExecutionSpec,
) -> Iterator[Watch]:
    """Yield who is told of a training's progress; nobody where it is no trial of a sweep.

    Args:
        rows: What is learnt from.
        student: Who learns.
        training: How.
        store: Whose ledger keeps the study.
        execution: Which trial it is.
    """
    trial = execution.trial
    if trial is None:
        yield lambda step, num_steps, figures: None
        return
    from distillery.sweep.study import Study

    means = meaning(rows, student, training)
    seen: float | None = None
    with Study(store, trial.study) as study:

        def watch(step: int, num_steps: int, figures: dict[str, float]) -> None:
            nonlocal seen
            # Between two evaluations the newest loss is told again and again.
            loss = figures.get("eval_loss")
            if loss is not None and loss != seen:
                seen = loss
                study.report(trial.number, share(step, num_steps), loss, meaning=means)

        yield watch
