"""The comparison in tables, as text by column; who shows them decides how they look."""

import math
from collections.abc import Iterable, Sequence

from distillery.evaluation.findings import interval_text, points_text
from schemas.comparison import Comparison, ContestantFigures, Difference, Interval, SliceFigures
from schemas.contestants import CHAMPION, STUDENT, TEACHER
from schemas.units import (
    MISSING,
    bytes_text,
    count_text,
    money_text,
    percent_text,
    probability_text,
    rate_text,
    seconds_text,
)

_MOST_LABELS = 20
_MOST_SLICES = 20

Row = dict[str, str]
"""Cells as text with units, by column."""


def main_rows(comparison: Comparison) -> list[Row]:
    """Return what decides, of each contestant: quality, time, memory, cost.

    Few columns: Prefect's page has room for some 900 pixels.
    """
    return _without_empty_columns(_main(row, comparison.metric) for row in comparison.contestants)


def _main(row: ContestantFigures, metric: str) -> Row:
    return {
        "model": row.name,
        metric: interval_text(row.metrics[metric]),
        "time (p50)": seconds_text(row.performance.latency_p50_s),
        "memory": bytes_text(row.memory_bytes) + _mark(row),
        "cost per 1,000": money_text(row.cost.per_1000, row.cost.currency) if row.cost else MISSING,
        "queries/h": rate_text(row.performance.queries_per_hour),
    }


def _mark(row: ContestantFigures) -> str:
    return " (declared)" if row.declared_source else ""


def relative_rows(comparison: Comparison) -> list[Row]:
    """Return the figures relative to the teacher's."""
    rows = []
    for name in (row.name for row in comparison.contestants if row.name != TEACHER):
        found = comparison.between(name, TEACHER)
        if found is not None:
            cells = {
                f"{comparison.metric} kept": interval_text(found.ratio),
                "time": _change_text(found.latency_reduction),
                "memory": _change_text(found.memory_reduction),
                "parameters": _change_text(found.parameter_reduction),
                "cost": _change_text(found.cost_reduction),
            }
            rows.append({"model": name} | cells)
    return _without_empty_columns(rows)


def primary_differences(comparison: Comparison) -> list[Difference]:
    """Return every pair that was compared, in the primary metric."""
    return [found for found in comparison.differences if found.metric == comparison.metric]


def difference_rows(comparison: Comparison) -> list[Row]:
    """Return every pair that was compared in the primary metric, and how sure the difference is."""
    return _without_empty_columns(
        {
            "model": found.name,
            "against": found.against,
            "difference": points_text(found.difference),
            "p": probability_text(found.p_value),
        }
        for found in primary_differences(comparison)
    )


def metric_difference_rows(comparison: Comparison) -> list[Row]:
    """Return how everybody differs from the teacher in every metric, where there are several.

    P-values are corrected for the number of metrics (Holm).
    """
    found = [pair for pair in comparison.differences if pair.against == TEACHER]
    return _without_empty_columns(
        {
            "model": pair.name,
            "metric": pair.metric,
            f"minus the {TEACHER}'s": points_text(pair.difference),
            "p, corrected for metrics": probability_text(pair.adjusted_p_value),
        }
        for pair in found
        if len({pair.metric for pair in found}) > 1
    )


def speed_rows(comparison: Comparison) -> list[Row]:
    """Return each contestant's times and throughput."""
    return _without_empty_columns(
        {
            "model": row.name,
            "p50": seconds_text(row.performance.latency_p50_s),
            "p95": seconds_text(row.performance.latency_p95_s),
            "p99": seconds_text(row.performance.latency_p99_s),
            "first token": seconds_text(row.performance.first_token_p50_s),
            "queries/h": rate_text(row.performance.queries_per_hour),
            "tokens/s": rate_text(row.performance.tokens_per_s),
            "tokens read": tokens_text(row.performance.prompt_tokens),
            "tokens written": tokens_text(row.performance.new_tokens),
        }
        for row in comparison.contestants
    )


def load_rows(comparison: Comparison) -> list[Row]:
    """Return the throughput of each contestant at every concurrency that was tried."""
    tried = sorted(
        {load.concurrency for row in comparison.contestants for load in row.performance.loads}
    )
    rows = []
    for row in comparison.contestants:
        at = {load.concurrency: load for load in row.performance.loads}
        if at:
            rates = (rate_text(at[n].queries_per_hour) if n in at else MISSING for n in tried)
            names = (f"{number:,} at once" for number in tried)
            rows.append({"model": row.name} | dict(zip(names, rates, strict=True)))
    return rows if len(tried) > 1 else []


def size_rows(comparison: Comparison) -> list[Row]:
    """Return how large each contestant is."""
    return _without_empty_columns(
        {
            "model": row.name,
            "parameters": count_text(row.num_parameters) + _mark(row),
            "memory": bytes_text(row.memory_bytes) + _mark(row),
            "peak memory": bytes_text(row.peak_memory_bytes),
            "weights on disk": bytes_text(row.disk_bytes),
        }
        for row in comparison.contestants
    )


def quality_rows(comparison: Comparison) -> list[Row]:
    """Return every metric of each contestant; nothing where the primary one is all there is."""
    return [
        {"model": row.name} | {name: interval_text(found) for name, found in row.metrics.items()}
        for row in comparison.contestants
        if len(row.metrics) > 1
    ]


def fidelity_rows(comparison: Comparison) -> list[Row]:
    """Return how well each contestant reproduces the teacher's answers.

    A metric that looks at the prompt instead of the references says nothing there.
    """
    rows = [row for row in comparison.contestants if row.fidelity]
    names = [n for row in rows[-1:] for n in row.fidelity if any(r.fidelity.get(n) for r in rows)]
    return [
        {"model": row.name} | {name: interval_text(row.fidelity[name]) for name in names}
        for row in rows
        if names
    ]


