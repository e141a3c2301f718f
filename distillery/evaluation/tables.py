"""The comparison in words and tables: for the Prefect artifact, Markdown and the terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.comparison import Comparison, Interval, ModelFigures
from schemas.units import MISSING, bytes_text, count_text, percent_text, rate_text, seconds_text

if TYPE_CHECKING:
    from rich.table import Table


TARGET_RETENTION, TARGET_LATENCY_REDUCTION, TARGET_MEMORY_REDUCTION = 0.92, 0.85, 0.95
"""What the project aims at: of accuracy kept, of time saved, of memory saved."""


@dataclass(frozen=True)
class Finding:
    """One sentence about the student, and whether it tells of a target that is met."""

    text: str
    met: bool | None
    """None: it is about no target, or the figure is missing."""


# -- figures as text ----------------------------------------------------------------------------


def interval_text(interval: Interval | None) -> str:
    """Return a fraction and its interval as per cent.

    >>> interval_text(Interval(estimate=0.941, low=0.925, high=0.956, num_rows=500))
    '94.1 % [92.5, 95.6]'
    """
    if interval is None:
        return MISSING
    return percent_text(interval.estimate) + _ends(interval)


def points_text(interval: Interval | None) -> str:
    """Return a difference and its interval in percentage points, signed.

    >>> points_text(Interval(estimate=0.054, low=-0.01, high=0.1, num_rows=500))
    '+5.4 points [-1.0, 10.0]'
    """
    if interval is None:
        return MISSING
    return f"{interval.estimate * 100:+.1f} points" + _ends(interval)


def _ends(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f" [{interval.low * 100:.1f}, {interval.high * 100:.1f}]"


def _change_text(reduction: float | None) -> str:
    """Return a reduction as the change that it is: 0.85 as '-85.0 %'."""
    return MISSING if reduction is None else f"{-reduction * 100:+.1f} %"


def _declared(text: str, row: ModelFigures) -> str:
    return f"{text} (declared)" if row.declared else text


# -- tables -------------------------------------------------------------------------------------

_COLUMNS: dict[str, Callable[[ModelFigures], str]] = {
    "model": lambda row: row.role,
    "parameters": lambda row: _declared(count_text(row.num_parameters), row),
    "memory usage": lambda row: _declared(bytes_text(row.memory_bytes), row),
    "inference time (p50)": lambda row: seconds_text(row.performance.latency_p50_s),
    "inference time (p95)": lambda row: seconds_text(row.performance.latency_p95_s),
    "accuracy": lambda row: interval_text(row.accuracy),
    "throughput (queries/h)": lambda row: rate_text(row.performance.queries_per_hour),
    "tokens/s": lambda row: rate_text(row.performance.tokens_per_s),
    "accuracy vs teacher": lambda row: interval_text(row.retention),
    "inference time vs teacher": lambda row: _change_text(row.latency_reduction),
    "memory vs teacher": lambda row: _change_text(row.memory_reduction),
    "parameters vs teacher": lambda row: _change_text(row.parameter_reduction),
    "unscored rows": lambda row: str(row.num_unscored),
}

AGAINST_TEACHER = ["model", *[name for name in _COLUMNS if name.endswith("vs teacher")]]
"""Columns of the figures relative to the teacher."""

MEASURED = [name for name in _COLUMNS if name not in AGAINST_TEACHER[1:]]
"""Columns of each model's own figures."""


