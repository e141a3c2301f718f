"""All members answer, and a verifier or a judge chooses."""

from collections.abc import Mapping
from typing import Any

from distillery.teacher.choice import passes
from distillery.teacher.panel.base import Ask, Compare, Known, Policy, Step, Taken
from schemas.panel import BestOfPolicy


class BestOf(Policy[BestOfPolicy]):
    """The first response that passes, or the one that the judge prefers."""

    def step(self, row: Mapping[str, Any], known: Known) -> Step:
        """Ask everybody, then choose."""
        if missing := self.missing(known):
            return Ask(missing)
        return self._verified(known) if self.spec.verifier else self._judged(known)

    def _verified(self, known: Known) -> Step:
        verifier = self.spec.verifier
        assert verifier is not None
        passed = [
            name
            for name in self.names
            if (text := known.said[name].text) is not None and passes(text, verifier, self.kind)
        ]
        share = f"{len(passed)} of {len(self.names)}"
        if not passed:
            return Taken(self.names[0], f"unverified: {share}", 0.0)
        return Taken(passed[0], f"verified: {share}", len(passed) / len(self.names))

    def _judged(self, known: Known) -> Step:
        """Let the best so far stand against the next; an earlier one stays at a tie."""
        best, *others = [n for n in self.names if known.said[n].text] or self.names[:1]
        won = 0
        for name in others:
            if known.said[best].text == known.said[name].text:
                continue
            if (best, name) not in known.verdicts:
                return Compare(best, name)
            verdict = known.verdicts[best, name]
            best, won = (name, won + 1) if verdict == "loss" else (best, won + (verdict == "win"))
        return Taken(best, f"judged: {won} of {len(others)} comparisons decided")