def worst_slices(comparison: Comparison) -> list[SliceFigures]:
    """Return the slices in which the student is worse than somebody, then by its lead, all of them.

    The lead is over the teacher.
    """
    return sorted(
        comparison.slices, key=lambda part: (not part.regressions, _estimate(slice_lead(part)))
    )


def _estimate(lead: Interval | None) -> float:
    return math.inf if lead is None else lead.estimate


def slice_lead(part: SliceFigures) -> Interval | None:
    """Return the student's lead over the teacher in a slice."""
    leads = (d for d in part.differences if (d.name, d.against) == (STUDENT, TEACHER))
    return next((found.difference for found in leads), None)


def slice_rows(slices: Sequence[SliceFigures]) -> list[Row]:
    """Return the quality of teacher, champion and student in each slice, and where it is worse."""
    return _without_empty_columns(
        {
            "rows of": f"{part.name:.60}",
            "rows": f"{part.num_rows:,}",
            **{
                name: percent_text(found.estimate if found else None)
                for name, found in part.quality.items()
                if name in (TEACHER, CHAMPION, STUDENT)  # more have no room
            },
            **{
                f"minus {found.against}, points": points_text(found.difference, unit="")
                for found in part.differences
                if found.name == STUDENT
            },
            "worse than": ", ".join(part.regressions) or MISSING,
        }
        for part in slices
    )


def label_rows(comparison: Comparison) -> list[Row]:
    """Return the recall of every label; of many, those that the student knows least."""
    shown = sorted(comparison.labels, key=lambda label: label.recall.get(STUDENT) or 0.0)
    return [
        {"label": f"{label.label:.60}", "rows": f"{label.num_rows:,}"}
        | {name: percent_text(recall) for name, recall in label.recall.items()}
        for label in comparison.labels
        if label in shown[:_MOST_LABELS]
    ]


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


def judge_rows(comparison: Comparison) -> list[Row]:
    """Return the judge's verdicts on the student, by whom it stands beside."""
    pairs = comparison.judgement.pairs if comparison.judgement else ()
    return _without_empty_columns(
        {
            "against": pair.against,
            "student better": f"{pair.wins:,}",
            "tie": f"{pair.ties:,}",
            "other better": f"{pair.losses:,}",
            "no verdict": f"{pair.unscored:,}",
            "win rate": interval_text(pair.win_rate),
            "as people would": interval_text(pair.corrected),
        }
        for pair in pairs
    )


def harness_rows(comparison: Comparison) -> list[Row]:
    """Return what lm-evaluation-harness says, by task and metric, with standard errors."""
    names = dict.fromkeys(
        (found.task, found.metric)
        for figures in comparison.harness.values()
        for found in figures.figures
    )
    cells = {
        (name, found.task, found.metric): f"{found.value:.4g}"
        + (f" ± {found.stderr:.2g}" if found.stderr is not None else "")
        for name, figures in comparison.harness.items()
        for found in figures.figures
    }
    return [
        {"task": task, "metric": metric}
        | {name: cells.get((name, task, metric), MISSING) for name in comparison.harness}
        for task, metric in names
    ]


def further_tables(comparison: Comparison) -> dict[str, list[Row]]:
    """Return what stands below the main table, by heading; none of them is empty."""
    some = f", the student's lowest {_MOST_LABELS} of {len(comparison.labels):,}"
    worst = f", the worst {_MOST_SLICES} of {len(comparison.slices):,}"
    tables = {
        "Relative to the teacher": relative_rows(comparison),
        "Differences": difference_rows(comparison),
        "Speed": speed_rows(comparison),
        "Queries per hour, by requests at once": load_rows(comparison),
        "Size": size_rows(comparison),
        "Every metric": quality_rows(comparison),
        "Every metric against the teacher": metric_difference_rows(comparison),
        "Fidelity: the teacher's answers as references": fidelity_rows(comparison),
        "Slices" + (worst if len(comparison.slices) > _MOST_SLICES else ""): slice_rows(
            worst_slices(comparison)[:_MOST_SLICES]
        ),
        "Recall by label" + (some if len(comparison.labels) > _MOST_LABELS else ""): label_rows(
            comparison
        ),
        "The student's most frequent confusions": confusion_rows(comparison),
        "What the judge says": judge_rows(comparison),
        "lm-evaluation-harness": harness_rows(comparison),
    }
    return {title: rows for title, rows in tables.items() if rows}


def _without_empty_columns(rows: Iterable[Row]) -> list[Row]:
    """Return ``rows`` without columns in which no figure is known."""
    rows = list(rows)
    # A slice may have no champion to stand beside: its cell is missing, not its column.
    names = dict.fromkeys(name for row in rows for name in row)
    known = [n for n in names if any(row.get(n, MISSING) != MISSING for row in rows)]
    return [{name: row.get(name, MISSING) for name in known} for row in rows]


def _change_text(reduction: float | None) -> str:
    """Return a reduction as the change that it is: 0.85 as '-85.0 %'; -9 as ten times."""
    if reduction is not None and reduction <= -1:
        return f"\u00d7 {1 - reduction:,.{0 if reduction <= -9 else 1}f}"
    return MISSING if reduction is None else f"{-reduction * 100:+.1f} %"


def tokens_text(value: float | None) -> str:
    """Return a number of tokens, whole.

    >>> tokens_text(1203.5)
    '1,204'
    """
    return MISSING if value is None else f"{value:,.0f}"
