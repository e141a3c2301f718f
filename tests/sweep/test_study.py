"""Trials survive their process: the same values, the same winner, on both databases."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from distillery.ledger import Ledger
from distillery.ledger.database import Database
from distillery.ledger.engine import ledger_url
from distillery.sweep.study import Study, study_name
from distillery.sweep.winner import winner
from schemas.errors import StoreError, TrialPruned
from schemas.execution import StoreSpec
from schemas.refs import DatasetRef
from schemas.sweep import SweepSpec, Trial
from tests.fixtures_sweep import LEARNING_RATE, costs_of, interval, sweep_recipe, sweep_spec

SWEEP = sweep_spec(num_trials=9, startup_trials=3)


def worth(trial: Trial) -> float:
    """Best at a learning rate of 0.01."""
    rate = trial.values["training.learning_rate"]
    assert isinstance(rate, float)
    return 1 / (1 + abs(rate - 0.01))


def go_on(store: StoreSpec, sweep: SweepSpec = SWEEP, *, steps: int = 100) -> tuple[Trial, ...]:
    """Run some trials as a process of its own would."""
    with Study(store, "s", sweep) as study:
        for _ in range(steps):
            if (trial := study.next_trial()) is None:
                break
            study.complete(trial.number, interval(worth(trial)), costs_of(0.1))
        return study.trials()


def values(trials: tuple[Trial, ...]) -> list[object]:
    return [trial.values for trial in trials]


def test_a_sweep_tries_as_many_as_it_says_and_raising_that_goes_on(
    ledger_spec: StoreSpec,
) -> None:
    first = go_on(ledger_spec)
    assert [trial.state for trial in first] == ["complete"] * 9
    more = go_on(ledger_spec, SWEEP.model_copy(update={"num_trials": 11}))
    assert values(more)[:9] == values(first)
    assert len(more) == 11


@pytest.mark.slow
def test_a_killed_sweep_tries_what_it_would_have_tried(
    ledger_spec: StoreSpec, tmp_path: Path
) -> None:
    whole = go_on(StoreSpec(root=str(tmp_path / "whole")))
    for _ in range(4):
        go_on(ledger_spec, steps=2)
        with Study(ledger_spec, "s", SWEEP) as study:
            left = study.next_trial()  # and is killed before it ends
            assert left is not None
        with Study(ledger_spec, "s", SWEEP) as study:
            again = study.next_trial()
        assert again == left
    resumed = go_on(ledger_spec)
    assert values(resumed) == values(whole)
    assert winner(resumed, SWEEP) is not None
    best, other = winner(resumed, SWEEP), winner(whole, SWEEP)
    assert best is not None and other is not None
    assert (best.number, best.values) == (other.number, other.values)


def test_one_process_runs_each_trial_once(ledger_spec: StoreSpec) -> None:
    with Study(ledger_spec, "s", SWEEP) as study:
        begun = [study.next_trial(), study.next_trial()]
        assert [trial.number for trial in begun if trial] == [0, 1]


def test_a_sweep_that_is_running_is_refused_and_one_that_has_ended_is_not(
    ledger_spec: StoreSpec,
) -> None:
    with Study(ledger_spec, "s", SWEEP) as study:
        begun = study.next_trial()
        with pytest.raises(StoreError, match=r"the sweep 's' is running already.*Wait until"):
            Study(ledger_spec, "s", SWEEP)
        with Study(ledger_spec, "another", SWEEP), Study(ledger_spec, "s") as of_a_trial:
            assert of_a_trial.trials() == (begun,)
    with Study(ledger_spec, "s", SWEEP) as study:
        assert study.next_trial() == begun


_HOLD = """
import sys, time
from distillery.sweep.study import Study
from schemas.execution import StoreSpec
from tests.fixtures_sweep import sweep_spec
study = Study(StoreSpec(root=sys.argv[1]), "s", sweep_spec())
print("held", flush=True)
time.sleep(600)
"""


def test_a_sweep_whose_process_was_killed_goes_on_at_once(sqlite_spec: StoreSpec) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, sqlite_spec.root], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match="is running already"):
            Study(sqlite_spec, "s", SWEEP)
        other.kill()
    with Study(sqlite_spec, "s", SWEEP) as study:
        assert study.next_trial() is not None


def test_the_sampler_learns_from_what_was_tried(sqlite_spec: StoreSpec) -> None:
    sweep = SWEEP.model_copy(update={"num_trials": 30})
    found = go_on(sqlite_spec, sweep)
    assert sum(map(worth, found[-10:])) > sum(map(worth, found[:10]))


def test_what_became_of_a_trial_is_kept(ledger_spec: StoreSpec) -> None:
    with Study(ledger_spec, "s", SWEEP) as study:
        for _ in range(3):
            assert study.next_trial() is not None
        study.complete(0, interval(0.5), costs_of(0.2))
        study.give_up(1, "worse than others")
        study.fail(2, "no memory")
    with Study(ledger_spec, "s") as study:
        assert study.sweep == SWEEP
        done, pruned, failed = study.trials()
    assert (done.state, done.quality, done.costs) == ("complete", interval(0.5), costs_of(0.2))
    assert (pruned.state, pruned.reason, pruned.quality) == ("pruned", "worse than others", None)
    assert (failed.state, failed.reason) == ("failed", "no memory")
    assert done.seconds is not None


def _curve(study: Study, losses: dict[int, float], meaning: str = "m") -> Trial:
    trial = study.next_trial()
    assert trial is not None
    for share, loss in losses.items():
        study.report(trial.number, share, loss, meaning=meaning)
    return trial


def test_a_trial_behind_most_others_is_given_up(ledger_spec: StoreSpec) -> None:
    sweep = SWEEP.model_copy(update={"startup_trials": 2})
    with Study(ledger_spec, "s", sweep) as study:
        for losses in ({500: 1.0, 1000: 0.5}, {500: 2.0, 1000: 1.0}):
            study.complete(_curve(study, losses).number, interval(0.5), costs_of(0.1))
        with pytest.raises(TrialPruned, match=r"given up after 50 %.*best.*is 3,"):
            _curve(study, {250: 5.0, 500: 3.0})
        # A loss that means something else is no comparison.
        _curve(study, {250: 5.0, 500: 3.0}, meaning="another objective")


def test_nothing_is_given_up_where_the_sweep_says_so(sqlite_spec: StoreSpec) -> None:
    sweep = SWEEP.model_copy(update={"startup_trials": 1, "pruning": False})
    with Study(sqlite_spec, "s", sweep) as study:
        study.complete(_curve(study, {500: 1.0}).number, interval(0.5), costs_of(0.1))
        _curve(study, {500: 9.0})


def test_costs_are_further_objectives(ledger_spec: StoreSpec) -> None:
    sweep = sweep_spec(costs=["latency"], pruning=False, num_trials=6, startup_trials=2)
    found = go_on(ledger_spec, sweep)
    assert [trial.costs["latency"] for trial in found] == [0.1] * 6


def test_costs_become_smaller(sqlite_spec: StoreSpec) -> None:
    sweep = sweep_spec(costs=["latency"], pruning=False, num_trials=40, startup_trials=10)
    latencies: list[float] = []
    with Study(sqlite_spec, "s", sweep) as study:
        while (trial := study.next_trial()) is not None:
            latencies.append(float(trial.values["training.batch_size"]))  # type: ignore[arg-type]
            study.complete(trial.number, interval(0.5), costs_of(latencies[-1]))
    assert sum(latencies[30:]) < 0.6 * sum(latencies[:10])


def test_the_ledger_stays_a_ledger(ledger_spec: StoreSpec) -> None:
    go_on(ledger_spec, steps=2)
    with Ledger.open(ledger_spec) as ledger:
        assert ledger.stats() == []


def test_a_database_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    address = "postgresql+psycopg://me:${SWEEP_PASSWORD}@127.0.0.1:1/none"
    spec = StoreSpec(root=str(tmp_path), ledger_url=address)
    patch = pytest.MonkeyPatch()
    patch.setenv("SWEEP_PASSWORD", "sesame")
    with pytest.raises(StoreError) as caught:
        Study(spec, "s", SWEEP)
    patch.undo()
    assert "sesame" not in str(caught.value)


def test_a_database_of_another_program_is_refused(ledger_spec: StoreSpec) -> None:
    database = Database(ledger_url(ledger_spec))

    def migrate(connection: sa.Connection) -> None:
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(sa.text("INSERT INTO alembic_version VALUES ('0a1b2c3d')"))

    database.write(migrate)
    database.dispose()
    with pytest.raises(StoreError, match=r"alembic_version .* such as Prefect or MLflow"):
        Study(ledger_spec, "s", SWEEP)


def test_a_trial_that_sees_another_ledger_says_so(sqlite_spec: StoreSpec) -> None:
    with pytest.raises(StoreError, match=r"has no sweep 's'\. .*store\.ledger_url"):
        Study(sqlite_spec, "s")


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        (lambda r: r.model_copy(update={"task": r.task.model_copy(update={"name": "u"})}), True),
        (
            lambda r: r.model_copy(
                update={"training": r.training.model_copy(update={"epochs": 9.0})}
            ),
            True,
        ),
        (
            lambda r: r.model_copy(update={"sweep": r.sweep.model_copy(update={"seed": 1})}),
            True,
        ),
        (
            lambda r: r.model_copy(
                update={"training": r.training.model_copy(update={"micro_batch_size": 1})}
            ),
            False,
        ),
        (
            lambda r: r.model_copy(update={"sweep": r.sweep.model_copy(update={"num_trials": 99})}),
            False,
        ),
        (
            lambda r: r.model_copy(update={"gate": r.gate.model_copy(update={"alias": "other"})}),
            False,
        ),
    ],
)
def test_another_recipe_has_another_study(change: Callable[..., object], is_another: bool) -> None:
    recipe = sweep_recipe(parameters=[LEARNING_RATE])
    prompts = DatasetRef(uri="u", fingerprint="f", num_rows=1, columns=())
    names = {study_name(each, prompts, {}) for each in (recipe, change(recipe))}  # type: ignore[arg-type]
    assert (len(names) == 2) is is_another


def test_other_selection_rows_make_another_study_and_other_test_rows_do_not() -> None:
    recipe = sweep_recipe()
    hashes = {split: split for split in ("train", "validation", "gold", "selection", "test")}
    prompts = DatasetRef(uri="u", fingerprint="f", num_rows=1, columns=(), hashes=hashes)

    def with_other(split: str) -> str:
        changed = prompts.model_copy(update={"hashes": hashes | {split: "other"}})
        return study_name(recipe, changed, {})

    assert with_other("selection") != study_name(recipe, prompts, {})
    assert with_other("test") == study_name(recipe, prompts, {})
