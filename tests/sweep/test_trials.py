"""Trials end in their own ways, and the sweep goes on, or stops with the reason."""

import threading
from typing import Any

import pytest

from distillery.sweep.study import Study
from distillery.sweep.trials import noting_failure, run_trials, settle
from schemas.errors import RecipeError, TeacherError, TrainingError, TrialPruned
from schemas.execution import ExecutionSpec, StoreSpec, TrialSpec
from schemas.sweep import Trial
from tests.fixtures_sweep import costs_of, interval, sweep_spec


def _study(store: StoreSpec, **changes: Any) -> Study:
    return Study(store, "s", sweep_spec(**({"num_trials": 5, "startup_trials": 2} | changes)))


def _fails(error: BaseException) -> Any:
    def run() -> Any:
        raise error

    return run


def test_a_failed_or_pruned_trial_is_kept_with_its_reason_and_the_next_one_is_tried(
    sqlite_spec: StoreSpec,
) -> None:
    ends: dict[int, BaseException] = {
        1: TrainingError("the loss is not finite."),
        2: TrialPruned("behind."),
        3: MemoryError("out of it"),
    }
    with _study(sqlite_spec) as study:

        def try_one(trial: Trial) -> None:
            if trial.number in ends:
                settle(study, trial.number, _fails(ends[trial.number]))
            else:
                study.complete(trial.number, interval(0.5), costs_of(0.1))

        run_trials(study, try_one)
        found = [(trial.state, trial.reason) for trial in study.trials()]
    assert found == [
        ("complete", None),
        ("failed", "the loss is not finite."),
        ("pruned", "behind."),
        ("failed", "MemoryError: out of it"),
        ("complete", None),
    ]


def test_first_trials_that_all_fail_end_the_sweep_and_the_next_run_starts_over(
    sqlite_spec: StoreSpec,
) -> None:
    tried: list[int] = []
    with _study(sqlite_spec) as study:

        def try_one(trial: Trial) -> None:
            tried.append(trial.number)
            settle(study, trial.number, _fails(RecipeError("widths differ.")))

        with pytest.raises(TrainingError, match=r"first 2 trials .* all failed.*widths differ\."):
            run_trials(study, try_one)
    assert tried == [0, 1]
    with _study(sqlite_spec) as study:
        assert study.trials() == ()


def test_a_failure_after_a_success_does_not_end_the_sweep(sqlite_spec: StoreSpec) -> None:
    with _study(sqlite_spec) as study:

        def try_one(trial: Trial) -> None:
            if trial.number:
                settle(study, trial.number, _fails(TrainingError("no.")))
            else:
                study.complete(trial.number, interval(0.5), costs_of(0.1))

        run_trials(study, try_one)
        assert [trial.state for trial in study.trials()] == ["complete"] + ["failed"] * 4


def test_a_teacher_that_cannot_be_asked_ends_the_sweep_and_leaves_the_trial(
    sqlite_spec: StoreSpec,
) -> None:
    with _study(sqlite_spec) as study:
        with pytest.raises(TeacherError, match="no key"):
            run_trials(
                study, lambda trial: settle(study, trial.number, _fails(TeacherError("no key")))
            )
        assert [trial.state for trial in study.trials()] == ["running"]


def test_the_reason_comes_from_the_process_of_the_trial(sqlite_spec: StoreSpec) -> None:
    with _study(sqlite_spec) as study:
        trial = study.next_trial()
        assert trial is not None
        execution = ExecutionSpec(trial=TrialSpec(study="s", number=trial.number))
        with pytest.raises(TrainingError), noting_failure(sqlite_spec, execution):
            raise TrainingError("it does not fit 16 GB.")
        settle(study, trial.number, _fails(RuntimeError("deployment ended as Failed")))
        assert study.trial(trial.number).reason == "it does not fit 16 GB."


def test_parallel_trials_run_beside_each_other(ledger_spec: StoreSpec) -> None:
    together = threading.Barrier(3, timeout=60)
    with _study(ledger_spec, num_trials=6, parallel_trials=3) as study:

        def try_one(trial: Trial) -> None:
            together.wait()
            study.complete(trial.number, interval(0.5), costs_of(0.1))

        run_trials(study, try_one)
        assert [trial.state for trial in study.trials()] == ["complete"] * 6
