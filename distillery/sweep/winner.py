"""Which trial wins: the best student, or the cheapest of those that are nearly as good."""

from collections.abc import Sequence

from schemas.sweep import SweepSpec, Trial


def winner(trials: Sequence[Trial], sweep: SweepSpec) -> Trial | None:
    """Return the best trial; of equals the earliest. None: none was completed.

    With costs it is the cheapest, by the first of them, of those on the Pareto set whose quality
    is at most `sweep.margin` below the best one's.
    """
    able = [trial for trial in trials if trial.state == "complete"]
    if not able:
        return None
    best = max(map(_quality, able))
    if not sweep.costs:
        return min(
            (trial for trial in able if _quality(trial) == best), key=lambda trial: trial.number
        )
    first = sweep.costs[0]
    good = [t for t in pareto_set(able, sweep) if _quality(t) >= best - sweep.margin]
    return min(good, key=lambda trial: (trial.costs[first], -_quality(trial), trial.number))


def pareto_set(trials: Sequence[Trial], sweep: SweepSpec) -> list[Trial]:
    """Return the completed trials that no other one beats in something and equals in the rest."""
    able = [trial for trial in trials if trial.state == "complete"]
    figures = {trial.number: _figures(trial, sweep) for trial in able}
    return [
        trial
        for trial in able
        if not any(_beats(figures[other.number], figures[trial.number]) for other in able)
    ]


def _figures(trial: Trial, sweep: SweepSpec) -> tuple[float, ...]:
    """Return what has to be small."""
    return (-_quality(trial), *(trial.costs[cost] for cost in sweep.costs))


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _quality(trial: Trial) -> float:
    assert trial.quality is not None  # it is complete
    return trial.quality.estimate
