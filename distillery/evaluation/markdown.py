"""The comparison as Markdown: for the Prefect artifact, and beside the report."""

from collections.abc import Sequence

from distillery.evaluation.findings import findings, notes
from distillery.evaluation.tables import Row, further_tables, main_rows
from distillery.evaluation.verdict import verdict
from schemas.comparison import Comparison


def markdown(comparison: Comparison) -> str:
    """Return the verdict, the main table, what the figures say, then the further tables."""
    lines = [
        f"# {comparison.task}: {', '.join(row.name for row in comparison.contestants)}",
        "",
        f"**{verdict(comparison)}**",
        "",
        markdown_table(main_rows(comparison)),
        "",
        *[f"- {finding.text}" for finding in findings(comparison)],
        "",
        *[f"{note}  " for note in notes(comparison)],
    ]
    for title, rows in further_tables(comparison).items():
        lines += ["", f"## {title}", "", markdown_table(rows)]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(rows: Sequence[Row]) -> str:
    """Return ``rows`` as an aligned Markdown table."""
    cells = [list(rows[0]), *[list(row.values()) for row in rows]]
    cells = [[text.replace("|", "\\|") for text in line] for line in cells]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    padded = [
        [text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in cells
    ]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
