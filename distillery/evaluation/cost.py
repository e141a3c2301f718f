"""What requests cost, what the distillation cost, and when it has paid for itself."""

from typing import Any, NamedTuple

from distillery.storage.store import Store
from schemas.budget import MachinePrice, PriceSpec
from schemas.comparison import Comparison, Cost, DistillationCost, Performance
from schemas.contestants import STUDENT, TEACHER
from schemas.generation import PanelShares
from schemas.manifest import Manifest
from schemas.panel import AnyTeacher, PanelTeacher
from schemas.refs import Lineage


class Prices(NamedTuple):
    """The prices that a recipe names, all in one currency."""

    tokens: PriceSpec | None = None
    """`teacher.price`, of a served teacher."""

    machine: MachinePrice | None = None
    """`evaluation.machine_price`, of what runs here."""

    panel: Cost | None = None
    """What requests to a panel of teachers cost, by its members' prices."""

    @classmethod
    def of(
        cls, teacher: AnyTeacher, machine: MachinePrice | None, shares: PanelShares | None = None
    ) -> "Prices":
        """Return the prices of a recipe; ``shares`` say what the test rows took of a panel."""
        if teacher.is_panel:
            return cls(None, machine, cost_of_panel(teacher, shares) if shares else None)
        return cls(teacher.price, machine)


def cost_of_panel(panel: PanelTeacher, shares: PanelShares) -> Cost | None:
    """Return what a thousand requests to a panel cost; None where some member has no price."""
    num_rows = sum(each.rows for each in shares.teachers)
    if any(each.charges is None for each in panel.everyone.values()) or not num_rows:
        return None
    per_1000 = {each.name: 1000 * (each.cost or 0.0) / num_rows for each in shares.teachers}
    currency = shares.currency or ""
    parts = [f"{cost:.3g} for {name}" for name, cost in per_1000.items()]
    return Cost(
        per_1000=sum(per_1000.values()),
        currency=currency,
        source=f"{', '.join(parts)}: their tokens on {num_rows:,} test rows, at their prices",
    )


def cost_of_requests(speed: Performance, prices: Prices, *, is_served: bool) -> Cost | None:
    """Return what a thousand requests cost; None where a price, or what it is of, is not known.

    A served model is paid for by the token. A local one takes the machine for as long as it needs
    at the concurrency that gives most: the cost of a machine that is kept busy.

    >>> speed = Performance(queries_per_hour=36_000, prompt_tokens=500.0, new_tokens=20.0)
    >>> tokens = PriceSpec(prompt_per_million=2, completion_per_million=10, source="a list")
    >>> prices = Prices(tokens, MachinePrice(per_hour=0.9, source="a bill"))
    >>> cost_of_requests(speed, prices, is_served=True).per_1000
    1.2
    >>> cost_of_requests(speed, prices, is_served=False).per_1000
    0.025
    """
    tokens, machine = prices.tokens, prices.machine
    if is_served:
        read, written = speed.prompt_tokens, speed.new_tokens
        if tokens is None or read is None or written is None:
            return None
        return Cost(
            per_1000=tokens.cost(1000 * read, 1000 * written),
            currency=tokens.currency,
            source=f"{read:,.0f} tokens read and {written:,.0f} written per request, at "
            f"{tokens.prompt_per_million:g} and {tokens.completion_per_million:g} "
            f"{tokens.currency} per million ({tokens.source or 'the recipe'})",
        )
    if machine is None or not speed.queries_per_hour:
        return None
    return Cost(
        per_1000=1000 * machine.per_hour / speed.queries_per_hour,
        currency=machine.currency,
        source=f"{speed.queries_per_hour:,.0f} requests per hour of a machine at "
        f"{machine.per_hour:g} {machine.currency} per hour ({machine.source})",
    )


def distillation_cost(
    comparison: Comparison, lineage: Lineage, prices: Prices, store: Store
) -> DistillationCost | None:
    """Return what the student cost, and after how many requests it has paid for itself.

    As if nothing had been there before: every response counts, also one from the ledger, as do
    samples that were not chosen and attempts that failed. A local teacher's responses cost what its
    requests do. Of a training that was interrupted the last attempt counts.

    Returns:
        None where the student's training is no longer in the store.
    """
    made = (lineage.student, lineage.first, lineage.soft_targets, lineage.baseline)
    manifests = [store.manifest_of(ref) for ref in made if ref]
    seconds = [manifest.timings_s["total"] for manifest in manifests if manifest]
    if len(seconds) < len(manifests):
        return None
    hours = sum(seconds) / 3600
    of_teacher, of_student = (_request_cost(comparison, name) for name in (TEACHER, STUDENT))
    cost = DistillationCost(
        teacher=_cost_of_responses(store.manifest_of(lineage.responses), prices.tokens, of_teacher),
        training_hours=hours,
        training=prices.machine and hours * prices.machine.per_hour,
        currency=next((price.currency for price in prices if price), None),
        break_even_requests=None,
    )
    if cost.total is None or of_teacher is None or of_student is None or of_teacher <= of_student:
        return cost
    saved = of_teacher - of_student
    return cost.model_copy(update={"break_even_requests": cost.total / saved})


def _request_cost(comparison: Comparison, name: str) -> float | None:
    row = comparison.contestant(name)
    return row.cost.per_1000 / 1000 if row and row.cost else None


def _cost_of_responses(
    generation: Manifest | None, price: PriceSpec | None, of_request: float | None
) -> float | None:
    """Return what all responses cost; ``of_request`` is what one to a local teacher costs."""
    bill: Any = generation.facts.get("bill") if generation else None
    if bill is None:
        return None
    panel: Any = generation.facts.get("panel") if generation else None
    if panel is not None:
        rows = sum(each["rows"] for each in panel["teachers"])
        known = all(each["cost"] is not None for each in panel["teachers"])
        return panel["cost"] if known else of_request and of_request * rows
    if price is not None:
        return price.cost(bill["prompt_tokens"], bill["completion_tokens"])
    return None if of_request is None else of_request * bill["responses"]
