"""What a gate asks for and the comparison will not have: refused before anything is spent."""

from collections.abc import Iterator

from distillery.task_types import TaskType
from schemas.base import nearest
from schemas.evaluation import EvaluationSpec
from schemas.gate import Condition, GateSpec, LimitCondition, QualityCondition
from schemas.panel import AnyTeacher, singles


def unanswerable_conditions(
    gate: GateSpec, kind: TaskType, teacher: AnyTeacher, evaluation: EvaluationSpec
) -> list[str]:
    """Return a line for every condition that could only fail, as its figure will not be there."""
    asked: list[tuple[str, Condition]] = [
        (f"gate.conditions[{number}]", condition)
        for number, condition in enumerate(gate.conditions)
    ]
    if gate.max_memory_ratio is not None:
        memory = LimitCondition(
            figure="memory_bytes", against="teacher", at_most=gate.max_memory_ratio
        )
        asked.append(("gate.max_memory_ratio", memory))
    if gate.max_cost_ratio is not None:
        cost = LimitCondition(
            figure="cost_per_1000", against="teacher", at_most=gate.max_cost_ratio
        )
        asked.append(("gate.max_cost_ratio", cost))
    return [
        line
        for place, condition in asked
        for line in (
            _quality(place, condition, kind, evaluation)
            if isinstance(condition, QualityCondition)
            else _limit(place, condition, teacher, evaluation)
        )
    ]


def _quality(
    place: str, asked: QualityCondition, kind: TaskType, evaluation: EvaluationSpec
) -> Iterator[str]:
    metrics = {name.lower(): name for name in (*kind.metrics, *kind.of_the_set)}
    metric = metrics.get((asked.metric or kind.primary).lower())
    task_type = f"task.type {kind.task.type.value!r}"
    if metric is None:
        near = nearest((asked.metric or "").lower(), list(metrics))
        yield (
            f"{place}.metric is {asked.metric!r}, which {task_type} does not have.{near} Name one "
            f"of {', '.join(map(repr, metrics.values()))}."
        )
    if asked.slice is not None:
        yield from _slice(place, asked, kind, evaluation)


def _slice(
    place: str, asked: QualityCondition, kind: TaskType, evaluation: EvaluationSpec
) -> Iterator[str]:
    column, separator, value = str(asked.slice).partition("=")
    if not (column and separator and value):
        yield (
            f"{place}.slice is {asked.slice!r}, which is not of the form column=value. Write for "
            "example label=refund."
        )
        return
    if column not in evaluation.slices:
        known = list(evaluation.slices)
        yield (
            f"{place}.slice is {asked.slice!r}, but {column!r} is not in evaluation.slices "
            f"{known}, so there is no such slice.{nearest(column, known)} Add it there, or name a "
            "column that is."
        )
    elif column == "label" and not kind.has_labels:
        yield (
            f"{place}.slice is {asked.slice!r}, but the answers of task.type "
            f"{kind.task.type.value!r} are not labels. Remove the condition."
        )
    elif column == "label" and kind.labels and value not in kind.labels:
        known = list(kind.labels)
        yield (
            f"{place}.slice is {asked.slice!r}, which is none of the labels "
            f"{', '.join(map(repr, known)):.200}.{nearest(value, known)} Correct it."
        )
    if asked.metric is not None and asked.metric.lower() != kind.primary.lower():
        yield (
            f"{place}.metric is {asked.metric!r}, but slices are compared by {kind.primary!r} "
            "alone. Remove `metric`, or `slice`."
        )
    if asked.against == "baseline":
        yield (
            f"{place}.against is 'baseline', but in slices the student is compared with teacher "
            "and champion. Name one of them."
        )


def _limit(
    place: str, asked: LimitCondition, teacher: AnyTeacher, evaluation: EvaluationSpec
) -> Iterator[str]:
    if asked.figure == "cost_per_1000":
        yield from _cost(place, asked, teacher, evaluation)
    elif teacher.is_served and asked.against == "teacher":
        hidden = {"peak_memory_bytes": "peak memory"}
        if teacher.is_hosted:
            hidden["disk_bytes"] = "size on disk"
        if what := hidden.get(asked.figure):
            yield (
                f"{place} asks for the teacher's {what}, which nobody can measure from here: it "
                "answers behind an endpoint. Remove `against` and say how large it may be, or "
                "compare with the champion."
            )
        elif asked.figure == "memory_bytes" and any(
            each.is_hosted and each.declared is None for each in singles(teacher)
        ):
            yield (
                f"{place} asks for the teacher's memory, which nobody can measure from here: it "
                "answers behind an endpoint. Say what it needs under teacher.declared."
            )


def _cost(
    place: str, asked: LimitCondition, teacher: AnyTeacher, evaluation: EvaluationSpec
) -> Iterator[str]:
    machine = evaluation.machine_price
    if machine is None:
        yield (
            f"{place} asks what the student costs, but evaluation.machine_price is missing. Add "
            "what an hour of the machine costs."
        )
    if asked.against != "teacher" or not teacher.is_hosted:
        return
    prices = [each.price for each in singles(teacher)]
    if None in prices:
        yield (
            f"{place} asks what the teacher costs, but teacher.price is missing. Add the "
            "endpoint's prices per million tokens."
        )
    elif other := {p.currency for p in prices if p and machine} - {machine and machine.currency}:
        yield (
            f"{place} compares costs, but teacher.price is in {min(other)} and "
            f"evaluation.machine_price in {machine and machine.currency}. Give both in one "
            "currency."
        )
