"""What one run of the spine returns."""

from pydantic import BaseModel, ConfigDict

from schemas.comparison import Comparison
from schemas.drift import Drift
from schemas.promotion import Promotion
from schemas.refs import ModelRef, ReportRef


class Distillation(BaseModel):
    """The student, its comparison with the teacher, and the gate's verdict."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    student: ModelRef
    """The trained student, promoted or not."""

    comparison: Comparison
    """Teacher, baseline and student side by side."""

    report: ReportRef
    """The same as JSON, Markdown and HTML."""

    promotion: Promotion
    """Whether the student passed the gate, condition by condition."""

    drift: Drift | None = None
    """Whether a served teacher has changed. None: it was not asked any canaries."""
