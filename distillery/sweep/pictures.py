"""Pictures of a sweep, in the page's colours, as SVG: quality by trial, and against a cost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distillery.evaluation.picture import (
    COLOURS,
    INK,
    add_legend,
    figure_of,
    inline_svg,
    label_log,
    style_axes,
)
from schemas.comparison import Interval
from schemas.sweep import Cost, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TRIAL, _BEST, _WINNER = COLOURS[1], COLOURS[0], COLOURS[2]
LABELS: dict[Cost, tuple[str, float]] = {
    "latency": ("median latency, ms (log scale)", 1000.0),
    "parameters": ("parameters, M (log scale)", 1e-6),
    "disk_bytes": ("weights, MiB (log scale)", 2.0**-20),
}
"""What an axis is called, and by what a cost is multiplied for it."""


def quality_by_trial(trials: Sequence[Trial], winner: Trial, metric: str) -> str | None:
    """Return an inline SVG of the quality of each trial with its interval, and the best so far."""
    from matplotlib.ticker import MaxNLocator

    able = _able(trials)
    if not able:
        return None
    with figure_of(3.9) as figure:
        axes = figure.add_subplot()
        numbers, qualities, best = [], [], []
        for trial, quality in able:
            numbers.append(trial.number)
            qualities.append(quality.estimate)
            best.append(max(qualities))
        axes.step(numbers, best, where="post", color=_BEST, label="best so far")
        _draw(axes, [float(n) for n in numbers], [quality for _, quality in able], _TRIAL, "trials")
        assert winner.quality is not None
        _draw(axes, [float(winner.number)], [winner.quality], _WINNER, "winner")
        axes.set_xlabel("trial", color=INK)
        axes.set_ylabel(metric, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(0.06, 0.12)
        style_axes(axes)
        add_legend(figure)
        return inline_svg(figure, f"{metric} by trial")


def quality_against(cost: Cost, trials: Sequence[Trial], winner: Trial, metric: str) -> str | None:
    """Return an inline SVG of quality against a cost, the Pareto set of the two joined by a line.

    None: fewer than two trials differ in the cost.
    """
    able = [(trial, quality) for trial, quality in _able(trials) if trial.costs.get(cost)]
    label, scale = LABELS[cost]
    if len({trial.costs[cost] for trial, _ in able}) < 2:
        return None
    with figure_of(3.9) as figure:
        axes = figure.add_subplot()
        best, front = float("-inf"), []
        by_cost = sorted(able, key=lambda pair: (pair[0].costs[cost], -pair[1].estimate))
        for trial, quality in by_cost:
            if quality.estimate > best:
                best = quality.estimate
                front.append((trial.costs[cost] * scale, best))
        front.append((max(trial.costs[cost] for trial, _ in able) * scale, best))
        axes.step(*zip(*front, strict=True), where="post", color=_BEST, label="Pareto set")
        costs = [trial.costs[cost] * scale for trial, _ in able]
        _draw(axes, costs, [quality for _, quality in able], _TRIAL, "trials")
        assert winner.quality is not None
        _draw(axes, [winner.costs[cost] * scale], [winner.quality], _WINNER, "winner")
        axes.set_xscale("log")
        axes.margins(0.15, 0.15)
        label_log(axes.xaxis, *axes.get_xlim())
        axes.set_xlabel(label, color=INK)
        axes.set_ylabel(metric, color=INK)
        style_axes(axes)
        add_legend(figure)
        return inline_svg(figure, f"{metric} against {label}")


def _able(trials: Sequence[Trial]) -> list[tuple[Trial, Interval]]:
    return [(t, t.quality) for t in trials if t.state == "complete" and t.quality is not None]


def _draw(axes: "Axes", x: list[float], qualities: list[Interval], colour: str, label: str) -> None:
    y = [quality.estimate for quality in qualities]
    ends = [
        (q.estimate if q.low is None else q.low, q.estimate if q.high is None else q.high)
        for q in qualities
    ]
    axes.errorbar(
        x,
        y,
        yerr=[
            [max(0.0, at - low) for at, (low, _) in zip(y, ends, strict=True)],
            [max(0.0, high - at) for at, (_, high) in zip(y, ends, strict=True)],
        ],
        fmt="o",
        color=colour,
        markersize=6,
        elinewidth=1.2,
        capsize=2,
        label=label,
    )
