"""The comparison in tables: for the Prefect artifact, Markdown and the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distillery.evaluation.findings import findings, interval_text, notes
from schemas.comparison import Comparison, ContestantFigures
from schemas.contestants import STUDENT, TEACHER
from schemas.units import MISSING, bytes_text, count_text, percent_text, rate_text, seconds_text

if TYPE_CHECKING:
    from rich.table import Table

_MOST_LABELS = 20

Row = dict[str, str]
"""Cells as text with units, by column."""


def measured_rows(comparison: Comparison) -> list[Row]:
    """Return each contestant's own figures; of its metrics the primary one."""
    return [_measured(row, comparison.metric) for row in comparison.contestants]


def _measured(row: ContestantFigures, metric: str) -> Row:
    speed, declared = row.performance, " (declared)" if row.declared_source else ""
    return {
        "model": row.name,
        "parameters": count_text(row.num_parameters) + declared,
        "memory usage": bytes_text(row.memory_bytes) + declared,
        "inference time (p50)": seconds_text(speed.latency_p50_s),
        "inference time (p95)": seconds_text(speed.latency_p95_s),
        metric: interval_text(row.metrics[metric]),
        "throughput (queries/h)": rate_text(speed.queries_per_hour),
        "tokens/s": rate_text(speed.tokens_per_s),
        "prompt tokens": _tokens_text(speed.prompt_tokens),
        "unscored rows": str(row.num_unscored),
    }


def relative_rows(comparison: Comparison) -> list[Row]:
    """Return the figures relative to the teacher's."""
    rows = []
    for name in (row.name for row in comparison.contestants):
        found = comparison.between(name, TEACHER)
        cells = {
            comparison.metric: interval_text(found.ratio if found else None),
            "inference time": _change_text(found.latency_reduction if found else None),
            "memory": _change_text(found.memory_reduction if found else None),
            "parameters": _change_text(found.parameter_reduction if found else None),
        }
        rows.append({"model": name} | {f"{key} vs {TEACHER}": text for key, text in cells.items()})
    return rows


def quality_rows(comparison: Comparison) -> list[Row]:
    """Return every metric of each contestant; nothing where the primary one is all there is."""
    return [
        {"model": row.name} | {name: interval_text(found) for name, found in row.metrics.items()}
        for row in comparison.contestants
        if len(row.metrics) > 1
    ]


def fidelity_rows(comparison: Comparison) -> list[Row]:
    """Return how well each contestant reproduces the teacher's answers."""
    names = _fidelity_metrics(comparison)
    return [
        {"model": row.name} | {name: interval_text(row.fidelity[name]) for name in names}
        for row in comparison.contestants
        if names and row.fidelity
    ]


def _fidelity_metrics(comparison: Comparison) -> list[str]:
    """Return the metrics that somebody's answers have beside the teacher's.

    One that looks at the prompt instead of the references says nothing there.
    """
    rows = comparison.contestants
    return [name for name in rows[-1].fidelity if any(row.fidelity.get(name) for row in rows)]


def confusion_rows(comparison: Comparison) -> list[Row]:
    """Return what the student takes for what."""
    return [
        {
            "label": f"{found.label:.60}",
            "the student's answer": "no label" if found.taken_for is None else found.taken_for[:60],
            "rows": f"{found.num_rows:,}",
        }
        for found in comparison.confusions
    ]


def label_rows(comparison: Comparison) -> list[Row]:
    """Return the recall of every label; of many, those that the student knows least."""
    shown = sorted(comparison.labels, key=lambda label: label.recall.get(STUDENT) or 0.0)
    return [
        {"label": f"{label.label:.60}", "rows": f"{label.num_rows:,}"}
        | {name: percent_text(recall) for name, recall in label.recall.items()}
        for label in comparison.labels
        if label in shown[:_MOST_LABELS]
    ]


