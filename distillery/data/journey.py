"""The way of the rows from the files to the training set, and what the dropped ones had cost."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from distillery.storage.store import Store
from schemas.budget import PriceSpec
from schemas.funnel import FunnelStep
from schemas.manifest import Manifest
from schemas.panel import AnyTeacher, PanelTeacher
from schemas.refs import DatasetRef, FilteredSet, PromptSet
from schemas.units import MISSING, money_text

LEARNT_SPLITS = ("train", "validation")


def read_steps(rows: PromptSet, filtered: FilteredSet, store: Store) -> tuple[FunnelStep, ...]:
    """Return the steps from the files to the rows that the filters keep.

    Gold, selection and test rows are not counted: they take another way. What the store no longer
    knows is left out.
    """
    validated = store.manifest_of(rows.quarantined)
    loaded = validated and store.find("load_prompts", str(validated.inputs.get("loaded")))
    found = []
    if validated and loaded:
        by_split = reasons_by_split(rows.quarantined, store)
        aside = sum((Counter(by_split.get(split)) for split in LEARNT_SPLITS), Counter[str]())
        found.append(_step("prompts loaded", loaded.counts, dict(aside.most_common())))
    if validated:
        found.append(_step("valid prompts", validated.counts, {}))
    for ref in (rows.prompts, filtered.kept):
        if ref is filtered.kept:
            found.append(FunnelStep(name="responses", num_rows=filtered.num_responses))
        if made := store.manifest_of(ref):
            found += filter_steps(made)
    return (*found, FunnelStep(name="kept", num_rows=filtered.kept.num_rows))


def reasons_by_split(ref: DatasetRef | None, store: Store) -> dict[str, dict[str, int]]:
    """Return the rows of ``ref``, put aside, by split and reason, the most frequent first."""
    if ref is None or not ref.num_rows or not store.holds(ref):
        return {}
    table = store.dataset(ref).to_table(columns=["split", "reason"])
    by_split: dict[str, Counter[str]] = {}
    for row in table.group_by(["split", "reason"]).aggregate([([], "count_all")]).to_pylist():
        by_split.setdefault(row["split"], Counter())[row["reason"]] += row["count_all"]
    return {split: dict(reasons.most_common()) for split, reasons in by_split.items()}


def filter_steps(made: Manifest) -> list[FunnelStep]:
    """Return the steps of a stage of filters, one for each filter, in their order."""
    steps = cast("list[dict[str, Any]]", made.facts.get("steps", []))
    return [FunnelStep.model_validate(step) for step in steps]


def kept_tokens(made: Manifest | None) -> tuple[int, int] | None:
    """Return the prompt and completion tokens of the rows that `filter_responses` kept."""
    by_teacher = cast("dict[str, list[int]] | None", made and made.facts.get("kept_tokens"))
    if by_teacher is None:
        return None
    return sum(n for n, _ in by_teacher.values()), sum(n for _, n in by_teacher.values())


def priced(
    steps: Iterable[FunnelStep], price_of: Callable[[str], PriceSpec | None]
) -> tuple[FunnelStep, ...]:
    """Return steps with what the dropped responses cost, by the prices of their teachers.

    Unknown where a teacher has no price, or two have theirs in different currencies.
    """
    return tuple(step.model_copy(update=_cost(step, price_of)) for step in steps)


def prices_of(teacher: AnyTeacher) -> Callable[[str], PriceSpec | None]:
    """Return what gives the price of a teacher by the name under which its rows are kept."""
    if isinstance(teacher, PanelTeacher):
        prices = {each.name: each.teacher.price for each in teacher.teachers}
        return prices.get
    return lambda _: teacher.price


def funnel_rows(steps: Sequence[FunnelStep]) -> list[dict[str, str]]:
    """Return steps as a table for people; columns in which nothing stands are left out."""
    rows = [
        {
            "step": step.name,
            "rows": f"{step.num_rows:,}",
            "dropped": _count(sum(step.dropped.values())),
            "because": ", ".join(f"{why.replace('_', ' ')} {n:,}" for why, n in _most(step)),
            "rewritten": _count(step.rewritten),
            "restored": _count(step.restored),
            "their tokens": _count(sum(map(sum, step.dropped_tokens.values()))),
            "their cost": "" if step.dropped_cost is None else _money(step),
        }
        for step in steps
    ]
    always = ("step", "rows", "dropped")
    used = {name for row in rows for name, text in row.items() if text or name in always}
    return [{name: text for name, text in row.items() if name in used} for row in rows]


def _step(name: str, counts: Mapping[str, int], dropped: dict[str, int]) -> FunnelStep:
    num_rows = sum(counts.get(split, 0) for split in LEARNT_SPLITS)
    return FunnelStep(name=name, num_rows=num_rows, dropped=dropped)


def _cost(step: FunnelStep, price_of: Callable[[str], PriceSpec | None]) -> dict[str, Any]:
    found = [(price_of(name), tokens) for name, tokens in step.dropped_tokens.items()]
    known = [(price, tokens) for price, tokens in found if price is not None]
    currencies = {price.currency for price, _ in known}
    if not known or len(known) < len(found) or len(currencies) > 1:
        return {}
    return {
        "dropped_cost": sum(price.cost(*tokens) for price, tokens in known),
        "currency": currencies.pop(),
    }


def _most(step: FunnelStep) -> list[tuple[str, int]]:
    return Counter(step.dropped).most_common()


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _money(step: FunnelStep) -> str:
    return money_text(step.dropped_cost, step.currency) or MISSING
