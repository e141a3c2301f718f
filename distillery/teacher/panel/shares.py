"""What each member of a panel did: rows, agreement, tokens, cost, and the money saved."""

import dataclasses
from collections.abc import Iterable

from distillery.ledger import LedgerRow
from distillery.task_types import task_type
from distillery.teacher.panel.rounds import Row
from schemas.generation import PanelShares, TeacherShare
from schemas.panel import JUDGE, PanelTeacher
from schemas.task import TaskSpec


@dataclasses.dataclass
class _Share:
    rows: int = 0
    asked: int = 0
    compared: int = 0
    agreed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def bill(self, responses: Iterable[LedgerRow]) -> None:
        """Add the tokens of all attempts at some requests."""
        for response in responses:
            self.prompt_tokens += response.billed_prompt_tokens
            self.completion_tokens += response.billed_completion_tokens


class Shares:
    """Counts, row after row."""

    def __init__(self, panel: PanelTeacher, task: TaskSpec) -> None:
        """Begin with nothing."""
        self._panel, self._kind = panel, task_type(task)
        self._of = {name: _Share() for name in panel.everyone}
        self._final = _Share()

    def note(self, row: Row) -> None:
        """Add a row that has its response."""
        assert row.taken is not None
        final = row.known.said[row.taken.member]
        answer = None if final.text is None else self._kind.parse(final.text)
        self._of[row.taken.member].rows += 1
        self._final.rows += 1
        self._final.bill([final.response])
        if row.judged:
            self._of[JUDGE].asked += 1
            self._of[JUDGE].bill(row.judged)
        for name, said in row.known.said.items():
            share = self._of[name]
            share.asked += 1
            share.bill(said.samples)
            if answer is None:
                continue
            share.compared += 1
            own = None if said.text is None else self._kind.parse(said.text)
            share.agreed += own is not None and self._kind.same(own, answer)

    def found(self, num_rows: int) -> PanelShares:
        """Return the figures over ``num_rows`` rows."""
        specs = self._panel.everyone
        teachers = []
        for name, share in self._of.items():
            price = specs[name].charges
            tokens = (share.prompt_tokens, share.completion_tokens)
            teachers.append(
                TeacherShare(
                    name=name,
                    model=specs[name].model,
                    rows=share.rows,
                    asked=share.asked,
                    agreement=share.agreed / share.compared if share.compared else None,
                    prompt_tokens=tokens[0],
                    completion_tokens=tokens[1],
                    cost=price.cost(*tokens) if price else None,
                    currency=price.currency if price else None,
                )
            )
        alone = self._alone(num_rows)
        if not alone:
            return PanelShares(policy=self._panel.policy.kind, teachers=tuple(teachers))
        dearest = max(alone, key=lambda name: alone[name])
        return PanelShares(
            policy=self._panel.policy.kind,
            teachers=tuple(teachers),
            dearest=dearest,
            dearest_cost=alone[dearest],
            cost=sum(each.cost or 0.0 for each in teachers),
            currency=next(each.currency for each in teachers if each.currency),
        )

    def _alone(self, num_rows: int) -> dict[str, float]:
        """Return what each member with a price would have cost, had it answered every row."""
        costs = {}
        for each in self._panel.teachers:
            price, share = each.teacher.charges, self._of[each.name]
            basis, count = (share, share.asked) if share.asked else (self._final, self._final.rows)
            if price is not None and count:
                cost = price.cost(basis.prompt_tokens, basis.completion_tokens)
                costs[each.name] = cost * num_rows / count
        return costs
