"""A session with a panel: one with each member, and one with the judge, if there is one."""

import collections
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from distillery.ledger import LedgerRow
from distillery.teacher.panel.rounds import Rounds, Row
from distillery.teacher.protocol import Activity, Request
from distillery.teacher.session import AskedFor, TeacherSession, Totals
from schemas.errors import DistilleryError
from schemas.execution import StoreSpec
from schemas.panel import PanelTeacher
from schemas.refs import DatasetRef
from schemas.task import TaskSpec


class PanelSession:
    """A panel with its ledger. Safe to use from several threads.

    Each member has its own budget: what was ever spent on it for the session's purpose.
    """

    def __init__(
        self,
        panel: PanelTeacher,
        task: TaskSpec,
        prompts: DatasetRef,
        store: StoreSpec,
        *,
        purpose: str,
    ) -> None:
        """Describe the session; nothing is asked before :meth:`settle`.

        Args:
            panel: Who answers.
            task: What the responses have to look like.
            prompts: Where the gold rows are that members are shown.
            store: Where the ledger is.
            purpose: What the money is spent for: a stage's fingerprint.

        Raises:
            StoreError: The ledger cannot be opened.
        """
        self.teacher, self.store = panel, store
        self._rounds = Rounds(panel, task, prompts, store)
        self.sessions: dict[str, TeacherSession] = {}
        with contextlib.ExitStack() as opened:
            for name, teacher in panel.everyone.items():
                session = TeacherSession(teacher, store, purpose=f"{purpose}:{name}")
                self.sessions[name] = opened.enter_context(session)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to everybody, and to the ledger."""
        self._opened.close()

    @property
    def totals(self) -> Totals:
        """Return what all of it took."""
        return Totals.of_all(session.totals for session in self.sessions.values())

    @property
    def failed_with(self) -> DistilleryError | None:
        """Return what ended the work of a member."""
        errors = (session.failed_with for session in self.sessions.values())
        return next((error for error in errors if error is not None), None)

    def activity(self) -> Activity:
        """Return what all of them are doing at this moment."""
        found = [session.activity() for session in self.sessions.values()]
        return Activity(
            in_flight=sum(each.in_flight for each in found),
            limit=sum(each.limit for each in found),
            rate_limited=sum(each.rate_limited for each in found),
            retries=sum(each.retries for each in found),
            note=next((each.note for each in found if each.note), None),
        )

    def settle(
        self, rows: Sequence[Row], *, on_settled: Callable[[int], None] | None = None
    ) -> None:
        """Bring rows to the responses that they get, asking what the ledger does not have.

        Raises:
            RecipeError: A member cannot be used as the recipe describes it.
            TeacherError: A member cannot answer anything.
            BudgetError: A cap of a member's budget is reached.
            StoreError: The ledger cannot be read or written.
        """
        self._rounds.settle(rows, self._bring, on_settled=on_settled)

    def answer_rows(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> dict[str, int]:
        """Have rows answered and return how many of them got a response of which state."""
        asked = [Row(dict(row)) for row in rows]
        self.settle(asked, on_settled=on_progress)
        states = (row.said.response.state if row.said else "failed" for row in asked)
        return dict(collections.Counter(states))

    def _bring(self, name: str, requests: Sequence[Request]) -> Mapping[str, LedgerRow]:
        """Return responses in the ledger, those that were missing asked before."""
        asked_for = AskedFor()
        asked_for.add(requests)
        session = self.sessions[name]
        session.answer(asked_for)
        return session.ledger.get(asked_for.requests)
