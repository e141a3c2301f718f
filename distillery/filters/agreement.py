"""Responses that too few of the prompt's samples bear out."""

from distillery.filters.base import Drop, Row, RowFilter
from distillery.task_types import TaskType
from schemas.filters import AgreementFilter, DropReason


class Agreement(RowFilter[AgreementFilter]):
    """Drops by the fraction of samples behind a response; one sample alone passes."""

    def row(self, row: Row, task: TaskType) -> Drop | None:
        """Drop a response whose agreement is below the bound."""
        agreement, lowest = row["agreement"], self.spec.min_agreement
        if agreement is None or agreement >= lowest:
            return None
        detail = f"agreement {agreement:.3g}, below {lowest}"
        return Drop(DropReason.LOW_AGREEMENT, detail, agreement)
