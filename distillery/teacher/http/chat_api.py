"""The wire: what an OpenAI-compatible chat endpoint is sent, and what its replies mean.

    this run       401, 402, 403, 404, 3xx                 FatalReply: the run ends
    this request   400, 413, 422, stopped by a filter      Completion 'refused'
    its pace       429                                     RateLimited: waits, costs no attempt
    passing        408, 409, 425, 5xx, broken bodies       PassingFault: asked again

Source: OpenAI's API reference for `POST /v1/chat/completions`, which vLLM, Ollama, llama.cpp and
the providers follow.
"""

import contextlib
import dataclasses
import email.utils
import json
import time
from typing import Any

from distillery.teacher.protocol import Message, Request, State, response_state
from schemas.teacher import OpenAITeacher

_REFUSED_REQUEST = (400, 413, 422)
_PASSING = (408, 409, 425)
_RATE_LIMITED = 429
OVERLOADED = (503, 529)
_QUOTED_CHARS = 300
_MOST_TOKENS = 2**40  # of one response; ledger and budget add them up


class PassingFault(Exception):
    """This attempt failed; the next one may not."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class RateLimited(Exception):
    """The endpoint wants fewer requests."""

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class FatalReply(Exception):
    """No further attempt, and no other request, can meet anything else."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the endpoint made of one request."""

    state: State
    """ok, empty, truncated or refused."""

    text: str = ""
    """The response, stripped."""

    finish_reason: str | None = None
    """Why it stopped, in its own word."""

    prompt_tokens: int | None = None
    """Tokens read; None when it does not say."""

    completion_tokens: int | None = None
    """Tokens written; None when it does not say."""

    model: str | None = None
    """The model's name according to the endpoint."""

    error: str | None = None
    """Why it refused."""


def request_json(spec: OpenAITeacher, request: Request, messages: list[Message]) -> dict[str, Any]:
    """Return the body that asks for a response to ``messages`` as ``request`` says.

    Nucleus and seed are sent when something is drawn only: some endpoints refuse them. A null in
    `extra_body` leaves a field out.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": spec.model,
        "messages": messages,
        spec.max_tokens_field: sampling.max_new_tokens,
        "temperature": sampling.sampling_temperature,
    }
    if sampling.sampling_temperature > 0:
        body |= {"top_p": sampling.top_p, "seed": sampling.seed + request.sample_index}
    schema = request.response_schema
    if schema is not None and schema.mode == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif schema is not None and schema.mode == "json_schema":
        described = {"name": "response", "schema": json.loads(schema.json_schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": described}
    body |= spec.extra_body
    return {name: value for name, value in body.items() if value is not None}


def read_reply(status: int, retry_after: str | None, content: bytes) -> Completion:
    """Return what a whole reply means.

    Raises:
        PassingFault: Worth another attempt.
        RateLimited: Worth another attempt later.
        FatalReply: The run has to end.
    """
    text = content.decode("utf-8", "replace")
    if status == 200:
        return _read_completion(text)
    message = f"status {status}: {server_message(text)}"
    if status in _REFUSED_REQUEST:
        return Completion("refused", error=message)
    if status == _RATE_LIMITED:
        raise RateLimited(message, retry_after_s(retry_after))
    if status in _PASSING or status >= 500:
        raise PassingFault(message, status=status)
    raise FatalReply(message, status)


def _read_completion(text: str) -> Completion:
    """Return the completion that a body with status 200 holds."""
    try:
        body = json.loads(text)
        choice = _first_choice(body["choices"])
        content, declined = (choice["message"].get(name) for name in ("content", "refusal"))
        usage = body.get("usage") or {}
        if not (content is None or isinstance(content, str)):
            raise TypeError
        counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        reason, model = choice.get("finish_reason"), body.get("model")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        message = f"a body that is no chat completion: {server_message(text)}"
        raise PassingFault(message, status=200) from None
    answer = (content or "").strip()
    said = Completion(
        state=response_state(answer, reason),
        text=answer,
        finish_reason=None if reason is None else str(reason),
        prompt_tokens=counts[0],
        completion_tokens=counts[1],
        model=None if model is None else str(model),
    )
    if reason == "content_filter":
        error = "stopped by the content filter"
    elif declined and not answer:  # how OpenAI's models decline to keep to a schema
        error = f"declined: {server_message(str(declined))}"
    else:
        return said
    return dataclasses.replace(said, state="refused", text="", error=error)


def _count(value: Any) -> int | None:
    """Return a number of tokens; None for what is none, such as -1."""
    return value if type(value) is int and 0 <= value < _MOST_TOKENS else None


def _first_choice(choices: Any) -> dict[str, Any]:
    """Return the choice with index 0, wherever it stands."""
    numbered = {choice.get("index", place): choice for place, choice in enumerate(choices)}
    found: dict[str, Any] = numbered[min(numbered)]
    return found


def server_message(text: str) -> str:
    """Return what an error body says, cut short: its message when it has the usual shape.

    >>> server_message('{"error": {"message": "no such model"}}')
    'no such model'
    >>> server_message("<html>  busy </html>")
    '<html> busy </html>'
    """
    said = text
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        body = json.loads(text)
        error = body.get("error", body)
        said = str(error["message"] if isinstance(error, dict) else error)
    return " ".join(said[: 4 * _QUOTED_CHARS].split())[:_QUOTED_CHARS]


def retry_after_s(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for; it holds seconds or a date.

    >>> retry_after_s("1.5"), retry_after_s("soon"), retry_after_s(None)
    (1.5, None, None)
    """
    if header is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(header)
        return max(0.0, seconds) if seconds == seconds else None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    return None
