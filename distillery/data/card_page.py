"""The data card for people: tables, as Markdown and as one HTML file."""

from collections.abc import Sequence
from pathlib import Path

from distillery.data.journey import funnel_rows
from schemas.card import DataCard, Shift, Texts
from schemas.units import MISSING, percent_text

Row = dict[str, str]

_FIRST_CLASSES = 30
_BITS = 3


def card_tables(card: DataCard) -> dict[str, list[Row]]:
    """Return the card as tables by heading; those with nothing in them are left out."""
    sides = {"prompts": card.prompts, "responses": card.responses}
    tables = {
        "Rows": [{"split": split, "rows": f"{rows:,}"} for split, rows in card.rows.items()],
        "From the files to the training set": funnel_rows(card.funnel),
        "Tokens": _tokens(card),
        "Length, characters": [
            {"of": side, **{name: f"{value:,.0f}" for name, value in of.chars.items()}}
            for side, of in sides.items()
        ],
        f"Diversity, over {card.sampled_rows:,} rows": [
            _diversity(side, of) for side, of in sides.items()
        ],
        **{
            f"Balance of {name}": _classes(counts, card.imbalance[name])
            for name, counts in card.labels.items()
        },
        "Teachers": [
            {"teacher": name, "rows": f"{rows:,}", "share": _share(rows, card.teachers)}
            for name, rows in card.teachers.items()
        ],
        "Drift since the last released set": [_shift(shift) for shift in card.drift],
    }
    return {title: rows for title, rows in tables.items() if rows}


def card_notes(card: DataCard) -> list[str]:
    """Return what a reader of the tables has to know, in sentences."""
    compared = "This is the first released set of the task, so there is no drift to state."
    if card.compared_with is not None:
        compared = (
            f"Compared with {card.compared_with[:12]}, the last released set. Drift is the "
            "Jensen-Shannon divergence in bits: 0 for equal distributions, 1 for nothing in "
            "common; by chance is what two samples of these sizes of one distribution have."
        )
    return [
        f"Fingerprint {card.training_set[:12]}, made {card.made_at:%Y-%m-%d %H:%M} UTC.",
        compared,
        "Distinct-n is the share of different runs of n words among all; near-duplicates share "
        "four fifths of their runs of three words with an earlier row.",
    ]


def card_markdown(card: DataCard) -> str:
    """Return the card as Markdown."""
    parts = [f"# Data card of {card.task}", *card_notes(card)]
    for title, rows in card_tables(card).items():
        parts += [f"## {title}", markdown_table(rows)]
    return "\n\n".join(parts) + "\n"


def card_html(card: DataCard) -> str:
    """Return the card as one HTML file; everything that comes from data is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("card.html.jinja")
    return page.render(card=card, notes=card_notes(card), tables=card_tables(card))


def write_card(card: DataCard, folder: Path) -> Path:
    """Return ``folder`` with the card in it: card.json, card.md and card.html."""
    folder.mkdir()
    (folder / "card.json").write_text(card.model_dump_json(indent=1), "utf-8")
    (folder / "card.md").write_text(card_markdown(card), "utf-8")
    (folder / "card.html").write_text(card_html(card), "utf-8")
    return folder


def markdown_table(rows: Sequence[Row]) -> str:
    r"""Return rows as a Markdown table; cells of figures stand on the right.

    >>> print(markdown_table([{"label": "a|b", "rows": "1,200"}]))
    | label | rows |
    |---|---:|
    | a\|b | 1,200 |
    """
    names = list(rows[0])
    is_figure = {
        name: all(row[name][:1].isdigit() or row[name] in ("", MISSING) for row in rows)
        for name in names
    }
    lines = [names, ["---:" if is_figure[name] else "---" for name in names]]
    head = [f"| {' | '.join(lines[0])} |", f"|{'|'.join(lines[1])}|"]
    cells = ([row[name].replace("|", "\\|").replace("\n", " ") for name in names] for row in rows)
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in cells)])


def _tokens(card: DataCard) -> list[Row]:
    if card.prompt_tokens is None or card.completion_tokens is None:
        return []
    return [{"prompts": f"{card.prompt_tokens:,}", "responses": f"{card.completion_tokens:,}"}]


def _diversity(side: str, of: Texts) -> Row:
    distinct = {f"distinct-{n}": _figure(value) for n, value in of.distinct.items()}
    languages = ", ".join(f"{name} {percent_text(n)}" for name, n in of.languages.items())
    found = {"of": side, **distinct, "near-duplicates": percent_text(of.near_duplicates)}
    return found | {
        "embedding spread": _figure(of.embedding_spread),
        "languages": languages or "not looked at: the answers are closed",
    }


def _classes(counts: dict[str, int], imbalance: float | None) -> list[Row]:
    shown = list(counts.items())
    left = len(shown) - _FIRST_CLASSES
    if left > 1:  # the rarest say more than what is in the middle
        half = _FIRST_CLASSES // 2
        shown = [*shown[:half], (f"… {left} more …", -1), *shown[-half:]]
    rows = [
        {"class": name, "rows": f"{n:,}" if n >= 0 else "", "share": _share(n, counts)}
        for name, n in shown
    ]
    ratio = "a class has no row" if imbalance is None else f"{imbalance:,.1f}"
    return [*rows, {"class": "most frequent over rarest", "rows": ratio, "share": ""}]


def _share(rows: int, counts: dict[str, int]) -> str:
    total = sum(counts.values())
    return percent_text(rows / total) if rows >= 0 and total else ""


def _shift(shift: Shift) -> Row:
    return {
        "figure": shift.figure,
        "divergence, bits": _figure(shift.divergence),
        "by chance": _figure(shift.by_chance),
    }


def _figure(value: float | None) -> str:
    return MISSING if value is None else f"{value:.{_BITS}f}"
