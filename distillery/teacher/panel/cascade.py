"""The first member answers every row; a row goes on only where that does not hold."""

from collections.abc import Mapping
from typing import Any

from distillery.teacher.choice import passes
from distillery.teacher.panel.base import Ask, Known, Policy, Step, Taken
from distillery.teacher.requests import Said
from schemas.errors import TeacherError
from schemas.panel import CascadePolicy


class Cascade(Policy[CascadePolicy]):
    """One member after the other, in the panel's order."""

    def step(self, row: Mapping[str, Any], known: Known) -> Step:
        """Ask the first member that was not asked, until one holds or the last has answered."""
        because = ""
        for name in self.names:
            if name not in known.said:
                return Ask((name,))
            said = known.said[name]
            holds, figures = self._weigh(name, said)
            if holds:
                return Taken(name, f"settled: {figures}", said.agreement)
            if name != self.names[-1]:
                because = f"last: {name} {figures}"
        return Taken(self.names[-1], because, known.said[self.names[-1]].agreement)

    def _weigh(self, name: str, said: Said) -> tuple[bool, str]:
        """Return whether a response holds, and the figures that say so."""
        if name == self.names[-1]:
            return False, ""  # it counts in any case
        if said.text is None:
            return False, said.response.state
        spec, figures, holds = self.spec, [], True
        if spec.verifier is not None:
            is_passed = passes(said.text, spec.verifier, self.kind)
            holds &= is_passed
            figures.append(f"{spec.verifier.kind} {'passed' if is_passed else 'failed'}")
        if spec.min_agreement is not None:
            agreement = said.agreement or 0.0
            holds &= agreement >= spec.min_agreement
            figures.append(f"agreement {agreement:.2f}")
        if spec.min_log_probability is not None:
            found = self._log_probability(name, said)
            holds &= found >= spec.min_log_probability
            figures.append(f"log-probability {found:.3f}")
        return holds, ", ".join(figures)

    def _log_probability(self, name: str, said: Said) -> float:
        found = said.response.mean_log_probability
        if found is None:
            raise TeacherError(
                f"teacher {name!r} did not say how probable its response was, so "
                "policy.min_log_probability cannot be kept: its endpoint knows no `logprobs`. "
                "Responses so far are kept. Set policy.verifier or policy.min_agreement in its "
                "place."
            )
        return found
