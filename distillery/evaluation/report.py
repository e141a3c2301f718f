"""The HTML report: one file, no network; the verdict first, then what it rests on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillery.evaluation import tables
from distillery.evaluation.axis import Axis, Bar
from distillery.evaluation.findings import findings, notes
from distillery.evaluation.lineage import Origins, origin_tables
from distillery.evaluation.picture import (
    NUM_COLOURS,
    quality_against_cost,
    quality_against_latency,
    training_curve,
)
from distillery.evaluation.verdict import verdict
from schemas.comparison import Comparison, DifferingRow, Interval
from schemas.contestants import TEACHER
from schemas.units import money_text, rate_text

_FIRST_SLICES, _MOST_SLICES = 20, 200
_MOST_BYTES = 4_000_000
"""Of differing rows, so that the page stays below 5 MB."""
_NOT_IN_SCRIPTS = "<>&\u2028\u2029"


@dataclass(frozen=True)
class Table:
    """A table of the page; of one column's intervals there may be a drawing beside them."""

    rows: Sequence[tables.Row]

    drawn: str | None = None
    """Column whose intervals are drawn."""

    axis: Axis | None = None
    bars: Sequence[Bar | None] = ()
    """By row."""

    marked: frozenset[int] = frozenset()
    """Rows that a reader must not miss."""

    @classmethod
    def drawing(
        cls,
        column: str,
        rows: list[tables.Row],
        intervals: Sequence[Interval | None],
        *,
        mark: float | None,
    ) -> "Table":
        """Return a table beside whose ``column`` stand its intervals, one for each row."""
        if not any(intervals):
            return cls(rows)
        axis = Axis.of(intervals, mark=mark)
        return cls(rows, column, axis, [*map(axis.bar, intervals)])


