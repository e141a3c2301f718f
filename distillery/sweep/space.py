"""What trials vary: fields of a recipe, as the sampler sees them and as the recipe has them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, JsonValue

from distillery.storage.fingerprint import canonical_json
from schemas.base import nearest
from schemas.errors import RecipeError
from schemas.recipe import Recipe, validate_recipe
from schemas.sweep import ChoiceParameter, NumberParameter, Parameter, SweepRecipe, SweepSpec

VARIED = ("task", "teacher", "filters", "student", "training")
"""Sections whose fields trials may vary."""

_JUDGES = {
    "data": "trials on different rows are no comparison, and none may see the test rows",
    "evaluation": "students that are judged in different ways are no comparison",
    "gate": "the gate is for the winner alone",
    "export": "students are exported once the winner is known",
    "store": "all trials share one store",
    "execution": "it changes no result",
    "sweep": "it is what the sweep goes by",
    "task.type": "students of different tasks are no comparison",
    "task.answer_format": "students that are judged in different ways are no comparison",
}

Values = Mapping[str, JsonValue]
"""By field: what a trial varies."""


def distributions(sweep: SweepSpec) -> dict[str, Any]:
    """Return what the sampler draws from, by field.

    A choice travels as canonical JSON: it may be a whole section, which no database column holds.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    def of(parameter: Parameter) -> Any:
        if isinstance(parameter, ChoiceParameter):
            return CategoricalDistribution([canonical_json(each) for each in parameter.choices])
        if isinstance(parameter, NumberParameter):
            return FloatDistribution(parameter.low, parameter.high, log=parameter.log)
        return IntDistribution(
            parameter.low, parameter.high, log=parameter.log, step=parameter.step
        )

    return {parameter.field: of(parameter) for parameter in sweep.parameters}


def as_values(drawn: Mapping[str, Any], sweep: SweepSpec) -> dict[str, JsonValue]:
    """Return what the sampler drew as the recipe has it.

    >>> learning = {"kind": "choice", "field": "training.method", "choices": [{"kind": "full"}, 1]}
    >>> as_values({"training.method": '{"kind":"full"}'}, SweepSpec(parameters=[learning]))
    {'training.method': {'kind': 'full'}}
    """
    return {
        parameter.field: json.loads(drawn[parameter.field])
        if isinstance(parameter, ChoiceParameter)
        else drawn[parameter.field]
        for parameter in sweep.parameters
    }


def applied(recipe: SweepRecipe, values: Values) -> Recipe:
    """Return the recipe of a trial: ``recipe`` with ``values``, without its sweep.

    Raises:
        RecipeError: The values do not make a recipe.
    """
    raw = recipe.model_dump(mode="json", exclude={"sweep"})
    for place, value in values.items():
        *path, last = place.split(".")
        section = raw
        for name in path:
            section = section[name]
        section[last] = value
    return validate_recipe(raw, Recipe, source="of the sweep")


def edges(parameter: Parameter) -> tuple[JsonValue, ...]:
    """Return the values that show whether all of them are possible: every choice, both ends."""
    return tuple(_edges(parameter).values())


def _edges(parameter: Parameter) -> dict[str, JsonValue]:
    """Return the same by where they are written."""
    if isinstance(parameter, ChoiceParameter):
        return {f"choices.{n}": choice for n, choice in enumerate(parameter.choices)}
    return {"low": parameter.low, "high": parameter.high}


def space_problems(recipe: SweepRecipe) -> list[str]:
    """Return a line for everything that no trial could try."""
    sweep = recipe.sweep
    fields = [parameter.field for parameter in sweep.parameters]
    lines = [
        f"sweep.parameters varies {outer!r} and {inner!r}, which lies inside it: a choice of the "
        "first would undo the second. Write the second into the choices of the first."
        for outer in fields
        for inner in fields
        if inner.startswith(f"{outer}.")
    ]
    for number, parameter in enumerate(sweep.parameters):
        lines += _field_problems(recipe, parameter, f"sweep.parameters.{number}")
    return lines


