"""Ask an endpoint what can be known of it before anything is paid for."""

import datetime
import json
from collections.abc import Iterator
from typing import Any

import yarl

from distillery.teacher.http.batch.formats import batch_endpoint, batch_format
from distillery.teacher.http.connection import Connection
from distillery.teacher.http.endpoint import Endpoint
from distillery.teacher.http.replies import (
    FatalReply,
    PassingFault,
    RateLimited,
    RefusedRequest,
    Reply,
    check_status,
)
from schemas.errors import RecipeError, TeacherError
from schemas.task import JsonFormat, TaskSpec
from schemas.teacher import OpenAITeacher

_TIMEOUT_S = 10.0
_LISTING_BYTES = 16 * 2**20
_NO_SUCH_ROUTE = (404, 405, 501)
_STRICT_PROVIDERS = ("openai", "azure")
# They list what could be deployed, or a file, and not the names that requests may give.
_LIST_OTHER_NAMES = ("azure", "llama.cpp")
_MOST_NAMED = 5


def check_endpoint(teacher: OpenAITeacher, task: TaskSpec) -> list[str]:
    """Return warnings about an endpoint that can be asked; GETs its list of models, no more.

    With `teacher.batch` the list of its batches, too.

    An endpoint without such a list is asked nothing else. Its warnings: the model's end is
    announced, the list cannot be read now, or the response schema is looser than OpenAI's strict
    mode allows, where the provider may not mind.

    Raises:
        RecipeError: The key is not where the recipe says, the address cannot be used, the
            endpoint does not know the model, or the provider is OpenAI or Azure and would refuse
            the response schema.
        TeacherError: Nobody answers, or the endpoint refuses the key.
    """
    endpoint = Endpoint(teacher)
    warnings = [*_check_strictness(teacher, task), *_check_model(endpoint)]
    return [*warnings, *_check_batches(teacher)] if teacher.batch else warnings


def shutdown_date(teacher: OpenAITeacher) -> datetime.date | None:
    """Return when the endpoint takes the model down, by its list of models; None: it says nothing.

    Raises:
        RecipeError: The key is not where the recipe says, or the address cannot be used.
        TeacherError: Nobody answers.
    """
    endpoint = Endpoint(teacher)
    with Connection(endpoint, name="teacher-check") as connection:
        reply = _get(connection, endpoint.route("models"))
    listed = _listed(reply) if reply.status == 200 else {}
    found = next((listed[name] for name in _names(teacher.model) if name in listed), {})
    return _date(found.get("shutdown_date"))


def _check_model(endpoint: Endpoint) -> list[str]:
    teacher = endpoint.spec
    with Connection(endpoint, name="teacher-check") as connection:
        reply = _get(connection, endpoint.route("models"))
        if reply.status in _NO_SUCH_ROUTE:
            return []
        try:
            check_status(reply)
        except (FatalReply, PassingFault, RateLimited, RefusedRequest) as error:
            if isinstance(error, FatalReply) and error.status != 403:  # keys may be for asking only
                raise endpoint.fatal(error) from None
            return [
                f"endpoint '{endpoint}' does not list its models "
                f"({endpoint.redact(str(error))!r}), so teacher.model {teacher.model!r} is "
                "unchecked until it is first asked."
            ]
        listed = _listed(reply)
        found = next((listed[name] for name in _names(teacher.model) if name in listed), None)
        if found is not None:
            return _shutdown_warning(teacher, found.get("shutdown_date"))
        if not listed or _is_of(teacher, _LIST_OTHER_NAMES):
            return []
        # An alias may be known without being listed.
        if _get(connection, endpoint.route(f"models/{teacher.model}")).status == 200:
            return []
    shown = ", ".join(repr(endpoint.redact(name)) for name in sorted(listed)[:_MOST_NAMED])
    more = f" and {len(listed) - _MOST_NAMED} more" if len(listed) > _MOST_NAMED else ""
    raise RecipeError(
        f"endpoint '{endpoint}' does not know teacher.model {teacher.model!r}; it lists "
        f"{shown}{more}. Correct teacher.model."
    )


