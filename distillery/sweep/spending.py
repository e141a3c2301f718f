"""What a sweep asked its teacher for, once for all trials, by the manifests and the ledger."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from distillery.ledger import Ledger
from distillery.storage.store import Store
from schemas.execution import StageName, StoreSpec
from schemas.manifest import Manifest
from schemas.panel import JUDGE
from schemas.refs import DatasetRef
from schemas.units import money_text


@dataclass(frozen=True)
class Spending:
    """The teacher's responses that the trials learnt from, and its probabilities of them."""

    responses: int
    """Responses, each counted once, however many trials learnt from it."""

    requests: int
    """Requests that were charged for them, by the ledger: several of a row where several were
    sampled, or several teachers asked."""

    paid_twice: int
    """Requests that were charged beyond one for each sample of each teacher; those to a judge of
    them do not count."""

    scoring_requests: int
    """Requests to a served teacher for its probabilities."""

    prompt_tokens: int
    """Tokens that the teacher read, for both."""

    completion_tokens: int
    """Tokens that it wrote, for both."""

    cost: float | None
    """What both cost. None: nothing, or no price is known."""

    currency: str | None
    """ISO 4217 code."""

    def sentence(self, num_trials: int) -> str:
        """Return it in words."""
        money = "" if self.cost is None else f", {money_text(self.cost, self.currency or '')}"
        scoring = ""
        if self.scoring_requests:
            scoring = f" and {self.scoring_requests:,} for its probabilities"
        return (
            f"{num_trials} trials learnt from {self.responses:,} responses of the teacher: "
            f"{self.requests:,} requests{scoring}, {self.prompt_tokens:,} tokens read, "
            f"{self.completion_tokens:,} written{money}; {self.paid_twice} paid twice."
        )


def spending(asked: Iterable[DatasetRef], store: StoreSpec) -> Spending:
    """Return what the teacher was asked for ``asked``: responses and soft targets, each once."""
    refs = {ref.fingerprint: ref for ref in asked}
    opened = Store(store.root)
    made = {at: manifest for at, ref in refs.items() if (manifest := opened.manifest_of(ref))}
    scored = [m for m in made.values() if m.stage == StageName.SCORE_SOFT_TARGETS]
    given = {at: m for at, m in made.items() if m.stage == StageName.GENERATE_RESPONSES}
    with Ledger.open(store) as ledger:
        charged = {at: _charged(ledger, at, manifest) for at, manifest in given.items()}
    said: dict[str, Any] = {at: manifest.facts["bill"] for at, manifest in given.items()}
    served: list[Any] = [m.facts["served"] for m in scored if "served" in m.facts]
    bills: list[Any] = [m.facts["generation"] for m in given.values()] + served
    costs = [m.cost for m in made.values() if m.cost is not None]
    return Spending(
        responses=sum(refs[at].num_rows for at in given),
        requests=sum(each.total() for each in charged.values()),
        paid_twice=sum(
            max(0, charged[at].total() - charged[at][JUDGE] - said[at]["responses"]) for at in given
        ),
        scoring_requests=sum(each["requests"] for each in served),
        prompt_tokens=sum(each["prompt_tokens"] for each in bills),
        completion_tokens=sum(each["completion_tokens"] for each in bills),
        cost=sum(costs) if costs else None,
        currency=next((m.currency for m in made.values() if m.currency), None),
    )


def _charged(ledger: Ledger, fingerprint: str, manifest: Manifest) -> Counter[str]:
    """Return how many requests were charged for responses, by who was asked."""
    panel: Any = manifest.facts.get("panel")
    if panel is None:
        return Counter({"": ledger.spent(fingerprint).requests})
    names = [each["name"] for each in panel["teachers"]]
    return Counter({name: ledger.spent(f"{fingerprint}:{name}").requests for name in names})