def table_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Return the rows of the table artifact: the models, as text with units."""
    return [{name: cell(row) for name, cell in _COLUMNS.items()} for row in comparison.models]


def markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown: a title, two aligned tables, what they say."""
    lines = [
        f"# {comparison.task}: teacher, baseline, student",
        "",
        # Two tables: one of all columns would run into the side bar of Prefect's artifact page.
        _markdown_table(table_rows(comparison), MEASURED),
        "",
        _markdown_table(table_rows(comparison), AGAINST_TEACHER),
        "",
        *[f"- {finding.text}" for finding in findings(comparison)],
        "",
        *[f"{note}  " for note in notes(comparison)],
    ]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> str:
    """Return these columns of ``rows`` as an aligned Markdown table."""
    cells = [list(columns), *[[row[name] for name in columns] for row in rows]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    padded = [
        [text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in cells
    ]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def terminal_table(comparison: Comparison, *, narrow: bool = False) -> "Table":
    """Return a rich table that fits 100 columns, 80 when narrow; for what is in no other line."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{comparison.task}: {comparison.num_rows:,} test rows"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", no_wrap=True)
    headings = ["parameters", "memory", "p50 / p95", "accuracy", "queries/h", "tokens/s"]
    for heading in headings[1:5] if narrow else headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in comparison.models:
        speed = row.performance
        latencies = (seconds_text(speed.latency_p50_s), seconds_text(speed.latency_p95_s))
        cells = [
            count_text(row.num_parameters) + ("*" if row.declared else ""),
            bytes_text(row.memory_bytes) + ("*" if row.declared else ""),
            " / ".join(latencies),
            interval_text(row.accuracy),
            rate_text(speed.queries_per_hour),
            rate_text(speed.tokens_per_s),
        ]
        table.add_row(row.role, *(cells[1:5] if narrow else cells))
    if any(row.declared for row in comparison.models):
        table.caption = "* declared in the recipe, not measured"
    return table


# -- sentences ----------------------------------------------------------------------------------


def verdict(comparison: Comparison) -> str:
    """Return the one line above everything else."""
    student = comparison.model("student")
    assert student is not None, "a comparison without a student"
    if student.retention is None:
        return "The student could not be scored against the teacher."
    parts = [f"keeps {percent_text(student.retention.estimate)} of the teacher's accuracy"]
    if student.latency_reduction is not None:
        parts.append(f"answers in {_more_or_less(student.latency_reduction)} time")
    if student.memory_reduction is not None:
        parts.append(f"needs {_more_or_less(student.memory_reduction)} memory")
    head, last = ", ".join(parts[:-1]), parts[-1]
    return f"The student {head} and {last}." if head else f"The student {last}."


def _more_or_less(reduction: float) -> str:
    return f"{abs(reduction) * 100:.1f} % {'less' if reduction >= 0 else 'more'}"


def findings(comparison: Comparison) -> list[Finding]:
    """Return what the figures say: the three targets, the gain over the baseline, the gap."""
    student, teacher = comparison.model("student"), comparison.model("teacher")
    assert student is not None and teacher is not None
    retention = student.retention
    return [
        _target(
            f"Accuracy retained: {interval_text(retention)} of the teacher's",
            retention.estimate if retention else None,
            TARGET_RETENTION,
            missing="the accuracy of teacher or student is unscored, or the teacher's is 0",
        ),
        _target(
            f"Inference time (p50): {seconds_text(student.performance.latency_p50_s)} against "
            f"{seconds_text(teacher.performance.latency_p50_s)}",
            student.latency_reduction,
            TARGET_LATENCY_REDUCTION,
            missing="one of the two could not be measured",
            unit="less",
        ),
        _target(
            f"Memory: {bytes_text(student.memory_bytes)} against {bytes_text(teacher.memory_bytes)}"
            + (" (declared)" if teacher.declared else ""),
            student.memory_reduction,
            TARGET_MEMORY_REDUCTION,
            missing="the teacher's is not known; declare it under teacher.declared",
            unit="less",
        ),
        Finding(_gain_sentence(comparison), None),
        Finding(_gap_sentence(comparison), None),
    ]


def _target(
    text: str, value: float | None, target: float, *, missing: str, unit: str = ""
) -> Finding:
    """Return whether ``value`` reaches ``target`` and by how much it does or does not."""
    aim = f"{target * 100:.0f} %{' ' + unit if unit else ''}"
    if value is None:
        return Finding(f"{text}: no verdict on the target of {aim}, as {missing}.", None)
    met = value >= target
    reached = f", {_more_or_less(value)}" if unit else ""
    margin = f"{abs(value - target) * 100:.1f} points {'above' if value >= target else 'short of'}"
    state = "met" if met else "missed"
    return Finding(f"{text}{reached}: target of {aim} {state}, {margin} it.", met)


def _gain_sentence(comparison: Comparison) -> str:
    gain = comparison.gain
    if gain is None:
        return "Student minus baseline: no figure, as there is no scored baseline."
    text = f"Student minus baseline: {points_text(gain)}"
    if gain.low is None or gain.high is None:
        return f"{text}; too few rows for an interval."
    if gain.low > 0:
        return f"{text}: the interval lies above 0, so the teacher's data helped."
    if gain.high < 0:
        return f"{text}: the interval lies below 0, so the teacher's data hurt."
    return f"{text}: the interval holds 0, so no gain is shown."


def _gap_sentence(comparison: Comparison) -> str:
    if comparison.gap_recovered is None:
        return "Gap recovered: undefined, as the teacher is not better than the baseline."
    return (
        f"Gap recovered between baseline and teacher: {percent_text(comparison.gap_recovered)}; "
        f"student minus teacher: {points_text(comparison.student_minus_teacher)}."
    )


def notes(comparison: Comparison) -> list[str]:
    """Return how the figures were made."""
    speed = comparison.models[0].performance
    hardware = comparison.hardware
    machine = hardware.get("gpu") or f"{hardware.get('cpu')}, {hardware.get('cores')} cores"
    lines = [
        f"Quality: {comparison.num_rows:,} test rows, greedy decoding, at most "
        f"{comparison.max_new_tokens} new tokens; paired bootstrap, "
        f"{comparison.confidence * 100:.0f} % intervals.",
        f"Inference time: batch size 1, {speed.latency_rows} rows, models in turn; throughput: "
        f"{speed.throughput_rows:,} rows in batches. On {machine}.",
        f"Memory: weights plus KV cache at {comparison.context_tokens} tokens.",
    ]
    for row in comparison.models:
        if row.declared:
            lines.append(
                f"Parameters and memory of the {row.role} are declared, not measured; source: "
                f"{row.declared_source}."
            )
        if row.num_unscored:
            lines.append(
                f"{row.num_unscored:,} of {comparison.num_rows:,} rows are unscored for the "
                f"{row.role} and left out of every figure with it."
            )
    return lines
