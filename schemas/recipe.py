"""The recipe: the parameters of a flow, section by section, as one YAML file.

A recipe is validated as a whole, so that one run of the command shows all its errors.
"""

import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from schemas.base import Spec, nearest, unknown_key_message
from schemas.data import DataSpec
from schemas.errors import RecipeError
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.export import ExportSpec
from schemas.filters import FilterSpec
from schemas.gate import GateSpec
from schemas.panel import AnyTeacher
from schemas.student import StudentSpec
from schemas.task import TaskSpec
from schemas.training import TrainingSpec

RecipeT = TypeVar("RecipeT", bound=BaseModel)

# What pydantic wants, in words, by the start of its error type.
_WANTED = {
    "string_type": "text. Put it in quotes: YAML reads yes, no, dates and digits as something else",
    "int_": "a whole number",
    "float_": "a number",
    "finite_": "a finite number",
    "bool_": "true or false",
    "tuple_": "a list",
    "list_": "a list",
    "dict_": "a section of keys and values",
    "model_": "a section of keys and values",
}

# Fields into which people paste the key itself; it must not reach a log.
_SECRETS = ("api_key_env", "api_key_secret")


class TeacherTrainingRecipe(Spec):
    """Parameters of the flow `train_teacher`: a model is trained on the gold rows."""

    task: TaskSpec
    data: DataSpec
    student: StudentSpec
    training: TrainingSpec = TrainingSpec()
    store: StoreSpec = StoreSpec()
    execution: ExecutionSpec = ExecutionSpec()
    output: str = Field(min_length=1)
    """Local folder for the trained model; a later recipe names it as `teacher.model`."""


class GenerationRecipe(Spec):
    """Parameters of the flow `answer_prompts`.

    It reads task, data, teacher, filters.prompts, store and execution. A recipe of the whole spine
    is one too: its other sections are checked and not read.
    """

    task: TaskSpec
    data: DataSpec
    teacher: AnyTeacher
    student: StudentSpec | None = None
    filters: FilterSpec = FilterSpec()
    training: TrainingSpec = TrainingSpec()
    export: ExportSpec = ExportSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    gate: GateSpec = GateSpec()
    store: StoreSpec = StoreSpec()
    execution: ExecutionSpec = ExecutionSpec()


class Recipe(GenerationRecipe):
    """Parameters of the spine flow `distill_student`."""

    student: StudentSpec

    def parameters(self) -> dict[str, Any]:
        """Return the sections by name, as the spine flow takes them."""
        return {name: getattr(self, name) for name in type(self).model_fields}


def load_recipe(path: str | Path, overrides: Sequence[str], kind: type[RecipeT]) -> RecipeT:
    """Return the recipe at ``path`` with ``section.key=value`` overrides merged into it deeply.

    Values of overrides are YAML, so ``training.epochs=3`` is a number and
    ``execution.force=[train_student]`` a list.

    Raises:
        RecipeError: The file cannot be read or parsed, or the recipe does not validate; all
            errors at once, each with its place.
    """
    try:
        raw = yaml.load(Path(path).read_bytes(), _UniqueKeyLoader)
    except OSError as error:
        raise RecipeError(
            f"recipe {str(path)!r} cannot be read: {error.strerror}. Name a YAML file, such as "
            "recipes/demo.yaml."
        ) from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise RecipeError(f"recipe {str(path)!r} is not YAML: {error}. Correct it.") from None
    if not isinstance(raw, dict):
        raise RecipeError(
            f"recipe {str(path)!r} holds {type(raw).__name__}, not sections. Start from "
            "recipes/demo.yaml."
        )
    for override in overrides:
        raw = _merge(raw, _parse_override(override))
    return validate_recipe(raw, kind, source=str(path))