def table_rows(comparison: Comparison) -> list[Row]:
    """Return the rows of the table artifact: a contestant's own and its relative figures."""
    triples = zip(
        measured_rows(comparison), relative_rows(comparison), comparison.contestants, strict=True
    )
    names = _fidelity_metrics(comparison)
    return [
        measured
        | {name: interval_text(found) for name, found in row.metrics.items()}
        | relative
        | {
            f"{name} on {TEACHER}'s answers": interval_text(row.fidelity.get(name))
            for name in names
        }
        for measured, relative, row in triples
    ]


def markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown: a title, aligned tables, what they say."""
    lines = [
        f"# {comparison.task}: {', '.join(row.name for row in comparison.contestants)}",
        "",
        # Two tables: one of all columns would run into the side bar of Prefect's artifact page.
        _markdown_table(measured_rows(comparison)),
        "",
        _markdown_table(relative_rows(comparison)),
        "",
        *[f"- {finding.text}" for finding in findings(comparison)],
        "",
        *[f"{note}  " for note in notes(comparison)],
    ]
    for title, rows in further_tables(comparison).items():
        lines += ["", f"## {title}", "", _markdown_table(rows)]
    return "\n".join(lines).rstrip() + "\n"


def further_tables(comparison: Comparison) -> dict[str, list[Row]]:
    """Return what stands below the two main tables, by heading; none of them is empty."""
    num_labels = len(comparison.labels)
    some = f", the student's lowest {_MOST_LABELS} of {num_labels:,}"
    tables = {
        "Every metric": quality_rows(comparison),
        "Fidelity: the teacher's answers as references": fidelity_rows(comparison),
        "Recall by label" + (some if num_labels > _MOST_LABELS else ""): label_rows(comparison),
        "The student's most frequent confusions": confusion_rows(comparison),
    }
    return {title: rows for title, rows in tables.items() if rows}


def _markdown_table(rows: Sequence[Row]) -> str:
    """Return ``rows`` as an aligned Markdown table."""
    cells = [list(rows[0]), *[list(row.values()) for row in rows]]
    cells = [[text.replace("|", "\\|") for text in line] for line in cells]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    padded = [
        [text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in cells
    ]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _change_text(reduction: float | None) -> str:
    """Return a reduction as the change that it is: 0.85 as '-85.0 %'; -9 as ten times."""
    if reduction is not None and reduction <= -1:
        return f"\u00d7 {1 - reduction:,.0f}"
    return MISSING if reduction is None else f"{-reduction * 100:+.1f} %"


def _tokens_text(value: float | None) -> str:
    """Return a number of tokens, whole; a median of two may lie between.

    >>> _tokens_text(1203.5)
    '1,204'
    """
    return MISSING if value is None else f"{value:,.0f}"


def terminal_table(comparison: Comparison, *, narrow: bool = False) -> "Table":
    """Return a rich table that fits 100 columns, 80 when narrow; for what is in no other line."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{comparison.task}: {comparison.num_rows:,} test rows"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    headings = ["parameters", "memory", "p50 / p95", comparison.metric, "queries/h"]
    headings.append("prompt\ntokens")
    for heading in headings[1:5] if narrow else headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in comparison.contestants:
        speed, mark = row.performance, "*" if row.declared_source else ""
        cells = [
            count_text(row.num_parameters) + mark,
            bytes_text(row.memory_bytes) + mark,
            f"{seconds_text(speed.latency_p50_s)} / {seconds_text(speed.latency_p95_s)}",
            interval_text(row.metrics[comparison.metric]),
            rate_text(speed.queries_per_hour),
            _tokens_text(speed.prompt_tokens),
        ]
        table.add_row(row.name, *(cells[1:5] if narrow else cells))
    if any(row.declared_source for row in comparison.contestants):
        table.caption = "* declared in the recipe, not measured"
    return table


def terminal_metrics(comparison: Comparison) -> "Table":
    """Return a rich table of every metric, without intervals; below each, how near the teacher's.

    The second line of a model has the teacher's answers in place of the references.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for name in comparison.contestants[0].metrics:
        table.add_column(name, justify="right")
    for row in comparison.contestants:
        for title, found in ((row.name, row.metrics), ("  fidelity", row.fidelity)):
            if found:
                cells = (i.estimate if i else None for i in found.values())
                table.add_row(title, *map(percent_text, cells))
    return table
