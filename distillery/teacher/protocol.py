"""What a teacher is asked, what it answers, and what tells one teacher from another."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from distillery.data.chat import Message
from distillery.storage.fingerprint import model_identity, sha256
from distillery.task_types.thoughts import split_thoughts
from schemas.panel import AnyTeacher
from schemas.task import JsonFormat, TaskSpec
from schemas.teacher import TeacherSpec

State = Literal["ok", "empty", "truncated", "malformed", "refused", "failed"]
"""What became of a request:

    ok         answered
    empty      answered without text, three times
    truncated  cut at max_new_tokens
    malformed  breaks the response schema, also after one repair
    refused    the endpoint declines this request for good: 400, content filter
    failed     no answer in all attempts; asked again by the next run
"""

_CUT = ("length", "max_tokens")

NO_TEXT: tuple[State, ...] = ("refused", "failed")
"""States of a request that was not answered at all."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a teacher samples; the fields of the same name of the teacher's spec."""

    max_new_tokens: int
    sampling_temperature: float
    top_p: float
    seed: int

    @classmethod
    def of(cls, spec: TeacherSpec) -> Self:
        """Return the sampling part of a teacher's spec; greedy decoding draws nothing."""
        if spec.sampling_temperature == 0:
            return cls(spec.max_new_tokens, 0.0, 1.0, 0)
        return cls(spec.max_new_tokens, spec.sampling_temperature, spec.top_p, spec.seed)


@dataclasses.dataclass(frozen=True)
class ResponseSchema:
    """What a response has to look like, and how the teacher is asked for it."""

    json_schema: str
    """JSON schema (draft 2020-12) as JSON text, its properties in the recipe's order: endpoints
    that keep to a schema write them in that order, so it is part of what is asked."""

    mode: Literal["validate", "json_object", "json_schema"]
    """`teacher.structured_output`: what the endpoint is asked for."""

    @classmethod
    def of(cls, teacher: TeacherSpec, task: TaskSpec) -> Self | None:
        """Return the schema that responses of ``teacher`` keep to; None when there is none."""
        if teacher.structured_output == "off" or not isinstance(task.answer_format, JsonFormat):
            return None
        text = json.dumps(
            task.answer_format.json_schema,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )
        return cls(text, teacher.structured_output)


@dataclasses.dataclass(frozen=True)
class Request:
    """One conversation for the teacher to answer. Make one with :func:`make_request`."""

    messages: list[Message]
    sampling: Sampling
    request_hash: str
    """Hash of teacher, messages, sampling, response schema and sample index; the key in the
    ledger. `max_new_tokens` is not in it: a longer limit asks again only for what was cut."""

    response_schema: ResponseSchema | None = None

    sample_index: int = 0
    """Which of several responses to the same messages this is."""

    prompt_id: str = ""
    """The prompt, for messages to people; no part of the hash."""

    with_log_probability: bool = False
    """Whether the response has to say how probable its teacher held it. Part of the hash where it
    is true: a response that does not say so is no answer to this request."""

    is_suspect: bool = False
    """Whether it failed in an earlier run, which answered others; no part of the hash."""

    was_cut: bool = False
    """Whether the ledger has a response that a lower limit cut; no part of the hash."""

    is_streamed: bool = False
    """Whether an endpoint sends the response piece by piece, which tells when its first token
    comes; no part of the hash."""

    @property
    def num_chars(self) -> int:
        """Return the length of its messages."""
        return sum(len(message["content"]) for message in self.messages)


@dataclasses.dataclass(frozen=True)
class Response:
    """A response in its final state, or a request that got none in all its attempts."""

    request: Request
    state: State
    text: str
    """The response without the thoughts before it; empty when refused or failed."""

    reasoning: str | None = None
    """The thoughts that the teacher wrote before it; empty when they are not shown."""

    finish_reason: str | None = None
    """Why the teacher stopped, in its own word."""

    prompt_tokens: int | None = None
    """Tokens read for this response; None when the endpoint does not say."""

    completion_tokens: int | None = None
    """Tokens written for it; None when the endpoint does not say."""

    model_reported: str | None = None
    """The model's name according to the endpoint."""

    latency_s: float = 0.0
    """Seconds from the last sending to the response; for a local model those of its batch."""

    first_token_s: float | None = None
    """Seconds from the last sending to the first token. None: the response was not streamed."""

    mean_log_probability: float | None = None
    """Mean log-probability of its tokens by the teacher's own account, nats. None: unknown."""

    attempts: int = 1
    """Attempts that it took in this run."""

    repaired: bool = False
    """Whether it is the answer to a request to repair the first one."""

    billed_prompt_tokens: int = 0
    """Tokens read over all attempts, as far as the endpoint says; with an estimate where it
    answered but does not."""

    billed_completion_tokens: int = 0
    """Tokens written over all attempts; likewise."""

    error: str | None = None
    """Why it was refused or failed, or what breaks the schema."""


OnResponse = Callable[[Response], "Future[None]"]
"""Takes a response over. The future is done when it is kept for good."""


def kept() -> "Future[None]":
    """Return the future of a response that nobody has to wait for."""
    future: Future[None] = Future()
    future.set_result(None)
    return future


@dataclasses.dataclass(frozen=True)
class BatchActivity:
    """What the batches of this process have come to, as their provider counts."""

    num_batches: int
    """Batches that are submitted and not read."""

    num_requests: int
    """Requests in them."""

    completed: int
    """Those of them that are answered."""

    failed: int
    """Those that brought an error."""

    status: str
    """In the provider's words, such as `in_progress`; of several batches the oldest one's."""


