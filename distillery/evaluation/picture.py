"""Pictures in the page's colours, as SVG: quality against time and cost, training curves."""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from schemas.comparison import Comparison, ContestantFigures, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure

NUM_COLOURS = 8
"""Colours that the page has for contestants."""

# Stand-ins, which the page replaces by its own, so that the picture follows light and dark mode.
INK, GRID = "#010203", "#040506"
COLOURS = [f"#0a0b{number:02x}" for number in range(NUM_COLOURS)]
_STYLE_OF_COLOUR = {
    INK: "var(--ink)",
    GRID: "var(--line)",
    **{colour: f"var(--model-{number})" for number, colour in enumerate(COLOURS)},
}
_MARKERS = "s^DovpPX"


def quality_against_latency(comparison: Comparison) -> str | None:
    """Return an inline SVG of the primary metric against p50 latency; None when nobody has both.

    Upward bars are the interval of the metric; the bar to the right ends at the p95 latency.
    """

    def times(row: ContestantFigures) -> tuple[float, float] | None:
        speed = row.performance
        if not speed.latency_p50_s:
            return None
        return speed.latency_p50_s * 1000, (speed.latency_p95_s or speed.latency_p50_s) * 1000

    return _quality_against(comparison, times, "inference time per answer", "ms")


def quality_against_cost(comparison: Comparison) -> str | None:
    """Return the same against the cost of a thousand requests; None when nobody has both."""

    def cost(row: ContestantFigures) -> tuple[float, float] | None:
        return (row.cost.per_1000, row.cost.per_1000) if row.cost and row.cost.per_1000 else None

    currencies = {row.cost.currency for row in comparison.contestants if row.cost}
    if len(currencies) != 1:  # nothing to compare, or not comparable
        return None
    return _quality_against(comparison, cost, "cost per 1,000 requests", currencies.pop())


def _quality_against(
    comparison: Comparison,
    values: Callable[[ContestantFigures], tuple[float, float] | None],
    what: str,
    unit: str,
) -> str | None:
    """Return the primary metric against a figure, drawn as a value and a slower or dearer end."""
    with figure_of(3.9) as figure:
        axes = figure.add_subplot()
        num_drawn = 0
        for number, row in enumerate(comparison.contestants):
            quality, ends = row.metrics[comparison.metric], values(row)
            if quality and ends:
                _draw(axes, number, row.name, quality, *ends)
                num_drawn += 1
        if not num_drawn:
            return None
        _draw_axes(axes, comparison.metric, f"{what}, {unit} (log scale)")
        add_legend(figure)
        return inline_svg(figure, f"{comparison.metric} against {what}")


def training_curve(curve: Sequence[Mapping[str, float]]) -> str | None:
    """Return an inline SVG of loss and validation loss by step; None when nothing was logged."""
    with figure_of(3.0) as figure:
        axes = figure.add_subplot()
        lines = (("loss", "training", "-"), ("eval_loss", "validation", "o-"))
        for number, (key, label, style) in enumerate(lines):
            points = [(entry["step"], entry[key]) for entry in curve if key in entry]
            if points:
                steps, losses = zip(*points, strict=True)
                colour = COLOURS[2 * number]
                axes.plot(steps, losses, style, color=colour, label=label, markersize=4)
        if not axes.lines:
            return None
        axes.set_yscale("log")
        label_log(axes.yaxis, *axes.get_ylim())
        axes.set_xlabel("optimizer step", color=INK)
        axes.set_ylabel("nats per response token", color=INK)
        style_axes(axes)
        add_legend(figure)
        return inline_svg(figure, "Training and validation loss by optimizer step")


@contextmanager
def figure_of(height: float) -> "Iterator[Figure]":
    """Yield a figure of so many inches; its text stays text."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text stays text: it can be read aloud and found. The salt makes the ids reproducible.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "distillery", "font.size": 12}):
        yield Figure(figsize=(5.4, height), layout="constrained")


def add_legend(figure: "Figure") -> None:
    """Put the legend above, in the colours of what it names."""
    figure.legend(
        loc="outside upper left", ncols=3, frameon=False, labelcolor="linecolor", handlelength=1
    )


def _draw(
    axes: "Axes", number: int, name: str, quality: Interval, x: float, worst_x: float
) -> None:
    y = quality.estimate * 100
    low = y if quality.low is None else quality.low * 100
    high = y if quality.high is None else quality.high * 100
    axes.errorbar(
        [x],
        [y],
        xerr=[[0.0], [max(0.0, worst_x - x)]],
        yerr=[[max(0.0, y - low)], [max(0.0, high - y)]],
        color=COLOURS[number % NUM_COLOURS],
        marker=_MARKERS[number % NUM_COLOURS],
        markersize=8,
        elinewidth=1.6,
        capsize=3,
        label=name,
    )


def _draw_axes(axes: "Axes", metric: str, label: str) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_xscale("log")
    axes.margins(0.25, 0.2)
    label_log(axes.xaxis, *axes.get_xlim())
    axes.yaxis.set_major_formatter(FuncFormatter(percent_tick))
    axes.set_xlabel(label, color=INK)
    axes.set_ylabel(metric, color=INK)
    style_axes(axes)


def percent_tick(value: float, _: int) -> str:
    """Return a tick's label; the margin around 0 and 100 % is not labelled."""
    return f"{value:g} %" if 0 <= value <= 100 else ""


def label_log(axis: "XAxis | YAxis", low: float, high: float) -> None:
    """Write plain numbers, neither one alone nor so many that they run into each other."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if high < 5 * low:  # of 1, 2 and 5 perhaps one would be inside
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def style_axes(axes: "Axes") -> None:
    """Leave a grid and a line below, in the page's colours."""
    axes.tick_params(colors=INK, which="both", length=0)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def inline_svg(figure: "Figure", label: str) -> str:
    """Return the SVG element alone, without metadata, its colours replaced by the page's."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for colour, style in _STYLE_OF_COLOUR.items():
        text = text.replace(colour, style)
    # The page sets width, height and font; the view box keeps the proportions.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"'?DejaVu Sans'?[^;\"]*", "var(--font)", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
