"""The gate's verdict, and the history of an alias."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from schemas.comparison import Difference, Interval
from schemas.refs import ModelRef


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class GateCheck(_Record):
    """One condition of the gate."""

    condition: str
    """Field of the gate, such as `min_retention` or `conditions[0].at_least`."""

    required: float | None
    """What the gate asks for. None: what it asks for is no number."""

    measured: float | None
    """What was measured. None: the figure is missing, and the condition fails."""

    passed: bool
    """Whether the condition holds."""

    sentence: str
    """The same in words, with the margin."""


class Approval(_Record):
    """What a person said to a student that met every condition."""

    approved: bool
    """Whether it may be promoted. No answer in time is a no."""

    by: str | None
    """Name that the person gave. None: nobody answered in time."""

    comment: str = ""
    """What the person added."""

    sentence: str
    """The same in words."""


EntryKind = Literal["promotion", "manual", "rollback"]
"""promotion: by the gate. manual: by a person, past the gate. rollback: back to the one before."""


class HistoryEntry(_Record):
    """One event in the life of an alias, and the student that it points to since."""

    id: str
    """Made before it is written, so that a write whose answer was lost can be repeated."""

    kind: EntryKind
    """What happened."""

    task: str
    """Name of the task."""

    alias: str
    """Name of the alias."""

    student: ModelRef
    """The student that the alias points to since. Its `uri` is relative to the store's root."""

    forms: dict[str, ModelRef] = {}
    """Its exported forms that passed the gate, by name."""

    at: datetime
    """When, UTC."""

    by: str
    """Who ran it."""

    reason: str
    """Why."""

    restores: str | None = None
    """Of a rollback: the entry that stands again."""

    compared: str | None = None
    """Fingerprint of the comparison on which the student passed. None: it never did."""

    num_rows: int = 0
    """Test rows of that comparison."""

    metrics: dict[str, Interval | None] = {}
    """The student's metrics, the primary one first."""

    differences: tuple[Difference, ...] = ()
    """The student against every other contestant."""

    checks: tuple[GateCheck, ...] = ()
    """The conditions it passed."""

    approval: Approval | None = None
    """Who approved it. None: nobody was asked."""


class AliasFile(HistoryEntry):
    """Content of `aliases/<task>/<alias>.json`: a copy of the registry's newest entry."""

    history: tuple[str, ...]
    """Ids of all entries, oldest first; the last is this one."""


class Verdict(_Record):
    """What the gate says of a student."""

    checks: tuple[GateCheck, ...]
    """Every condition that was asked."""

    forms: dict[str, tuple[GateCheck, ...]] = {}
    """The same conditions of every exported form, by its name. One that fails a condition is not
    published, the student that passes is."""

    approval: Approval | None = None
    """What a person said. None: nobody was asked."""

    @property
    def passed(self) -> bool:
        """Return whether the student meets every condition."""
        return all(check.passed for check in self.checks)

    @property
    def passed_forms(self) -> tuple[str, ...]:
        """Return the exported forms that meet every condition."""
        return tuple(
            name for name, checks in self.forms.items() if all(check.passed for check in checks)
        )


class Promotion(Verdict):
    """What `promote_student` decided."""

    promoted: bool
    """Whether all conditions hold and nobody refused, so that the alias now points to this
    student."""

    previous: ModelRef | None
    """The student that the alias pointed to before, if any."""

    entry: str | None = None
    """Id of the entry in the registry's history. None: nothing was promoted."""

    @property
    def sentence(self) -> str:
        """Return the verdict in words: what passed, or all that keeps the student from it."""
        failed = [check.sentence for check in self.checks if not check.passed]
        said = [self.approval.sentence] if self.approval else []
        if self.approval is not None and not self.approval.approved:
            failed += said
        if failed:
            return "not promoted: " + "; ".join(failed)
        if not self.promoted:
            return "not promoted: every condition holds now, but nobody was asked to approve it"
        return "promoted: " + "; ".join([check.sentence for check in self.checks] + said)
