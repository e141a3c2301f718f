"""Trials end in their own ways, and the sweep goes on, or stops with the reason."""

import threading
from typing import Any

import pytest

from distillery.sweep.study import Study
from distillery.sweep.trials import (
    noting_failure,
    open_study,
    refuse_other_rows,
    run_trials,
    settle,
)
from schemas.errors import (
    CrashedError,
    DistilleryError,
    InputDataError,
    RecipeError,
    StageError,
    TeacherError,
    TrainingError,
    TrialPruned,
)
from schemas.execution import ExecutionSpec, StoreSpec, TrialSpec
from schemas.refs import DatasetRef
from schemas.student import FromScratchStudent
from schemas.sweep import Trial
from tests.fixtures_sweep import costs_of, interval, sweep_recipe, sweep_spec

NEW = FromScratchStudent(num_layers=1, hidden_size=16, intermediate_size=32, num_heads=2)


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

        run_trials(study, "accuracy", try_one)
        found = [(trial.state, trial.reason) for trial in study.trials()]
    assert found == [
        ("complete", None),
        ("failed", "the loss is not finite."),
        ("pruned", "behind."),
        ("failed", "MemoryError: out of it"),
        ("complete", None),
    ]


def test_trials_that_all_fail_end_the_sweep_are_kept_and_the_next_run_goes_on(
    sqlite_spec: StoreSpec,
) -> None:
    tried: list[int] = []

    def failing(study: Study) -> None:
        def try_one(trial: Trial) -> None:
            tried.append(trial.number)
            settle(study, trial.number, _fails(RecipeError("widths differ.")))

        run_trials(study, "accuracy", try_one)

    with _study(sqlite_spec) as study:
        with pytest.raises(TrainingError, match=r"all 2 trials of the sweep 's' failed") as caught:
            failing(study)
        said = str(caught.value)
        assert "training.learning_rate=" in said and "widths differ. Correct the cause" in said
        assert "goes on with trial 2" in said
        assert [trial.state for trial in study.trials()] == ["failed"] * 2
    with _study(sqlite_spec) as study, pytest.raises(TrainingError, match="with trial 4"):
        failing(study)
    with _study(sqlite_spec) as study, pytest.raises(TrainingError, match="num_trials is above 5"):
        failing(study)
    assert tried == [0, 1, 2, 3, 4]
    with _study(sqlite_spec) as study, pytest.raises(TrainingError, match="num_trials is above 5"):
        failing(study)
    assert tried == [0, 1, 2, 3, 4]

    with _study(sqlite_spec, num_trials=6) as study:  # the cause is gone
        run_trials(study, "accuracy", lambda t: study.complete(t.number, interval(1), costs_of(1)))
        assert [trial.state for trial in study.trials()] == ["failed"] * 5 + ["complete"]


@pytest.mark.parametrize("slow_one_succeeds", [True, False])
def test_a_running_trial_is_waited_for_before_all_are_said_to_have_failed(
    sqlite_spec: StoreSpec, slow_one_succeeds: bool
) -> None:
    two_failed = threading.Event()
    tried: list[int] = []
    with _study(sqlite_spec, parallel_trials=2) as study:

        def try_one(trial: Trial) -> None:
            tried.append(trial.number)
            if trial.number == 0:
                assert two_failed.wait(timeout=60)
            elif trial.number == 2:
                threading.Timer(0.2, two_failed.set).start()
            if trial.number == 0 and slow_one_succeeds:
                study.complete(0, interval(0.5), costs_of(0.1))
            else:
                settle(study, trial.number, _fails(TrainingError("no.")))

        if slow_one_succeeds:
            run_trials(study, "accuracy", try_one)
        else:
            with pytest.raises(TrainingError, match="all 3 trials"):
                run_trials(study, "accuracy", try_one)
        states = [trial.state for trial in study.trials()]
    assert sorted(tried) == ([0, 1, 2, 3, 4] if slow_one_succeeds else [0, 1, 2])
    assert states == ["complete" if slow_one_succeeds else "failed"] + ["failed"] * (len(tried) - 1)


def test_what_ends_the_sweep_lets_running_trials_end(
    sqlite_spec: StoreSpec, caplog: pytest.LogCaptureFixture
) -> None:
    refused = threading.Event()
    with _study(sqlite_spec, parallel_trials=2) as study:

        def try_one(trial: Trial) -> None:
            if trial.number == 1:
                threading.Timer(0.2, refused.set).start()
                settle(study, 1, _fails(TeacherError("no key")))
            assert refused.wait(timeout=60)
            study.complete(trial.number, interval(0.5), costs_of(0.1))

        with pytest.raises(TeacherError, match="no key"):
            run_trials(study, "accuracy", try_one)
        assert [trial.state for trial in study.trials()] == ["complete", "running"]
    assert "the sweep stops once 1 running trials have ended" in caplog.text


