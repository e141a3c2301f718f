"""The comparison's tables in a terminal."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from distillery.evaluation.findings import interval_text
from distillery.evaluation.tables import tokens_text
from schemas.comparison import Comparison
from schemas.units import (
    MISSING,
    bytes_text,
    count_text,
    money_text,
    percent_text,
    rate_text,
    seconds_text,
)


def terminal_table(comparison: Comparison, *, narrow: bool = False) -> Table:
    """Return a table that fits 100 columns, 80 when narrow; for what is in no other line.

    Where costs are known they take the place of parameters.
    """
    title = f"{comparison.task}: {comparison.num_rows:,} test rows"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    priced = any(row.cost for row in comparison.contestants)
    first = "cost per\n1,000" if priced else "parameters"
    headings = [first, "memory", "p50 / p95", comparison.metric, "queries/h", "prompt\ntokens"]
    shown = slice(1, 5) if narrow else slice(None)
    for heading in headings[shown]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in comparison.contestants:
        speed, mark = row.performance, "*" if row.declared_source else ""
        cost = money_text(row.cost.per_1000, row.cost.currency) if row.cost else MISSING
        cells = [
            cost if priced else count_text(row.num_parameters) + mark,
            bytes_text(row.memory_bytes) + mark,
            f"{seconds_text(speed.latency_p50_s)} / {seconds_text(speed.latency_p95_s)}",
            interval_text(row.metrics[comparison.metric]),
            rate_text(speed.queries_per_hour),
            tokens_text(speed.prompt_tokens),
        ]
        table.add_row(row.name, *cells[shown])
    if any(row.declared_source for row in comparison.contestants):
        table.caption = "* declared in the recipe, not measured"
    return table


def terminal_metrics(comparison: Comparison) -> Table:
    """Return a table of every metric, without intervals; below each, how near the teacher's.

    The second line of a model has the teacher's answers in place of the references.
    """
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