def validate_recipe(raw: Mapping[str, Any], kind: type[RecipeT], *, source: str) -> RecipeT:
    """Return ``raw`` as a recipe, or raise one RecipeError that lists everything wrong with it."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        found = error.errors()
        lines = [_error_line(item, kind) for item in found if not _is_consequence(item, found)]
        count = "1 error" if len(lines) == 1 else f"{len(lines)} errors"
        raise RecipeError(
            f"recipe {source!r} has {count}:\n" + "\n".join(lines) + "\n"
            "Correct them; recipes/recipe.schema.json describes every field."
        ) from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that occurs twice in one section; YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} occurs twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse_override(override: str) -> dict[str, Any]:
    """Return ``a.b=1`` as ``{"a": {"b": 1}}``."""
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise RecipeError(
            f"override {override!r} is not of the form section.key=value. Write for example "
            "training.epochs=3."
        )
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(
            f"the value of override {override!r} is not YAML. Quote it, such as "
            "data.prompt_template='\"{text}\"'."
        ) from None
    for key in reversed(keys):
        value = {key: value}
    nested: dict[str, Any] = value
    return nested


def _merge(base: Any, change: Any) -> Any:
    """Return ``base`` with the mapping ``change`` laid over it, key by key at every depth.

    A section of another kind takes the place of the old one, whose fields are not its own.

    >>> _merge({"kind": "lora", "r": 8}, {"kind": "full"}), _merge({"r": 8}, {"alpha": 4})
    ({'kind': 'full'}, {'r': 8, 'alpha': 4})
    """
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    if change.get("kind", base.get("kind")) != base.get("kind"):
        return change if "kind" in base else {**base, **change}
    return {**base, **{key: _merge(base.get(key), value) for key, value in change.items()}}


def _is_consequence(item: Any, found: Sequence[Any]) -> bool:
    """Return whether a list only seems too short, as its bad items were not counted."""
    depth = len(item["loc"])
    return item["type"] == "too_short" and any(
        other["loc"][:depth] == item["loc"] and len(other["loc"]) > depth for other in found
    )


def _error_line(item: Any, kind: type[BaseModel]) -> str:
    """Return one pydantic error in this project's words, after its place in the recipe."""
    place, field, description = _locate(item["loc"], kind)
    return f"  {place}: {_sentence(item, field, description)}"


def _sentence(item: Any, field: Any, description: str) -> str:
    value = "***" if item["loc"] and item["loc"][-1] in _SECRETS else _short(item["input"])
    wanted = next((text for start, text in _WANTED.items() if item["type"].startswith(start)), None)
    match item["type"]:
        case "missing":
            return f"is missing. Add it{': ' + description if description else '.'}"
        case "extra_forbidden":
            return unknown_key_message(str(item["loc"][-1]), sorted(_fields(field)))
        case "union_tag_invalid":
            return _not_among(item["ctx"]["tag"], _kinds(field), "kind")
        case "union_tag_not_found":
            return f"has no kind. Add 'kind:' with one of {', '.join(_kinds(field))}."
        case "literal_error" | "enum":
            return _not_among(item["input"], item["ctx"]["expected"].replace("'", "").split(", "))
        case "too_short":
            return "needs at least {min_length} items, not {actual_length}.".format(**item["ctx"])
        case "string_pattern_mismatch":
            return f"{value} does not match {item['ctx']['pattern']!r}. {description}"
        case "value_error":
            return str(item["msg"]).removeprefix("Value error, ")
    if item["input"] in _kinds(field):
        return f"is {value}, but has to be a section. Write {{kind: {item['input']}}}."
    if wanted:
        return f"is {value}, but has to be {wanted}."
    if item["msg"].startswith("Input should be "):
        return f"is {value}, but has to be {item['msg'].removeprefix('Input should be ')}."
    return f"is {value}: {item['msg']}."


def _not_among(value: Any, known: list[str], noun: str = "value") -> str:
    """Return the sentence that refuses ``value`` and names the nearest one of ``known``."""
    known = [name for item in known for name in item.split(" or ")]
    return f"there is no {noun} {value!r}.{nearest(str(value), known)} Known: {', '.join(known)}."


def _short(value: Any) -> str:
    if isinstance(value, dict | BaseModel):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list"
    return "empty" if value is None else f"{value!r:.80}"


def _locate(location: tuple[int | str, ...], kind: Any) -> tuple[str, Any, str]:
    """Return the dotted place, the type there, and what its field is described as.

    Pydantic's locations hold the chosen branch of every union; the recipe's place does not.
    """
    names: list[str] = []
    description = ""
    for part in location:
        options = _options(kind)
        if len(options) > 1 and isinstance(part, str):
            kind = next((option for option in options if _kind_of(option) == part), None)
            if kind or not any(map(_fields, options)):
                continue
        names.append(str(part))
        field = _fields(kind).get(part) if isinstance(part, str) else None
        description = " ".join((field.description or "").split()) if field else ""
        if field or isinstance(part, int):
            kind = field.annotation if field else next(iter(typing.get_args(options[0])), None)
        elif part != location[-1]:
            kind = None
    return ".".join(names) or "the recipe", kind, description


def _options(kind: Any) -> list[Any]:
    """Return the alternatives of a type, None left out; of any other type itself."""
    if typing.get_origin(kind) is typing.Annotated:
        return _options(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [option for arm in typing.get_args(kind) for option in _options(arm)]
    return [] if kind is types.NoneType else [kind]


def _fields(kind: Any) -> dict[str, Any]:
    """Return the fields of a section, or of the one section among the options of ``kind``."""
    return next(
        (option.model_fields for option in _options(kind) if hasattr(option, "model_fields")), {}
    )


def _kind_of(option: Any) -> str | None:
    field = getattr(option, "model_fields", {}).get("kind")
    return field.default if field else None


def _kinds(kind: Any) -> list[str]:
    return [name for name in map(_kind_of, _options(kind)) if name]
