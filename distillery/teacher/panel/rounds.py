"""Rounds: rows are brought to a response, member after member as the policy says."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from distillery.data.chat import load_messages
from distillery.ledger import LedgerRow
from distillery.teacher import Request
from distillery.teacher.pair import Pair, PairAsker, judging_inputs
from distillery.teacher.panel.base import Ask, Compare, Known, Policy, Taken
from distillery.teacher.panel.best_of import BestOf
from distillery.teacher.panel.cascade import Cascade
from distillery.teacher.panel.route import Route
from distillery.teacher.panel.vote import Vote
from distillery.teacher.requests import Asker, Said, asking_inputs
from schemas.base import versioned
from schemas.execution import StoreSpec
from schemas.panel import JUDGE, PanelTeacher
from schemas.refs import DatasetRef
from schemas.task import TaskSpec

POLICIES: dict[str, type[Policy[Any]]] = {
    "route": Route,
    "vote": Vote,
    "best_of": BestOf,
    "cascade": Cascade,
}

Bring = Callable[[str, Sequence[Request]], Mapping[str, LedgerRow]]
"""Returns what one of those who are asked, a member or the judge, responds to requests, by hash.
What is missing is left out."""


@dataclasses.dataclass
class Row:
    """A row of a PromptFrame on its way to a response."""

    values: dict[str, Any]
    known: Known = dataclasses.field(default_factory=Known)

    judged: list[LedgerRow] = dataclasses.field(default_factory=list)
    """What the judge answered."""

    taken: Taken | None = None
    """Whose response it gets. None: not settled."""

    stuck_at: str | None = None
    """Who would have to answer next, and has not."""

    @property
    def said(self) -> Said | None:
        """Return the response that it gets."""
        return None if self.taken is None else self.known.said[self.taken.member]


class Rounds:
    """A panel at work. What it does depends on nothing but the rows and what is brought."""

    def __init__(
        self, panel: PanelTeacher, task: TaskSpec, prompts: DatasetRef, store: StoreSpec
    ) -> None:
        """Describe the panel; gold rows are read when the first example is shown.

        Args:
            panel: Who is asked, and whose response a row gets.
            task: What the responses have to look like, and when two answers are the same.
            prompts: Where the gold rows are that members are shown, if any.
            store: Where the prompts are.
        """
        self._policy = POLICIES[panel.policy.kind](panel, panel.policy, task)
        self.askers = {
            each.name: Asker(
                each.teacher,
                task,
                prompts,
                store,
                with_log_probability=panel.needs_log_probabilities,
            )
            for each in panel.teachers
        }
        self._judge = PairAsker(panel.judge) if panel.judge else None

    def settle(
        self,
        rows: Sequence[Row],
        bring: Bring,
        *,
        on_settled: Callable[[int], None] | None = None,
    ) -> None:
        """Bring rows to the response that they get, or to where something is missing.

        In each round all that the policy wants to know of any row is asked for at once, of several
        members side by side.

        Args:
            rows: What has to be answered; what is known of them is kept in them.
            bring: Asks, or only looks into the ledger.
            on_settled: Called after each round with the number of rows that have their response.
        """
        left = [row for row in rows if row.taken is None]
        while left:
            asked, compared = self._wanted(left)
            jobs = [(name, *self._requests(name, of)) for name, of in asked.items()]
            with ThreadPoolExecutor(max(1, len(jobs))) as threads:
                brought = [
                    threads.submit(bring, name, [r for each in requests for r in each])
                    for name, _, requests in jobs
                ]
                for (name, of, requests), found in zip(jobs, brought, strict=True):
                    self._note_said(name, of, requests, found.result())
            if compared:
                self._compare(compared, bring)
            left = [row for row in left if row.taken is None and row.stuck_at is None]
            if on_settled is not None:
                on_settled(sum(row.taken is not None for row in rows))

    def _wanted(
        self, rows: Sequence[Row]
    ) -> tuple[dict[str, list[Row]], list[tuple[Row, Compare]]]:
        """Return the rows that each member has to answer next, and the pairs to be judged."""
        asked: dict[str, list[Row]] = collections.defaultdict(list)
        compared = []
        for row in rows:
            match self._policy.step(row.values, row.known):
                case Taken() as taken:
                    row.taken = taken
                case Ask(members):
                    for name in members:
                        asked[name].append(row)
                case Compare() as pair:
                    compared.append((row, pair))
        return asked, compared

    def _requests(self, name: str, rows: list[Row]) -> tuple[list[Row], list[list[Request]]]:
        return rows, self.askers[name].requests([row.values for row in rows])

    def _note_said(
        self,
        name: str,
        rows: Sequence[Row],
        requests: Sequence[list[Request]],
        found: Mapping[str, LedgerRow],
    ) -> None:
        for row, of_row in zip(rows, requests, strict=True):
            said = self.askers[name].said(of_row, found)
            if said is None:
                row.stuck_at = row.stuck_at or name
            else:
                row.known.said[name] = said

    def _compare(self, compared: Sequence[tuple[Row, Compare]], bring: Bring) -> None:
        """Have the judge compare pairs of responses."""
        assert self._judge is not None
        pairs = [_pair(row, wanted) for row, wanted in compared]
        requests = [self._judge.requests(pair) for pair in pairs]
        found = bring(JUDGE, [request for of_pair in requests for request in of_pair])
        for (row, wanted), pair, of_pair in zip(compared, pairs, requests, strict=True):
            row.judged += [found[r.request_hash] for r in of_pair if r.request_hash in found]
            judged = self._judge.judged(pair, of_pair, found)
            if judged is None:
                row.stuck_at = JUDGE
            else:
                row.known.verdicts[wanted.first, wanted.second] = judged["verdict"]


def _pair(row: Row, wanted: Compare) -> Pair:
    said = row.known.said
    return Pair(
        prompt_id=row.values["prompt_id"],
        against=wanted.second,
        conversation=load_messages(row.values["messages"]),
        first=said[wanted.first].text,
        second=said[wanted.second].text,
    )


def panel_inputs(panel: PanelTeacher, task: TaskSpec) -> dict[str, Any]:
    """Return what decides a panel's responses beside identity and prompts, as plain JSON."""
    inputs: dict[str, Any] = versioned(
        {
            "policy": panel.policy.model_dump(mode="json", exclude={"judge"}),
            "judge": panel.judge and judging_inputs(panel.judge),
            "teachers": {e.name: asking_inputs(e.teacher, task) for e in panel.teachers},
            "rules": {each.name: each.rule for each in panel.teachers},
            "task_type": task.type,
            "answer_format": task.answer_format,
        }
    )
    return inputs