def _field_problems(recipe: SweepRecipe, parameter: Parameter, place: str) -> Iterator[str]:
    field = parameter.field
    for judge, why in _JUDGES.items():
        if f"{field}.".startswith(f"{judge}.") or judge.startswith(f"{field}."):
            fixed = "" if field.startswith(judge) else f"it holds {judge!r}, and "
            others = ", ".join(VARIED)
            yield f"{place} varies {field!r}, but {fixed}{why}. Vary other fields of {others}."
            return
    if (unknown := _unknown(recipe, field)) is not None:
        yield f"{place} varies {field!r}, but {unknown}"
        return
    for where, value in _edges(parameter).items():
        try:
            made = applied(recipe, {field: value})
        except RecipeError as error:
            _, *said, _ = str(error).splitlines()
            written = f"{place}.{where} is {canonical_json(value)}"
            yield f"{written}, which {field!r} does not take:\n" + "\n".join(said)
            continue
        found = _at(made, field)
        if isinstance(parameter, NumberParameter) and not isinstance(found, float):
            yield (
                f"{place} varies {field!r} as a number, but it takes whole numbers or "
                "one of several values. Set its kind to integer or choice."
            )
            return
        if isinstance(found, bool) and not isinstance(value, bool):
            yield (
                f"{place} varies {field!r} from {value!r}, but it is true or false. Set "
                "its kind to choice, with choices: [true, false]."
            )
            return
        if not _holds(found, value):
            yield (
                f"{place}.{where} is {canonical_json(value)}, of which {field!r} would ignore a "
                "part. Leave out the keys that its kind does not have."
            )


def _unknown(recipe: SweepRecipe, field: str) -> str | None:
    """Return why the recipe has no such field; None: it has one."""
    found: Any = recipe
    names = field.split(".")
    for depth, name in enumerate(names):
        place = ".".join(names[:depth])
        if isinstance(found, list | tuple):
            return (
                f"{place} is a list, whose items are not varied by themselves. Vary all of "
                f"{place!r}, as a choice."
            )
        if not isinstance(found, BaseModel):
            what = "is not set" if found is None else "is not a section"
            return f"{place} {what}, so it has no field {name!r}. Write that section first."
        known = VARIED if depth == 0 else sorted(type(found).model_fields)
        if name not in known:
            where = place or "the recipe"
            return (
                f"{where} has no field {name!r}.{nearest(name, list(known))} Known: "
                f"{', '.join(known)}."
            )
        found = getattr(found, name)
    return None


def _at(recipe: Recipe, field: str) -> Any:
    """Return what stands at ``field``."""
    found: Any = recipe
    for name in field.split("."):
        found = getattr(found, name)
    return found


def _holds(found: Any, wanted: JsonValue) -> bool:
    """Return whether ``found`` has all that ``wanted`` says: sections drop keys of other kinds.

    >>> from schemas.training import FullMethod
    >>> _holds(FullMethod(), {"kind": "full"}), _holds(FullMethod(), {"kind": "full", "r": 8})
    (True, False)
    """
    if isinstance(found, BaseModel):
        found = found.model_dump(mode="json")
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(
            key in found and _holds(found[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(found, list | tuple)
            and len(found) == len(wanted)
            and all(map(_holds, found, wanted))
        )
    return bool(found == wanted)


def asks_by_trial(recipe: SweepRecipe) -> bool:
    """Return whether trials differ in who the teacher is or what it is asked."""
    fields = (parameter.field for parameter in recipe.sweep.parameters)
    return any(f"{field}.".startswith(("task.", "teacher.")) for field in fields)


def shared_recipes(recipe: SweepRecipe) -> list[Recipe]:
    """Return the recipes whose teacher's work all trials share, to be done once before them.

    One for each objective that is tried, as each may want other scores of the teacher. None where
    trials vary who the teacher is or what it is asked: each then asks for what it needs.
    """
    if asks_by_trial(recipe):
        return []
    by_field = {parameter.field: parameter for parameter in recipe.sweep.parameters}
    objectives = by_field.get("training.objective")
    if objectives is None:
        return [applied(recipe, {})]
    return [applied(recipe, {objectives.field: choice}) for choice in edges(objectives)]
