"""Which of the trials wins."""

from distillery.sweep.winner import pareto_set, winner
from schemas.sweep import Trial
from tests.fixtures_sweep import complete, sweep_spec

QUALITY = sweep_spec()
LATENCY = sweep_spec(costs=["latency"], pruning=False, margin=0.02)
BOTH = sweep_spec(costs=["latency", "parameters"], pruning=False, margin=0.02)


def test_the_best_wins_and_of_equals_the_earlier() -> None:
    trials = [complete(0, 0.8), complete(1, 0.9), complete(2, 0.9)]
    best = winner(trials, QUALITY)
    assert best is not None and best.number == 1


def test_nobody_wins_where_no_trial_was_completed() -> None:
    assert winner([Trial(number=0, values={}, state="failed", reason="no memory")], QUALITY) is None


def test_the_pareto_set_has_those_that_nobody_beats() -> None:
    trials = [complete(0, 0.9, 0.3), complete(1, 0.8, 0.1), complete(2, 0.8, 0.2)]
    assert [trial.number for trial in pareto_set(trials, LATENCY)] == [0, 1]
    # What is worse in one cost may be better in another.
    small = [*trials, complete(3, 0.8, 0.2, parameters=1e5)]
    assert [trial.number for trial in pareto_set(small, BOTH)] == [0, 1, 3]


def test_equals_are_all_in_the_pareto_set() -> None:
    assert len(pareto_set([complete(0, 0.9), complete(1, 0.9)], LATENCY)) == 2


def test_with_costs_the_cheapest_within_the_margin_wins() -> None:
    trials = [complete(0, 0.90, 0.3), complete(1, 0.885, 0.2), complete(2, 0.87, 0.1)]
    best = winner(trials, LATENCY)
    assert best is not None and best.number == 1


def test_of_equally_cheap_ones_the_better_wins() -> None:
    trials = [complete(0, 0.89, 0.2, 1e5), complete(1, 0.90, 0.2, 1e6)]
    best = winner(trials, BOTH)
    assert best is not None and best.number == 1