def render_report(
    comparison: Comparison,
    origins: Origins,
    rows: Sequence[DifferingRow],
    *,
    num_differing: int,
) -> str:
    """Return the page as HTML text; everything that comes from models or files is escaped.

    Args:
        comparison: All figures.
        origins: What led to them.
        rows: Test rows on which teacher or champion and student differ, the most important first.
        num_differing: How many there are in all.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    packed = _packed(rows)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # A figure and its unit stay on one line.
    environment.filters["money"] = money_text
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\u00a0%")
    page = environment.get_template("report.html.jinja")
    return page.render(
        comparison=comparison,
        verdict=verdict(comparison),
        findings=findings(comparison),
        number_of={row.name: n % NUM_COLOURS for n, row in enumerate(comparison.contestants)},
        tables=_comparison_tables(comparison),
        differences=Table.drawing(
            "difference",
            tables.difference_rows(comparison),
            [pair.difference for pair in tables.primary_differences(comparison)],
            mark=0.0,
        ),
        by_latency=quality_against_latency(comparison),
        by_cost=quality_against_cost(comparison),
        figures=_named(
            {
                "Speed": tables.speed_rows(comparison),
                "Queries per hour, by requests at once": tables.load_rows(comparison),
                "Size": tables.size_rows(comparison),
                "Every metric": tables.quality_rows(comparison),
                "Every metric against the teacher": tables.metric_difference_rows(comparison),
                "Fidelity: the teacher's answers as references": tables.fidelity_rows(comparison),
                "lm-evaluation-harness": tables.harness_rows(comparison),
            }
        ),
        curves={
            name: picture
            for name, curve in origins.curves.items()
            if (picture := training_curve(curve))
        },
        slices=_slice_tables(comparison),
        labels=_named(
            {
                "Recall by label": tables.label_rows(comparison),
                "The student's most frequent confusions": tables.confusion_rows(comparison),
            }
        ),
        judge=_judge_table(comparison),
        costs=_costs(comparison),
        rows_json=f"[{','.join(packed)}]",
        num_shown=len(packed),
        num_differing=num_differing,
        notes=notes(comparison),
        lineage=origin_tables(comparison, origins),
        details=_details(comparison, origins),
    )


def _named(by_title: Mapping[str, list[tables.Row]]) -> dict[str, Table]:
    return {title: Table(rows) for title, rows in by_title.items() if rows}


def _comparison_tables(comparison: Comparison) -> dict[str, Table]:
    teacher = comparison.contestant(TEACHER)
    quality = teacher.metrics[comparison.metric] if teacher else None
    relative = tables.relative_rows(comparison)
    pairs = [comparison.between(row["model"], TEACHER) for row in relative]
    found = {
        "": Table.drawing(
            comparison.metric,
            tables.main_rows(comparison),
            [row.metrics[comparison.metric] for row in comparison.contestants],
            mark=quality.estimate if quality else None,
        ),
        "Relative to the teacher": Table.drawing(
            f"{comparison.metric} kept", relative, [p.ratio if p else None for p in pairs], mark=1.0
        ),
    }
    return {title: table for title, table in found.items() if table.rows}


def _slice_tables(comparison: Comparison) -> list[Table]:
    """Return the worst slices and, where there are many, the others on the same axis."""
    worst = tables.worst_slices(comparison)[:_MOST_SLICES]
    axis = Axis.of(map(tables.slice_lead, worst), mark=0.0)
    num_first = max(_FIRST_SLICES, sum(bool(part.regressions) for part in worst))
    return [
        Table(
            tables.slice_rows(shown),
            f"minus {TEACHER}, points",
            axis,
            [axis.bar(tables.slice_lead(part)) for part in shown],
            frozenset(number for number, part in enumerate(shown) if part.regressions),
        )
        for shown in (worst[:num_first], worst[num_first:])
        if shown
    ]


def _judge_table(comparison: Comparison) -> Table:
    pairs = comparison.judgement.pairs if comparison.judgement else ()
    rows = tables.judge_rows(comparison)
    return Table.drawing("win rate", rows, [pair.win_rate for pair in pairs], mark=0.5)


def _costs(comparison: Comparison) -> dict[str, str]:
    """Return what requests and the distillation cost, as names and values."""
    found = {
        f"1,000 requests to the {row.name}": (
            f"{money_text(row.cost.per_1000, row.cost.currency)}: {row.cost.source}"
        )
        for row in comparison.contestants
        if row.cost
    }
    made = comparison.distillation_cost
    if made is None or made.currency is None:
        return found
    currency = made.currency
    found["teacher's responses"] = money_text(made.teacher, currency)
    hours = made.training_hours
    took = f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"
    found["training"] = f"{money_text(made.training, currency)} for {took}"
    found["this distillation"] = money_text(made.total, currency)
    found["break-even"] = (
        "not known, or never: a price is missing, or the student is no cheaper per request"
        if made.break_even_requests is None
        else f"after {rate_text(made.break_even_requests)} requests"
    )
    return found


def script_json(value: Any) -> str:
    r"""Return JSON that may stand in a script element: no text in it can end the element.

    >>> script_json(["</script>", "a\u2028b"])
    '["\\u003c/script\\u003e","a\\u2028b"]'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in _NOT_IN_SCRIPTS:
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _packed(rows: Sequence[DifferingRow]) -> list[str]:
    """Return rows as `report.js` reads them, the student's worst first; as many as have room."""
    packed: list[tuple[float, str]] = []
    num_bytes = 0
    for row in rows:
        answers = [[name, text, row.scores[name]] for name, text in row.responses.items()]
        text = script_json(
            [row.prompt_id, row.prompt, row.references, answers, row.lead, row.slices]
        )
        num_bytes += len(text.encode())
        if num_bytes > _MOST_BYTES:
            break
        packed.append((row.lead, text))
    return [text for _, text in sorted(packed, key=lambda pair: pair[0])]


def _details(comparison: Comparison, origins: Origins) -> dict[str, dict[str, str]]:
    """Return what stands under the details, by heading: names and values."""
    machine = {name.replace("_", " "): value for name, value in comparison.hardware.items()}
    found = {
        "Machine": {name: str(value) for name, value in machine.items() if value is not None},
        "Fingerprints in full": {
            **{name: made.fingerprint for name, made in origins.manifests.items()},
            **comparison.fingerprints,
        },
        "Identities in full": {row.name: row.identity for row in comparison.contestants},
    }
    return {title: pairs for title, pairs in found.items() if pairs}