@dataclasses.dataclass(frozen=True)
class Activity:
    """What a teacher is doing at this moment, for people who watch."""

    in_flight: int = 0
    """Requests sent and not answered."""

    limit: int = 0
    """Most requests in flight that it allows itself now."""

    requests_per_minute: float | None = None
    """The pace it keeps to. None: as fast as answers come."""

    rate_limited: int = 0
    """429s so far."""

    retries: int = 0
    """Attempts after the first so far."""

    batches: BatchActivity | None = None
    """Where requests go in batches: how far those are. None: each goes by itself."""

    note: str | None = None
    """What it does before it can be asked. None: it can be."""


class Teacher(Protocol):
    """Who answers requests."""

    @property
    def activity(self) -> Activity:
        """Return what it is doing at this moment; safe to call from any thread."""

    def answer(self, requests: Sequence[Request], on_response: OnResponse) -> None:
        """Send all requests and pass on each response, failed ones too.

        ``on_response`` is called from one thread at a time, in no particular order. When it, or
        the future that it returns, raises, nothing more is asked and the error is raised here.

        Raises:
            RecipeError: The teacher cannot be used as the recipe describes it.
            TeacherError: The teacher cannot answer anything, so going on is of no use. Responses
                handed over before are valid.
            BudgetError: What is in flight has been answered, and a cap keeps the rest from being
                asked.
        """

    def close(self) -> None:
        """Let go of connections; a model that is loaded stays for the next one to ask."""


def make_request(
    identity: dict[str, Any],
    messages: list[Message],
    sampling: Sampling,
    *,
    response_schema: ResponseSchema | None = None,
    sample_index: int = 0,
    prompt_id: str = "",
    with_log_probability: bool = False,
) -> Request:
    """Return the request for ``messages`` to the teacher of ``identity``, with its hash."""
    request = Request(
        messages, sampling, "", response_schema, sample_index, prompt_id, with_log_probability
    )
    request_hash = sha256({"teacher": identity, **request_body(request)})
    return dataclasses.replace(request, request_hash=request_hash)


def request_body(request: Request) -> dict[str, Any]:
    """Return the part of a request that is hashed beside the teacher's identity."""
    sampled = dataclasses.asdict(request.sampling)
    del sampled["max_new_tokens"]
    schema = request.response_schema
    return {
        "messages": request.messages,
        "sampling": sampled,
        "response_schema": schema and dataclasses.asdict(schema),
        "sample_index": request.sample_index,
        **({"with_log_probability": True} if request.with_log_probability else {}),
    }


def read_response(
    request: Request,
    text: str,
    finish_reason: str | None,
    *,
    reasoning: str | None = None,
    **facts: Any,
) -> Response:
    r"""Return the response that a teacher has written, apart from its thoughts.

    Args:
        request: What was asked.
        text: What was written.
        finish_reason: Why the teacher stopped, in its own word.
        reasoning: Thoughts that the teacher shows apart from ``text``.
        facts: Further fields of the response.

    >>> request = make_request({}, [], Sampling(8, 0.0, 1.0, 0))
    >>> read = read_response(request, "<think>Money?</think>\n\nrefund", "stop")
    >>> read.state, read.text, read.reasoning
    ('ok', 'refund', 'Money?')
    >>> read_response(request, "<think>Money", "length").state
    'truncated'
    >>> read_response(request, " ", "stop").state
    'empty'
    """
    thoughts: str | None
    thoughts, text = split_thoughts(text)
    text = text.strip()
    state: State = "ok" if text else "empty"
    if finish_reason in _CUT:
        state = "truncated"
    thoughts = reasoning or thoughts or reasoning
    return Response(request, state, text, thoughts, finish_reason=finish_reason, **facts)


def teacher_identity(spec: AnyTeacher) -> dict[str, Any]:
    """Return what tells a teacher's responses from another's, as plain JSON; loads no model.

    Weights and precision, or who serves what under which name. Never a host, port, batch size or
    device: the same model served elsewhere gives the same responses.

    Raises:
        RecipeError: A local teacher is neither a folder with a model nor a pinned hub id.
    """
    if spec.is_panel:
        return {
            "kind": spec.kind,
            "policy": spec.policy.kind,
            "teachers": [[name, teacher_identity(each)] for name, each in spec.everyone.items()],
        }
    if spec.is_hosted:
        return {
            "kind": spec.kind,
            "provider": spec.provider,
            "model": spec.model,
            "weights": spec.weights,
            **({"extra_body": spec.extra_body} if spec.extra_body else {}),
        }
    weights = _model_identity(spec.model, spec.revision, _folder_state(spec.model))
    identity = {"kind": spec.kind, "weights": weights, "dtype": spec.dtype}
    settings: dict[str, Any] = {"template": spec.chat_template_kwargs}
    if spec.is_served:
        settings |= {"quantization": spec.quantization, "extra_body": spec.extra_body}
        settings["extra_args"] = [*spec.extra_args]
    return identity | {name: value for name, value in settings.items() if value}


@functools.lru_cache(maxsize=32)
def _model_identity(model: str, revision: str | None, _state: tuple[object, ...]) -> str:
    """Return the model's identity, hashed again only when its folder has changed."""
    return model_identity(model, revision, role="teacher")


def _folder_state(model: str) -> tuple[object, ...]:
    """Return name, size and time of the files of a local folder; nothing for a hub model.

    Every chunk asks for the identity, and gigabytes of weights take a while to hash.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return ()
    stats = sorted((file.name, file.stat()) for file in folder.iterdir() if file.is_file())
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
