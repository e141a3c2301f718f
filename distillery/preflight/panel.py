"""What can be known of a panel of teachers before anything is spent."""

from collections import defaultdict
from collections.abc import Iterator

from distillery.preflight.judge import unread_settings
from distillery.storage.fingerprint import sha256
from distillery.task_types import TaskType
from distillery.teacher import teacher_identity
from distillery.teacher.choice import check_verifier
from schemas.base import nearest
from schemas.data import DataSpec
from schemas.errors import DistilleryError
from schemas.evaluation import EvaluationSpec
from schemas.panel import AnyTeacher, BestOfPolicy, CascadePolicy, ColumnRule, PanelTeacher
from schemas.teacher import TeacherSpec


def places(teacher: AnyTeacher) -> dict[str, TeacherSpec]:
    """Return the single teachers that are asked, by their place in the recipe.

    >>> from schemas.teacher import TransformersTeacher
    >>> [*places(TransformersTeacher(model="m"))]
    ['teacher']
    """
    if not teacher.is_panel:
        return {"teacher": teacher}
    found = {f"teacher.teachers[{n}].teacher": e.teacher for n, e in enumerate(teacher.teachers)}
    return found | ({"teacher.policy.judge.model": teacher.judge.model} if teacher.judge else {})


def panel_problems(
    panel: PanelTeacher,
    kind: TaskType,
    data: DataSpec,
    evaluation: EvaluationSpec | None,
    *,
    judges_rows: bool,
) -> Iterator[str]:
    """Yield what is wrong with a panel as far as recipe, environment and files tell, by line.

    Args:
        panel: Who answers.
        kind: The task type; verifiers ask it.
        data: Which columns there are.
        evaluation: What is asked of the teacher there. None: nothing.
        judges_rows: Whether test rows are answered too, so that rules have to fit them.
    """
    yield from _two_of_one_identity(panel)
    yield from _unusable_verifier(panel, kind)
    yield from _unread_columns(panel, data, judges_rows=judges_rows)
    yield from _several_currencies(panel)
    if panel.judge is not None:
        reads = "two responses, once in each order"
        yield from unread_settings(panel.judge.model, "teacher.policy.judge", reads)
    if evaluation is not None and evaluation.in_context_student:
        yield (
            "evaluation.in_context_student is set, but the teacher is a panel, whose members each "
            "have a prompt of their own. Remove it."
        )
    if evaluation is not None and evaluation.canaries:
        yield (
            f"evaluation.canaries is {evaluation.canaries}, but the teacher is a panel, and only a "
            "single teacher is watched. Remove it."
        )


def panel_warnings(panel: PanelTeacher) -> Iterator[str]:
    """Yield what works and is hardly meant so."""
    if panel.policy.kind == "vote" and len(panel.teachers) == 2:
        names = " and ".join(repr(each.name) for each in panel.teachers)
        yield (
            f"teacher.policy.kind is 'vote' with two members, so every row on which {names} "
            "disagree is a tie and is dropped. Add a third teacher, or choose best_of or cascade."
        )


def _two_of_one_identity(panel: PanelTeacher) -> Iterator[str]:
    names: dict[str, list[str]] = defaultdict(list)
    for each in panel.teachers:
        try:
            names[sha256(teacher_identity(each.teacher))].append(each.name)
        except DistilleryError:
            continue  # it is not there, which is said elsewhere
    for first, second, *_ in (alike for alike in names.values() if len(alike) > 1):
        model = next(e.teacher.model for e in panel.teachers if e.name == first)
        yield (
            f"teacher.teachers: {first!r} and {second!r} are the same model, {model!r}, so the "
            "second adds nothing but its cost. Name another model; for several responses of one "
            "set its samples.num_samples."
        )


def _unusable_verifier(panel: PanelTeacher, kind: TaskType) -> Iterator[str]:
    policy = panel.policy
    if isinstance(policy, BestOfPolicy | CascadePolicy) and policy.verifier is not None:
        try:
            check_verifier(policy.verifier, kind.task, "teacher.policy.verifier")
        except DistilleryError as error:
            yield str(error)


def _unread_columns(panel: PanelTeacher, data: DataSpec, *, judges_rows: bool) -> Iterator[str]:
    splits = ("train", "validation", *(("test",) if judges_rows else ()))
    sources = {split: getattr(data, split) for split in splits}
    for number, each in enumerate(panel.teachers):
        if not isinstance(each.rule, ColumnRule):
            continue
        for split, source in sources.items():
            if source is None or each.rule.column in source.columns.slices:
                continue
            known = [*source.columns.slices]
            yield (
                f"teacher.teachers[{number}].rule names the column {each.rule.column!r}, which "
                f"data.{split}.columns.slices does not, so no row of that split would meet it."
                f"{nearest(each.rule.column, known)} Add it there."
            )


def _several_currencies(panel: PanelTeacher) -> Iterator[str]:
    prices = {name: each.price for name, each in panel.everyone.items()}
    found = {price.currency for price in prices.values() if price is not None}
    if len(found) > 1:
        yield (
            f"prices of teacher.teachers are in {' and '.join(sorted(found))}, so what they cost "
            "cannot be added up. Give all in one currency."
        )
