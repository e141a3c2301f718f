"""All members answer, and the answer that most of them give counts."""

from collections.abc import Mapping
from typing import Any

from distillery.teacher.panel.base import Ask, Known, Policy, Step, Taken
from schemas.panel import VotePolicy


class Vote(Policy[VotePolicy]):
    """A majority, by the equality of the task type."""

    def step(self, row: Mapping[str, Any], known: Known) -> Step:
        """Ask everybody, then take the first response with the answer that most gave.

        Without a majority (two answers with equally many votes) it is a tie, which the filters
        drop; whoever needs a response all the same has that of the first of the tied members.
        """
        if missing := self.missing(known):
            return Ask(missing)
        groups = self._groups(known)
        if not groups:
            return Taken(self.names[0], f"unverified: 0 of {len(self.names)}", 0.0)
        most = max(groups, key=len)  # of equals the first
        share = f"{len(most)} of {len(self.names)}"
        is_tie = sum(len(group) == len(most) for group in groups) > 1
        return Taken(
            most[0],
            f"{'tie' if is_tie else 'majority'}: {share}",
            len(most) / len(self.names),
        )

    def _groups(self, known: Known) -> list[list[str]]:
        """Return the members that gave the same answer, those that gave none left out."""
        groups: list[list[str]] = []
        answers = self.answers(known)
        for name, answer in answers.items():
            for group in groups:
                if self.kind.same(answer, answers[group[0]]):
                    group.append(name)
                    break
            else:
                groups.append([name])
        return groups
