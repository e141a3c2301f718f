"""A teacher's responses for people: a summary of what they took, and a JSONL file."""

import contextlib
import json
import tempfile
import typing
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from distillery.storage.store import Store
from distillery.teacher.generation import AnySession
from distillery.teacher.protocol import State
from schemas.data import DataSpec, FileSource, LogSource
from schemas.errors import RecipeError, StoreError
from schemas.generation import PanelShares
from schemas.manifest import Manifest
from schemas.panel import AnyTeacher
from schemas.refs import DatasetRef
from schemas.units import money_text, percent_text

_JSONL_COLUMNS = (
    *("prompt_id", "split", "state", "response", "prompt_tokens", "completion_tokens"),
    *("sample_index", "agreement", "repaired", "teacher", "chosen_because"),
)

_HINTS = {"truncated": "; raise teacher.max_new_tokens and only these are asked again"}


def summary(
    counts: dict[str, int],
    facts: dict[str, Any],
    teacher: AnyTeacher,
    *,
    reused_from: datetime | None = None,
) -> list[tuple[str, str]]:
    """Return what the responses took, as pairs of a label and its value.

    Args:
        counts: The counts of the stage's manifest.
        facts: Its `facts.generation`.
        teacher: Who answered.
        reused_from: When the responses were made, if they were there before.
    """
    states = {state: counts[state] for state in typing.get_args(State) if state in counts}
    lines = [("responses", f"{sum(states.values()):,}")]
    if reused_from is not None:
        made = f"{reused_from:%Y-%m-%d %H:%M:%S} UTC"
        lines = [("reused", f"all; asked nothing. Made {made}, with:"), *lines]
    lines += [
        (f"  {state}", f"{count:,}{_HINTS.get(state, '') if count else ''}")
        for state, count in states.items()
    ]
    lines += [
        ("asked", f"{counts.get('asked', 0):,} requests"),
        ("from the ledger", f"{counts.get('from_ledger', 0):,} responses"),
        ("retries", f"{facts['retries']:,}; 429s {facts['rate_limited']:,}"),
        *([("repairs", f"{facts['repaired']:,} tried")] if facts["repaired"] else []),
        ("tokens", f"{facts['prompt_tokens']:,} read, {facts['completion_tokens']:,} written"),
        ("cost", _cost(facts, teacher)),
    ]
    if facts["rows_per_s"] is not None:
        pace = f"{facts['rows_per_s']:,.4g} rows/s over {facts['seconds']:,.1f} s"
        lines.append(("rate", pace))
    return lines


def progress_note(session: AnySession) -> str:
    """Return what is going on beside the count: requests in flight, trouble, the cost."""
    activity, totals = session.activity(), session.totals
    if activity.note is not None:
        return activity.note
    said = f"{activity.in_flight}/{activity.limit} in flight"
    if (batches := activity.batches) is not None:
        noun = "batch" if batches.num_batches == 1 else f"{batches.num_batches} batches"
        done = f"{batches.completed:,}/{batches.num_requests:,} done there"
        said = f"{noun} {batches.status}, {done}, {batches.failed:,} failed"
    if activity.requests_per_minute is not None:
        said += f", {activity.requests_per_minute:,.0f}/min"
    if totals.cost is not None and totals.currency is not None:
        said += f", {money_text(totals.cost, totals.currency)}"
    if activity.retries:
        said += f", retries {activity.retries:,}"
    if activity.rate_limited:
        said += f", 429s {activity.rate_limited:,}"
    return said


def panel_shares(generation: Manifest) -> PanelShares | None:
    """Return who of a panel did what, by the manifest of its responses; None of one teacher."""
    found = generation.facts.get("panel")
    return None if found is None else PanelShares.model_validate(found)


SHARE_COLUMNS = ("teacher", "rows", "asked", "agreement", "tokens read", "written", "cost")


def share_rows(shares: PanelShares) -> list[tuple[str, ...]]:
    """Return one row of text per member, in the columns ``SHARE_COLUMNS``."""
    return [
        (
            each.name if each.name == each.model else f"{each.name} ({each.model})",
            f"{each.rows:,}",
            f"{each.asked:,}",
            percent_text(each.agreement),
            f"{each.prompt_tokens:,}",
            f"{each.completion_tokens:,}",
            money_text(each.cost, each.currency),
        )
        for each in shares.teachers
    ]


def saved_sentence(shares: PanelShares) -> str | None:
    """Return what the panel saved against its dearest member alone; None where nobody has a price.

    >>> shares = PanelShares(policy="cascade", teachers=(), dearest="big", dearest_cost=2.0,
    ...     cost=0.5, currency="USD")
    >>> saved_sentence(shares)
    'All of them cost 0.5 USD; big alone would have cost 2.00 USD: 75.0 % saved.'
    """
    if shares.saved is None or not shares.dearest_cost:
        return None
    cost, alone = (money_text(x, shares.currency) for x in (shares.cost, shares.dearest_cost))
    share = shares.saved / shares.dearest_cost
    word = "saved" if share >= 0 else "more"
    return (
        f"All of them cost {cost}; {shares.dearest} alone would have cost {alone}: "
        f"{percent_text(abs(share))} {word}."
    )


def shares_markdown(shares: PanelShares) -> str:
    """Return the figures of a panel as a Markdown table, and what it saved."""
    lines = [
        "| " + " | ".join(SHARE_COLUMNS) + " |",
        "|---" + "|---:" * (len(SHARE_COLUMNS) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in share_rows(shares)),
    ]
    saved = saved_sentence(shares)
    return "\n".join(lines) + (f"\n\n{saved}" if saved else "")


def _cost(facts: dict[str, Any], teacher: AnyTeacher) -> str:
    """Return the cost in words, with what the ledger saved at the same price."""
    if facts["cost"] is None:
        return "unknown: set teacher.price" if teacher.is_hosted else "none: the teacher runs here"
    paid, saved = (money_text(facts[name], facts["currency"]) for name in ("cost", "saved_cost"))
    return f"{paid}; saved by the ledger: {saved}"


def check_jsonl(path: Path, data: DataSpec) -> None:
    """Return when a file can be made at ``path``; asked before money is spent.

    Raises:
        RecipeError: It is one of the files that ``data`` reads.
        StoreError: Its folder is not there, or nothing can be written into it.
    """
    sources = (data.train, data.validation, data.gold, data.selection, data.test)
    if path.resolve() in {
        Path(s.path).resolve() for s in sources if isinstance(s, FileSource | LogSource)
    }:
        raise RecipeError(
            f"--jsonl {str(path)!r} is a file that the recipe reads, and would be lost. Name "
            "another one."
        )
    with _named_errors(path), tempfile.TemporaryFile(dir=path.parent):
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")


def write_jsonl(responses: DatasetRef, store: Store, path: Path) -> int:
    """Write one JSON object per response to ``path`` and return how many; rows are streamed.

    The file appears in one piece, when all of it is written.

    Raises:
        StoreError: It cannot be written, or the responses are gone from the store.
    """
    with _named_errors(path), tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        partial = Path(scratch, path.name)
        with partial.open("w", encoding="utf-8") as file:
            for batch in store.batches(responses):
                for row in batch.select(_JSONL_COLUMNS).to_pylist():
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        partial.replace(path)
    return responses.num_rows


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {str(path)!r}: {error.strerror}. Name a file in a folder that exists "
            "and can be written to."
        ) from error
