"""The wire: what an OpenAI-compatible chat endpoint is sent, and what its completions mean.

Source: OpenAI's API reference for `POST /v1/chat/completions`, which vLLM, Ollama, llama.cpp and
the providers follow.
"""

import dataclasses
import json
from typing import Any

from distillery.data.chat import Message
from distillery.teacher.http.replies import PassingFault, Reply, check_status, error_of, raise_for
from distillery.teacher.protocol import Request, Response, read_response
from schemas.teacher import OpenAITeacher

# The server gave up: OpenRouter, vLLM and SGLang, DeepSeek.
_GAVE_UP = ("error", "abort", "cancelled", "insufficient_system_resource")


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
    if request.with_log_probability:
        body["logprobs"] = True
    if request.is_streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    body |= spec.extra_body
    return {name: value for name, value in body.items() if value is not None}


def read_reply(reply: Reply, request: Request) -> Response:
    """Return the response to ``request`` that a whole reply holds.

    Raises:
        PassingFault, RateLimited, RefusedRequest, FatalReply: It holds none; see `replies.py`.
    """
    check_status(reply)
    try:
        body = json.loads(reply.content)
        if body.get("error") and not body.get("choices"):
            _raise_error(reply, body["error"])
        usage = body.get("usage") or {}
        counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        facts: dict[str, Any] = {
            "prompt_tokens": counts[0],
            "completion_tokens": counts[1],
            "model_reported": _text(body.get("model")),
        }
        if body["choices"] == [] and "prompt_filter_results" in body:  # Azure
            error = "the prompt was stopped by the content filter"
            return Response(request, "refused", "", error=error, **facts)
        details = usage.get("completion_tokens_details") or {}
        hidden = "" if _count(details.get("reasoning_tokens")) else None
        return _read_choice(request, body["choices"][0], facts, hidden)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        message = f"a body that is not a chat completion: {error_of(reply.text).message}"
        raise PassingFault(message, status=200) from None


def _raise_error(reply: Reply, error: Any) -> None:
    """Raise what an error in a body with status 200 means."""
    code = str(error.get("code", "")) if isinstance(error, dict) else ""
    said = error_of(reply.text)
    if code.isdecimal() and 400 <= int(code) < 600:
        raise_for(int(code), reply.headers, said)
    raise PassingFault(f"a body that is not a chat completion: {said.message}", status=200)


def _read_choice(
    request: Request, choice: dict[str, Any], facts: dict[str, Any], hidden: str | None
) -> Response:
    """Return the response; ``hidden`` are its thoughts where it does not show them."""
    message, reason = choice["message"], _text(choice.get("finish_reason"))
    content, declined = message.get("content"), message.get("refusal")
    if not (content is None or isinstance(content, str)):
        raise TypeError
    thoughts = message.get("reasoning_content") or message.get("reasoning") or hidden
    facts["mean_log_probability"] = _mean_log_probability(choice)
    response = read_response(request, content or "", reason, reasoning=_text(thoughts), **facts)
    if reason in _GAVE_UP:
        spent = (response.prompt_tokens or 0, response.completion_tokens or 0)
        raise PassingFault(f"broken off with finish_reason {reason!r}", status=200, tokens=spent)
    if reason == "content_filter":
        error = "stopped by the content filter"
    elif declined and not response.text:  # how OpenAI's models decline to keep to a schema
        error = f"declined: {error_of(str(declined)).message}"
    else:
        return response
    return dataclasses.replace(response, state="refused", text="", error=error)


def _mean_log_probability(choice: dict[str, Any]) -> float | None:
    """Return the mean log-probability of a choice's tokens, nats; None where it does not say.

    >>> tokens = [{"token": "re", "logprob": -0.5}, {"token": "fund", "logprob": -0.25}]
    >>> _mean_log_probability({"logprobs": {"content": tokens}})
    -0.375
    >>> _mean_log_probability({"logprobs": None})
    """
    tokens = (choice.get("logprobs") or {}).get("content") or []
    found = [float(token["logprob"]) for token in tokens]
    return sum(found) / len(found) if found else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _count(value: Any) -> int | None:
    """Return a number of tokens; None for anything else, such as -1."""
    return value if type(value) is int and value >= 0 else None
