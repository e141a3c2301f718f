"""What each member of a panel would be asked, as far as the ledger can say."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distillery.preflight.generation_plan import GenerationPlan, Tally, plan_of
from distillery.teacher import Request
from distillery.teacher.generation import generation_stage, prompt_rows
from distillery.teacher.panel.rounds import Rounds, Row
from schemas.execution import StoreSpec
from schemas.panel import PanelTeacher
from schemas.refs import DatasetRef
from schemas.task import TaskSpec

if TYPE_CHECKING:
    from distillery.ledger import Ledger, LedgerRow


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberPlan:
    """What one member of a panel would be asked."""

    name: str
    most: GenerationPlan
    """If every row went on to it that can."""
    least: int
    """Distinct requests that it would be asked in any case."""
    share: float | None = None
    """Share of the rows that went on to it, of those on which the ledger can say so. None: it
    knows of none, or nothing has to be settled before."""

    @property
    def expected(self) -> int | None:
        """Return how many requests to expect; None where nobody knows."""
        if self.least == self.most.to_ask:
            return self.least
        if self.share is None:
            return None
        return self.least + round(self.share * (self.most.to_ask - self.least))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PanelPlan:
    """What `generate_responses` would do with a panel of teachers."""

    policy: str
    members: tuple[MemberPlan, ...]
    assumptions: tuple[tuple[str, str], ...] = ()


def plan_panel(
    prompts: DatasetRef, panel: PanelTeacher, task: TaskSpec, store: StoreSpec
) -> PanelPlan:
    """Return what each member would be asked about ``prompts``; nobody is asked.

    Whom a row goes to in a cascade is not known before the members in front have answered it. So
    there are bounds, and between them an estimate where the ledger knows rows that were settled.

    Raises:
        StoreError: The prompts or the ledger cannot be read.
    """
    from distillery.ledger import Ledger

    purpose = generation_stage(prompts, panel, task).fingerprint
    with Ledger.open(store) as ledger:
        looking = _PanelTally(panel, task, prompts, store, ledger)
        for rows in prompt_rows(prompts, store):
            looking.add(rows)
        members = []
        for each in panel.teachers:
            spent = ledger.spent(f"{purpose}:{each.name}")
            members.append(
                MemberPlan(
                    name=each.name,
                    most=plan_of(each.teacher, looking.most[each.name].sums, ledger, spent),
                    least=looking.least[each.name].sums["to_ask"],
                    share=looking.share(each.name),
                )
            )
    notes: tuple[tuple[str, str], ...] = ()
    if panel.judge is not None:
        why = f"not planned: up to {2 * (len(panel.teachers) - 1)} requests per row, two per pair"
        notes = (("judge", why),)
    return PanelPlan(policy=panel.policy.kind, members=tuple(members), assumptions=notes)


class _PanelTally:
    """What the ledger says of each row of a panel: whom it went to, and whom it may go to."""

    def __init__(
        self,
        panel: PanelTeacher,
        task: TaskSpec,
        prompts: DatasetRef,
        store: StoreSpec,
        ledger: "Ledger",
    ) -> None:
        self._names = [each.name for each in panel.teachers]
        self._is_cascade = panel.policy.kind == "cascade"
        self._asks_everybody = panel.policy.kind in ("vote", "best_of")
        self._rounds, self._ledger = Rounds(panel, task, prompts, store), ledger
        self.least = {e.name: Tally(e.teacher, ledger) for e in panel.teachers}
        self.most = {e.name: Tally(e.teacher, ledger) for e in panel.teachers}
        self._settled: collections.Counter[str] = collections.Counter()
        self._went_on: collections.Counter[str] = collections.Counter()

    def add(self, values: Sequence[dict[str, Any]]) -> None:
        """Add rows of the prompts."""
        rows = [Row(each) for each in values]
        self._rounds.settle(rows, self._look_up)
        for name in self._names:
            certain = [row for row in rows if self._is_certain(row, name)]
            possible = [row for row in rows if self._is_possible(row, name)]
            for tally, wanted in ((self.least, certain), (self.most, certain + possible)):
                requests = self._rounds.askers[name].requests([row.values for row in wanted])
                tally[name].add([request for of_row in requests for request in of_row])
        for row in rows:
            for name in row.known.said:
                is_settled = row.taken is not None and row.taken.member == name
                (self._settled if is_settled else self._went_on)[name] += 1

    def share(self, name: str) -> float | None:
        """Return the share of rows that go on to ``name``, of those that nobody can tell yet."""
        if not self._is_cascade:
            return None
        share = 1.0
        for before in self._names[: self._names.index(name)]:
            num_known = self._settled[before] + self._went_on[before]
            if not num_known:
                return None
            share *= self._went_on[before] / num_known
        return share

    def _is_certain(self, row: Row, name: str) -> bool:
        return name in row.known.said or name == row.stuck_at or self._asks_everybody

    def _is_possible(self, row: Row, name: str) -> bool:
        if not self._is_cascade or row.stuck_at is None:
            return False
        return self._names.index(name) > self._names.index(row.stuck_at)

    def _look_up(self, _: str, requests: Sequence[Request]) -> "Mapping[str, LedgerRow]":
        return self._ledger.get({request.request_hash for request in requests})
