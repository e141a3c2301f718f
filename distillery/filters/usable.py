"""Rows to which the teacher has no usable response; always dropped, as the filter `teacher`."""

from distillery.filters.base import Drop, Row, RowFilter
from distillery.task_types import TaskType
from schemas.filters import DropReason
from schemas.panel import TIE

_UNUSABLE = {
    "failed": Drop(DropReason.TEACHER_FAILED, "the teacher could not answer this row"),
    "refused": Drop(DropReason.TEACHER_REFUSED, "the teacher declines this prompt for good"),
    "malformed": Drop(
        DropReason.MALFORMED_RESPONSE, "the response breaks the schema of task.answer_format"
    ),
}


class Usable(RowFilter[None]):
    """Drops what failed, was refused, malformed or empty, and what nothing bears out."""

    def row(self, row: Row, task: TaskType) -> Drop | None:
        """Return the drop of a state, of an empty response, of a tie, or of a failed choice."""
        if row["state"] in _UNUSABLE:
            return _UNUSABLE[row["state"]]
        cut = f"cut after {row['completion_tokens']} tokens" if row["state"] == "truncated" else ""
        if not row["response"].strip():
            return Drop(DropReason.EMPTY, "the response has no text" + (cut and f", {cut}"))
        because = row["chosen_because"] or ""
        if because.startswith(f"{TIE}:"):
            return Drop(
                DropReason.TEACHERS_DISAGREE,
                f"two answers have equally many votes ({because})",
                row["agreement"],
            )
        if row["agreement"] != 0:
            return None
        if cut:  # raising max_new_tokens is what helps
            return Drop(DropReason.TRUNCATED, cut)
        return Drop(
            DropReason.NOT_VERIFIED,
            "no response to this prompt has what teacher.samples.choice or teacher.policy asks for",
            0.0,
        )
