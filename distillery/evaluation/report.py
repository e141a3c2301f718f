"""The HTML report: one file, no network, one picture of quality against latency."""

import functools
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillery.evaluation.tables import (
    AGAINST_TEACHER,
    MEASURED,
    findings,
    notes,
    points_text,
    table_rows,
    verdict,
)
from schemas.comparison import Comparison, Disagreement, ModelFigures
from schemas.units import bytes_text

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

# Colours that the page replaces by its own, so that the picture follows light and dark mode.
_INK, _GRID = "#010203", "#040506"
_ROLE_COLOURS = {"teacher": "#0a0b01", "baseline": "#0a0b02", "student": "#0a0b03"}
_STYLE_OF_COLOUR = {
    _INK: "var(--ink)",
    _GRID: "var(--line)",
    **{colour: f"var(--{role})" for role, colour in _ROLE_COLOURS.items()},
}
_MARKERS = {"teacher": "s", "baseline": "^", "student": "o"}

_LABEL_OFFSETS = ((10, 10), (-10, 10), (10, -12), (-10, -12), (10, 26), (-10, 26), (10, -28))
"""Where a label may stand relative to its point, points, the best place first."""


def render_report(
    comparison: Comparison, examples: Sequence[Disagreement], *, num_disagreements: int
) -> str:
    """Return the page as HTML text; everything that comes from models or files is escaped.

    Args:
        comparison: All figures.
        examples: Rows that teacher and student score differently.
        num_disagreements: How many there are in all.
    """
    page = _environment().get_template("report.html.jinja")
    return page.render(
        comparison=comparison,
        verdict=verdict(comparison),
        findings=findings(comparison),
        rows=table_rows(comparison),
        measured=MEASURED,
        against_teacher=AGAINST_TEACHER,
        picture=quality_against_latency(comparison),
        notes=notes(comparison),
        details=_details(comparison),
        examples=examples,
        num_disagreements=num_disagreements,
    )


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _details(comparison: Comparison) -> dict[str, dict[str, str]]:
    """Return what stands under the details, by heading: names and values."""
    hardware = dict(comparison.hardware)
    raw_versions = hardware.pop("versions", None)
    versions = raw_versions if isinstance(raw_versions, dict) else {}
    memory = hardware.pop("memory_bytes", None)
    machine = {name.replace("_", " "): str(value) for name, value in hardware.items() if value}
    machine["memory"] = bytes_text(memory if isinstance(memory, int) else None)
    machine["peak of the measuring process"] = bytes_text(comparison.process_peak_bytes)
    if comparison.accelerator_peak_bytes is not None:
        machine["peak on the GPU"] = bytes_text(comparison.accelerator_peak_bytes)
    return {
        "Machine": machine,
        "Versions": {name: str(value) for name, value in versions.items()},
        "Differences": {
            "student minus baseline": points_text(comparison.gain),
            "student minus teacher": points_text(comparison.student_minus_teacher),
        },
        "Models": {row.role: f"{row.name} ({row.identity[:12]})" for row in comparison.models},
        "Fingerprints": comparison.fingerprints,
    }


# -- the picture --------------------------------------------------------------------------------


def quality_against_latency(comparison: Comparison) -> str | None:
    """Return an inline SVG of accuracy against p50 latency; None when no model has both.

    Upward bars are the interval of the accuracy; the bar to the right ends at the p95 latency.
    """
    shown = [row for row in comparison.models if row.accuracy and row.performance.latency_p50_s]
    if not shown:
        return None
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text stays text: it can be read aloud and found. The salt makes the ids reproducible.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "distillery", "font.size": 12}):
        figure = Figure(figsize=(5.4, 3.7), layout="constrained")
        axes = figure.add_subplot()
        for row in shown:
            _draw_point(axes, row)
        _draw_axes(axes, shown)
        _draw_labels(axes, shown)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline_svg(file.getvalue())


def _position(row: ModelFigures) -> tuple[float, float]:
    """Return a point's place: milliseconds and per cent."""
    assert row.accuracy is not None and row.performance.latency_p50_s is not None
    return row.performance.latency_p50_s * 1000, row.accuracy.estimate * 100


def _spread(row: ModelFigures) -> tuple[float, float, float]:
    """Return the low and high accuracy in per cent and the p95 latency in milliseconds."""
    x, y = _position(row)
    interval, p95 = row.accuracy, row.performance.latency_p95_s
    low = y if interval is None or interval.low is None else interval.low * 100
    high = y if interval is None or interval.high is None else interval.high * 100
    return low, high, x if p95 is None else max(x, p95 * 1000)


def _draw_point(axes: "Axes", row: ModelFigures) -> None:
    (x, y), (low, high, slow) = _position(row), _spread(row)
    axes.errorbar(
        [x],
        [y],
        xerr=[[0.0], [slow - x]],
        yerr=[[max(0.0, y - low)], [max(0.0, high - y)]],
        color=_ROLE_COLOURS[row.role],
        marker=_MARKERS[row.role],
        markersize=8,
        elinewidth=1.6,
        capsize=3,
    )


def _draw_axes(axes: "Axes", rows: Sequence[ModelFigures]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    places = [_position(row) for row in rows]
    spreads = [_spread(row) for row in rows]
    lows, highs = [low for low, _, _ in spreads], [high for _, high, _ in spreads]
    margin = max(1.0, 0.25 * (max(highs) - min(lows)))
    axes.set_xscale("log")
    axes.set_xlim(min(x for x, _ in places) / 1.9, max(slow for _, _, slow in spreads) * 1.9)
    axes.set_ylim(max(-3.0, min(lows) - margin), min(103.0, max(highs) + margin))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_xlabel("inference time per answer, ms (log scale)", color=_INK)
    axes.set_ylabel("accuracy", color=_INK)
    axes.tick_params(colors=_INK, which="both", length=0)
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def _draw_labels(axes: "Axes", rows: Sequence[ModelFigures]) -> None:
    """Write each model's name beside its point where it covers no other label, point or bar."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # decides on the layout, so that positions are final
    taken = [box for row in rows for box in _bar_boxes(axes, row)]
    for row in rows:
        text = axes.annotate(
            row.role,
            _position(row),
            xytext=_LABEL_OFFSETS[0],
            textcoords="offset points",
            color=_ROLE_COLOURS[row.role],
            fontweight="bold",
        )
        for dx, dy in _LABEL_OFFSETS:
            text.set_position((dx, dy))
            text.set_horizontalalignment("left" if dx > 0 else "right")
            text.set_verticalalignment("bottom" if dy > 0 else "top")
            box = text.get_window_extent().padded(2)
            inside = axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1)
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent().padded(2))


def _bar_boxes(axes: "Axes", row: ModelFigures) -> list["Bbox"]:
    """Return the boxes of a point's two bars on the canvas."""
    from matplotlib.transforms import Bbox

    (x, y), (low, high, slow) = _position(row), _spread(row)
    ends: Any = axes.transData.transform([(x, low), (x, high), (x, y), (slow, y)])
    return [Bbox([ends[0], ends[1]]).padded(5), Bbox([ends[2], ends[3]]).padded(5)]


def _inline_svg(text: str) -> str:
    """Return the SVG element alone, without metadata, its colours replaced by the page's."""
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for colour, style in _STYLE_OF_COLOUR.items():
        text = text.replace(colour, style)
    # The page sets width, height and font; the view box keeps the proportions.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"'?DejaVu Sans'?[^;\"]*", "var(--font)", text)
    return text.replace(
        "<svg", '<svg role="img" aria-label="Accuracy against inference time per answer"', 1
    )
