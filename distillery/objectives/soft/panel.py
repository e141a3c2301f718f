"""Several teachers of one student: who they are, and which of them scores a row."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distillery.data.chat import Message
from distillery.storage.fingerprint import sha256
from distillery.teacher import teacher_identity
from distillery.teacher.prompt import prompt_inputs
from schemas.objectives import RECIPES_TEACHER, Scored, SoftTargets, SoftTeacher
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec

logger = logging.getLogger("distillery.run")

_FEW_ROWS = 0.1
_LITTLE_WEIGHT = 0.01


class Member(NamedTuple):
    """One of the teachers, the recipe's own among them."""

    name: str
    teacher: TeacherSpec

    weight: float
    """Its share in the average; all sum to 1."""

    pattern: re.Pattern[str] | None
    """Found in the last user turn of the rows that it scores; None: in those that nobody else
    does."""


def members(teacher: TeacherSpec, soft: Scored) -> list[Member]:
    """Return all teachers, the recipe's first."""
    panel = soft.panel if isinstance(soft, SoftTargets) else ()
    total = 1.0 + sum(each.weight for each in panel)
    of_panel = (
        Member(
            each.name,
            each.teacher,
            each.weight / total,
            None if each.pattern is None else re.compile(each.pattern),
        )
        for each in panel
    )
    return [Member(RECIPES_TEACHER, teacher, 1.0 / total, None), *of_panel]


def route(of: Sequence[Member], messages: Sequence[Message]) -> int:
    """Return which of the teachers scores a row: the first whose pattern is found, or the first.

    >>> from schemas.teacher import TransformersTeacher
    >>> anyone = TransformersTeacher(model="m")
    >>> both = [
    ...     Member("teacher", anyone, 0.5, None), Member("sums", anyone, 0.5, re.compile("[0-9]"))
    ... ]
    >>> [route(both, [{"role": "user", "content": text}]) for text in ("2 + 2?", "Where?")]
    [1, 0]
    """
    asked = next(m["content"] for m in reversed(messages) if m["role"] == "user")
    found = (n for n, each in enumerate(of) if each.pattern and each.pattern.search(asked))
    return next(found, 0)


def panel_inputs(panel: Sequence[SoftTeacher], task: TaskSpec) -> list[dict[str, Any]]:
    """Return what decides the panel's part in a result, as plain JSON; loads no model.

    Names are for reports.

    Raises:
        RecipeError: A local teacher is not there, or a prompt asks for labels that are not.
    """
    return [
        {
            "teacher": teacher_identity(each.teacher),
            "weight": each.weight,
            "pattern": each.pattern,
            "prompt": prompt_inputs(each.teacher, task),
        }
        for each in panel
    ]


def panel_obstacle(of: Sequence[Member], soft: SoftTargets) -> str | None:
    """Return why these teachers cannot teach together; None when they can."""
    known: dict[str, str] = {}
    for each in of:
        if (
            twin := known.setdefault(sha256(teacher_identity(each.teacher)), each.name)
        ) != each.name:
            return (
                f"training.objective.panel: {each.name!r} and {twin!r} are the same model, which "
                "would count twice. Remove one of them, or change its weight."
            )
        is_averaged = len(of) > 1 and soft.combine == "average"
        if is_averaged and each.teacher.is_served:
            return (
                f"{each.name!r}, {each.teacher.model!r}, is served and shows its most likely "
                "tokens only, of which no average of all probabilities can be made. Set "
                "training.objective.combine to route, or load that model here "
                "(kind: transformers)."
            )
    return None


def report(
    of: Sequence[Member],
    soft: SoftTargets,
    rows: Mapping[str, int],
    agreement: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return each teacher's part, for the manifest; one that teaches next to nothing is warned of.

    Args:
        of: The teachers.
        soft: How they are combined.
        rows: How many rows each has scored.
        agreement: Share of response tokens at which each has the mixture's most likely token. None:
            nobody knows.
    """
    total = max(1, *(rows.get(each.name, 0) for each in of)) if soft.combine == "average" else 0
    total = total or max(1, sum(rows.values()))
    for each in of:
        num_rows = rows.get(each.name, 0)
        if soft.combine == "route" and num_rows < _FEW_ROWS * total:
            logger.warning(
                "%s teaches %d of %d rows, fewer than a tenth. Change training.objective.panel's "
                "patterns, or leave it out",
                each.name, num_rows, total,
            )  # fmt: skip
        if soft.combine == "average" and each.weight < _LITTLE_WEIGHT:
            logger.warning(
                "%s has %.2g of the weight, so it teaches next to nothing. Raise its weight in "
                "training.objective.panel, or leave it out",
                each.name, each.weight,
            )  # fmt: skip
    if soft.combine == "route":
        return {each.name: {"rows": rows.get(each.name, 0)} for each in of}
    return {
        each.name: {"rows": rows.get(each.name, 0), "weight": each.weight}
        | ({} if agreement is None else {"agreement": agreement.get(each.name, 0.0)})
        for each in of
    }
