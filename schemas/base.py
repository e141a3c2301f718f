"""What every section of a recipe shares: frozen, documented, and strict about unknown keys."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo


class Spec(BaseModel):
    """A section of a recipe: frozen, refuses unknown keys, described by its field docstrings."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        # No setting is meant to be infinite, and canonical JSON could not hold it.
        allow_inf_nan=False,
    )


def _leave_open(schema: dict[str, Any]) -> None:
    schema.pop("additionalProperties")


class Branch(Spec):
    """One alternative of a union, told apart by ``kind``.

    The Prefect form keeps the fields of the alternative that was shown before, and refuses to
    submit when the JSON schema forbids them. So a branch drops the keys of its sibling branches,
    refuses every other unknown key when the flow starts, and leaves the JSON schema open.
    """

    model_config = ConfigDict(json_schema_extra=_leave_open)

    @model_validator(mode="before")
    @classmethod
    def _drop_keys_of_siblings(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        family = [base for base in cls.__mro__ if issubclass(base, Branch) and base is not Branch]
        theirs = {name for sibling in _below(family[-1]) for name in sibling.model_fields}
        return {k: v for k, v in value.items() if k in cls.model_fields or k not in theirs}


def _below(family: type[Branch]) -> Iterator[type[Branch]]:
    for branch in family.__subclasses__():
        yield branch
        yield from _below(branch)


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}. Correct it.") from None
    return pattern


RegularExpression = Annotated[str, AfterValidator(_compiles)]
"""Text that Python's `re` can compile."""


def unknown_key_message(key: str, known: list[str]) -> str:
    """Return the sentence that refuses ``key`` and names the nearest known key.

    >>> unknown_key_message("modle", ["kind", "model"])
    "there is no key 'modle' here. Did you mean 'model'? Known keys: kind, model."
    """
    return f"there is no key {key!r} here.{nearest(key, known)} Known keys: {', '.join(known)}."


def nearest(name: str, known: list[str]) -> str:
    """Return a question that names what of ``known`` is most like ``name``, or nothing.

    >>> nearest("refusl", ["refusal", "empty"])
    " Did you mean 'refusal'?"
    """
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_names(names: Sequence[str], place: str, *, taken: str, by: str) -> None:
    """Return when the teachers of a panel have names of their own.

    Args:
        names: Of the teachers.
        place: Of the panel in its section.
        taken: A name that reports give to somebody else.
        by: To whom.

    Raises:
        ValueError: Two are alike, or one is ``taken``.
    """
    if taken in names:
        raise ValueError(
            f"{place} names a teacher {taken!r}, which is what reports call {by}. Give it another "
            "name."
        )
    if len(set(names)) < len(names):
        raise ValueError(
            f"{place} names {list(names)!r}, two of them alike, so reports could not tell them "
            "apart. Give each teacher a name of its own."
        )


def runtime_field(default: Any, **constraints: Any) -> Any:
    """Return a pydantic field that cannot change a stage's result, so no fingerprint holds it.

    Concurrency, inference batch sizes, devices, prices: change them and everything is reused.
    """
    return Field(default, json_schema_extra={"changes_result": False}, **constraints)


def _is_versioned(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return not (isinstance(extra, dict) and extra.get("changes_result") is False)


def versioned(spec: Any) -> Any:
    """Return the part of ``spec`` that can change a result, as plain JSON types.

    Source: the fingerprint section of docs/architecture.md.
    """
    if isinstance(spec, BaseModel):
        fields = type(spec).model_fields
        return {k: versioned(getattr(spec, k)) for k, f in fields.items() if _is_versioned(f)}
    if isinstance(spec, dict):
        return {str(key): versioned(item) for key, item in spec.items()}
    if isinstance(spec, list | tuple):
        return [versioned(item) for item in spec]
    return spec


class Ref(BaseModel):
    """A frozen pointer to something in the store; what flows between stages."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    uri: str
    """Folder in the store, an fsspec URL or a path."""

    fingerprint: str
    """Fingerprint of the stage that made it."""