def _check_batches(teacher: OpenAITeacher) -> list[str]:
    """Return warnings about the provider's batches, by what it says of the newest one."""
    endpoint = batch_endpoint(teacher)
    with Connection(endpoint, name="teacher-check") as connection:
        listing = batch_format(endpoint, connection).listing
        reply = _get(connection, endpoint.route(listing).update_query(limit=1))
    if reply.status in _NO_SUCH_ROUTE:
        raise RecipeError(
            f"endpoint '{endpoint}' takes no batches (status {reply.status} for {listing!r}). Set "
            "teacher.batch to false, or correct teacher.base_url."
        )
    try:
        check_status(reply)
    except FatalReply as error:
        raise endpoint.fatal(error) from None
    except (PassingFault, RateLimited, RefusedRequest) as error:
        said = endpoint.redact(str(error))
        return [f"endpoint '{endpoint}' does not list its batches now ({said!r})."]
    return []


def _get(connection: Connection, url: yarl.URL) -> Reply:
    asking = connection.exchange(url, None, timeout_s=_TIMEOUT_S, most_bytes=_LISTING_BYTES)
    try:
        return connection.run(asking).result()
    except PassingFault as error:
        raise TeacherError(
            f"endpoint '{connection.endpoint}' does not answer ({error}). Start it, or correct "
            "teacher.base_url."
        ) from None


def _listed(reply: Reply) -> dict[str, dict[str, Any]]:
    """Return the models of a listing by name; none for a body that is not one."""
    try:
        return {model["id"]: model for model in json.loads(reply.content)["data"]}
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}


def _names(model: str) -> tuple[str, ...]:
    """Return the ways in which servers list ``model``: Ollama with a tag, Gemini with a path."""
    return model, f"{model}:latest", f"models/{model}"


def _shutdown_warning(teacher: OpenAITeacher, announced: object) -> list[str]:
    """Return a warning when OpenAI's `shutdown_date` of the model is set."""
    ends = _date(announced)
    if ends is None:
        return []
    tense = "ends" if ends >= datetime.datetime.now(datetime.UTC).date() else "ended"
    return [f"teacher.model {teacher.model!r} {tense} on {ends} according to its endpoint."]


def _date(announced: object) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(str(announced))
    except ValueError:
        return None


def _check_strictness(teacher: OpenAITeacher, task: TaskSpec) -> list[str]:
    """Return a warning, or raise, when strict mode would refuse the response schema.

    Source: OpenAI's guide to structured outputs, "Supported schemas".
    """
    answer_format = task.answer_format
    if not isinstance(answer_format, JsonFormat) or teacher.structured_output != "json_schema":
        return []
    schema = answer_format.json_schema
    loose = list(_loose_objects(schema, "$"))
    if schema.get("type") != "object":
        loose = ["$ is not of type object", *loose]
    if not loose:
        return []
    said = (
        f"task.answer_format.json_schema is not strict ({loose[0]}), which OpenAI refuses. Make "
        "additionalProperties false and all properties required in every object, or set "
        "teacher.structured_output to json_object."
    )
    if _is_of(teacher, _STRICT_PROVIDERS):
        raise RecipeError(said)
    return [f"{said} Ignore this where {teacher.provider!r} takes such schemas."]


def _loose_objects(schema: Any, path: str) -> Iterator[str]:
    """Yield what strict mode would refuse in a schema, with its place."""
    if isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from _loose_objects(part, f"{path}[{number}]")
    if not isinstance(schema, dict):
        return
    properties = schema.get("properties")
    if schema.get("type") == "object" or isinstance(properties, dict):
        if schema.get("additionalProperties") is not False:
            yield f"{path}.additionalProperties is not false"
        for name in sorted(set(properties or {}) - set(schema.get("required", []))):
            yield f"{path}.properties.{name} is not required"
    for name in ("items", "anyOf", "allOf", "oneOf", "prefixItems"):
        yield from _loose_objects(schema.get(name), f"{path}.{name}")
    for name in ("properties", "$defs", "definitions"):
        for key, part in (schema.get(name) or {}).items():
            yield from _loose_objects(part, f"{path}.{name}.{key}")


def _is_of(teacher: OpenAITeacher, providers: tuple[str, ...]) -> bool:
    return any(name in teacher.provider.lower() for name in providers)
