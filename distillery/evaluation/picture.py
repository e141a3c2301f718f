"""The picture of quality against latency, as an SVG that follows the page's colours."""

import io
import re
from typing import TYPE_CHECKING

from schemas.comparison import Comparison, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_COLOURS = 6
"""Colours that the page has for contestants."""

# Stand-ins, which the page replaces by its own, so that the picture follows light and dark mode.
_INK, _GRID = "#010203", "#040506"
_COLOURS = [f"#0a0b{number:02x}" for number in range(NUM_COLOURS)]
_STYLE_OF_COLOUR = {
    _INK: "var(--ink)",
    _GRID: "var(--line)",
    **{colour: f"var(--model-{number})" for number, colour in enumerate(_COLOURS)},
}
_MARKERS = "s^Dovp"


def quality_against_latency(comparison: Comparison) -> str | None:
    """Return an inline SVG of the primary metric against p50 latency; None when nobody has both.

    Upward bars are the interval of the metric; the bar to the right ends at the p95 latency.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text stays text: it can be read aloud and found. The salt makes the ids reproducible.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "distillery", "font.size": 12}):
        figure = Figure(figsize=(5.4, 3.9), layout="constrained")
        axes = figure.add_subplot()
        num_drawn = 0
        for number, row in enumerate(comparison.contestants):
            quality, speed = row.metrics[comparison.metric], row.performance
            if quality and speed.latency_p50_s:
                slow_s = speed.latency_p95_s or speed.latency_p50_s
                _draw(axes, number, row.name, quality, speed.latency_p50_s, slow_s)
                num_drawn += 1
        if not num_drawn:
            return None
        _draw_axes(axes, comparison.metric)
        figure.legend(
            loc="outside upper left", ncols=3, frameon=False, labelcolor="linecolor", handlelength=1
        )
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline_svg(file.getvalue(), f"{comparison.metric} against inference time per answer")


def _draw(
    axes: "Axes", number: int, name: str, quality: Interval, p50_s: float, p95_s: float
) -> None:
    x, y = p50_s * 1000, quality.estimate * 100
    low = y if quality.low is None else quality.low * 100
    high = y if quality.high is None else quality.high * 100
    axes.errorbar(
        [x],
        [y],
        xerr=[[0.0], [max(0.0, p95_s * 1000 - x)]],
        yerr=[[max(0.0, y - low)], [max(0.0, high - y)]],
        color=_COLOURS[number % NUM_COLOURS],
        marker=_MARKERS[number % NUM_COLOURS],
        markersize=8,
        elinewidth=1.6,
        capsize=3,
        label=name,
    )


def _draw_axes(axes: "Axes", metric: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.margins(0.25, 0.2)
    low, high = axes.get_xlim()
    # Labels of more than two decades would run into each other.
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_xlabel("inference time per answer, ms (log scale)", color=_INK)
    axes.set_ylabel(metric, color=_INK)
    axes.tick_params(colors=_INK, which="both", length=0)
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def _inline_svg(text: str, label: str) -> str:
    """Return the SVG element alone, without metadata, its colours replaced by the page's."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for colour, style in _STYLE_OF_COLOUR.items():
        text = text.replace(colour, style)
    # The page sets width, height and font; the view box keeps the proportions.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"'?DejaVu Sans'?[^;\"]*", "var(--font)", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
