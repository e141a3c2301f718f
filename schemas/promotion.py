"""The gate's verdict and the pointer to the promoted student."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from schemas.comparison import Difference, Interval
from schemas.refs import ModelRef


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class GateCheck(_Record):
    """One condition of the gate."""

    condition: str
    """Field of the gate, such as `min_retention` or `conditions[0].at_least`."""

    required: float
    """What the gate asks for."""

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


class PromotedStudent(_Record):
    """One promotion: which student, on what figures, when."""

    student: ModelRef
    """The model."""

    promoted_at: datetime
    """When, UTC."""

    compared: str
    """Fingerprint of the comparison on which it passed."""

    num_rows: int
    """Test rows of that comparison."""

    metrics: dict[str, Interval | None]
    """The student's metrics, the primary one first."""

    differences: tuple[Difference, ...]
    """The student against every other contestant."""

    checks: tuple[GateCheck, ...]
    """The conditions it passed."""

    forms: dict[str, ModelRef] = {}
    """The exported forms that met the same conditions and are published with it, by name."""

    approval: Approval | None = None
    """Who approved it. None: nobody was asked."""


class ChampionPointer(_Record):
    """Content of `aliases/<task>/<alias>.json`: the promoted student and those before it."""

    task: str
    """Name of the task."""

    alias: str
    """Name of the alias."""

    current: PromotedStudent
    """The student that the alias stands for."""

    previous: tuple[PromotedStudent, ...] = ()
    """Those before it, newest first."""


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
    """Whether all conditions hold and nobody refused, so that the alias now stands for this
    student."""

    previous: ModelRef | None
    """The student that the alias stood for before, if any."""

    @property
    def sentence(self) -> str:
        """Return the verdict in words: what passed, or all that keeps the student from it."""
        failed = [check.sentence for check in self.checks if not check.passed]
        said = [self.approval.sentence] if self.approval else []
        if self.approval is not None and not self.approval.approved:
            failed += said
        if failed:
            return "not promoted: " + "; ".join(failed)
        return "promoted: " + "; ".join([check.sentence for check in self.checks] + said)
