"""What a sweep asked its teacher for, once for all trials, by the manifests and the ledger."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from distillery.ledger import Ledger
from distillery.storage.store import Store
from schemas.execution import StoreSpec
from schemas.refs import DatasetRef
from schemas.units import money_text


@dataclass(frozen=True)
class Spending:
    """The teacher's responses that the trials learnt from."""

    responses: int
    """Responses, each counted once, however many trials learnt from it."""

    requests: int
    """Requests that were charged for them, by the ledger."""

    prompt_tokens: int
    """Tokens that the teacher read."""

    completion_tokens: int
    """Tokens that it wrote."""

    cost: float | None
    """What it cost. None: nothing, or no price is known."""

    currency: str | None
    """ISO 4217 code."""

    @property
    def paid_twice(self) -> int:
        """Return how many requests were charged beyond one for each response."""
        return max(0, self.requests - self.responses)

    def sentence(self, num_trials: int) -> str:
        """Return it in words."""
        money = "" if self.cost is None else f", {money_text(self.cost, self.currency or '')}"
        return (
            f"{num_trials} trials learnt from {self.responses:,} responses of the teacher: "
            f"{self.requests:,} requests, {self.prompt_tokens:,} tokens read, "
            f"{self.completion_tokens:,} written{money}; {self.paid_twice} paid twice."
        )


def spending(responses: Iterable[DatasetRef], store: StoreSpec) -> Spending:
    """Return what the teacher was asked for ``responses``, each data set counted once."""
    refs = {ref.fingerprint: ref for ref in responses}
    opened = Store(store.root)
    made = [manifest for ref in refs.values() if (manifest := opened.manifest_of(ref))]
    with Ledger.open(store) as ledger:
        spent = [ledger.spent(fingerprint) for fingerprint in refs]
    facts: list[Any] = [manifest.facts["generation"] for manifest in made]
    costs = [manifest.cost for manifest in made if manifest.cost is not None]
    return Spending(
        responses=sum(ref.num_rows for ref in refs.values()),
        requests=sum(each.requests for each in spent),
        prompt_tokens=sum(each["prompt_tokens"] for each in facts),
        completion_tokens=sum(each["completion_tokens"] for each in facts),
        cost=sum(costs) if costs else None,
        currency=next((m.currency for m in made if m.currency), None),
    )
