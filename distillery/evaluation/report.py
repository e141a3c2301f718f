"""The HTML report: one file, no network, one picture of quality against latency."""

from collections.abc import Sequence
from pathlib import Path

from distillery.evaluation.findings import findings, notes, points_text, verdict
from distillery.evaluation.picture import NUM_COLOURS, quality_against_latency
from distillery.evaluation.tables import further_tables, main_rows
from schemas.comparison import Comparison, Disagreement


def render_report(
    comparison: Comparison, examples: Sequence[Disagreement], *, num_disagreements: int
) -> str:
    """Return the page as HTML text; everything that comes from models or files is escaped.

    Args:
        comparison: All figures.
        examples: Rows that teacher and student score differently.
        num_disagreements: How many there are in all.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja")
    return page.render(
        comparison=comparison,
        verdict=verdict(comparison),
        findings=findings(comparison),
        tables=_tables(comparison),
        number_of={row.name: n % NUM_COLOURS for n, row in enumerate(comparison.contestants)},
        picture=quality_against_latency(comparison),
        notes=notes(comparison),
        details=_details(comparison),
        examples=examples,
        num_disagreements=num_disagreements,
    )


def _tables(comparison: Comparison) -> dict[str, list[dict[str, str]]]:
    """Return the tables by heading; the first column of each is its rows' heading."""
    title = f"Comparison on {comparison.num_rows:,} held-out rows"
    return {title: main_rows(comparison)} | further_tables(comparison)


def _details(comparison: Comparison) -> dict[str, dict[str, str]]:
    """Return what stands under the details, by heading: names and values."""
    machine = {name.replace("_", " "): value for name, value in comparison.hardware.items()}
    return {
        "Machine": {name: str(value) for name, value in machine.items() if value is not None},
        "Differences": {
            f"{found.name} minus {found.against}": points_text(found.difference)
            for found in comparison.differences
        },
        "Models": {r.name: f"{r.model} ({r.identity[:12]})" for r in comparison.contestants},
        "Fingerprints": comparison.fingerprints,
    }
