"""What the test rows can be divided by, before they are read."""

from distillery.evaluation.slices import LABEL, LENGTH, known_divisions
from distillery.task_types import TaskType
from schemas.base import nearest
from schemas.data import DataSpec
from schemas.evaluation import EvaluationSpec


def slice_problems(kind: TaskType, data: DataSpec, evaluation: EvaluationSpec | None) -> list[str]:
    """Return a line for every slice that the test rows cannot be divided into."""
    if evaluation is None or data.test is None:
        return []
    columns = data.test.columns.slices
    lines = [
        f"data.test.columns.slices names {name!r}, but in evaluation.slices that stands for the "
        f"{what}. Rename the column."
        for name, what in ((LABEL, "right answer"), (LENGTH, "length of the prompt"))
        if name in columns
    ]
    lines += [
        f"data.test.columns.slices names {name!r}, but evaluation.slices does not, so "
        "nothing would be divided by it. Add it there, or remove it here."
        for name in columns
        if name not in evaluation.slices
    ]
    if evaluation.slices == EvaluationSpec().slices:  # of the default, what fits counts
        return lines
    known = known_divisions(evaluation, kind, columns)
    if LABEL in evaluation.slices and LABEL not in known:
        lines.append(
            f"evaluation.slices names 'label', but right answers of task.type "
            f"{kind.task.type.value!r} are not labels here. Remove it."
        )
    return lines + [
        f"evaluation.slices names {name!r}, which is neither 'label' nor 'length' nor one of "
        f"data.test.columns.slices.{nearest(name, [LABEL, LENGTH, *columns])} Add the "
        "column there, or remove it here."
        for name in evaluation.slices
        if name not in (LABEL, *known)
    ]