def test_a_run_on_a_pool_that_says_why_or_crashes_fails_its_trial_alone(
    sqlite_spec: StoreSpec,
) -> None:
    with _study(sqlite_spec, startup_trials=3) as study:

        def try_one(trial: Trial) -> None:
            if trial.number == 0:  # the process says why it failed, as the kernel lets it
                study.note_reason(0, "the loss is not finite.")
                settle(study, 0, _fails(StageError("failed")))
            elif trial.number == 1:
                settle(study, 1, _fails(CrashedError("crashed three times")))
            else:
                study.complete(trial.number, interval(0.5), costs_of(0.1))

        run_trials(study, "accuracy", try_one)
        found = [(trial.state, trial.reason) for trial in study.trials()[:2]]
    assert found == [("failed", "the loss is not finite."), ("failed", "crashed three times")]


def test_a_reason_of_an_earlier_try_is_not_the_reason_of_the_next(sqlite_spec: StoreSpec) -> None:
    with _study(sqlite_spec) as study:
        trial = study.next_trial()
        assert trial is not None
        study.note_reason(0, "out of memory")  # and its sweep is killed
    with _study(sqlite_spec) as study:
        again = study.next_trial()
        assert again is not None and (again.number, again.reason) == (0, None)


def test_a_trial_that_finds_other_rows_than_its_sweep_began_with_is_refused(
    sqlite_spec: StoreSpec,
) -> None:
    recipe = sweep_recipe(sqlite_spec).model_copy(update={"student": NEW})
    began, grown = (
        DatasetRef(uri="", fingerprint=name, num_rows=1, columns=()) for name in ("began", "grown")
    )
    with open_study(recipe, began) as study:
        refuse_other_rows(recipe, began, study.name)
        with pytest.raises(InputDataError, match=f"not those that the sweep {study.name!r} began"):
            refuse_other_rows(recipe, grown, study.name)


def test_a_value_that_a_library_refuses_is_the_trials_own_failure(sqlite_spec: StoreSpec) -> None:
    with _study(sqlite_spec, num_trials=2, startup_trials=3) as study:

        def try_one(trial: Trial) -> None:
            run = ExecutionSpec(trial=TrialSpec(study="s", number=trial.number))
            with pytest.raises(ValueError), noting_failure(sqlite_spec, run):
                raise ValueError("target modules c_attn are not there")
            settle(study, trial.number, _fails(StageError("the run on the pool failed")))

        with pytest.raises(TrainingError, match="all 2 trials"):
            run_trials(study, "accuracy", try_one)
        assert {t.reason for t in study.trials()} == {
            "ValueError: target modules c_attn are not there"
        }


def test_the_quality_is_called_by_its_metric(
    sqlite_spec: StoreSpec, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="distillery.run"), _study(sqlite_spec) as study:
        run_trials(
            study, "macro_f1", lambda t: study.complete(t.number, interval(0.5), costs_of(1))
        )
    assert "trial 0 complete: macro_f1 is 0.5000" in caplog.text


def test_a_failure_after_a_success_does_not_end_the_sweep(sqlite_spec: StoreSpec) -> None:
    with _study(sqlite_spec) as study:

        def try_one(trial: Trial) -> None:
            if trial.number:
                settle(study, trial.number, _fails(TrainingError("no.")))
            else:
                study.complete(trial.number, interval(0.5), costs_of(0.1))

        run_trials(study, "accuracy", try_one)
        assert [trial.state for trial in study.trials()] == ["complete"] + ["failed"] * 4


@pytest.mark.parametrize("error", [TeacherError("no key"), StageError("no key")])
def test_what_the_next_trial_would_meet_too_ends_the_sweep_and_leaves_the_trial(
    sqlite_spec: StoreSpec, error: DistilleryError
) -> None:
    """A run on a pool that says nothing, too: it was cancelled, or nobody ran it."""
    with _study(sqlite_spec) as study:
        with pytest.raises(type(error), match="no key"):
            run_trials(study, "accuracy", lambda trial: settle(study, trial.number, _fails(error)))
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

        run_trials(study, "accuracy", try_one)
        assert [trial.state for trial in study.trials()] == ["complete"] * 6
