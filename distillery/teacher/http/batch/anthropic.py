"""Anthropic's message batches: one body with all requests, one file of messages comes back.

Source: Anthropic's guide to batch processing
(https://platform.claude.com/docs/en/build-with-claude/batch-processing) and its API reference of
Message Batches, Messages, Errors and structured outputs: limits, result types, stop reasons.
"""

import dataclasses
import json
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import yarl

from distillery.data.chat import SYSTEM_SEPARATOR, Message
from distillery.ledger import SentBatch
from distillery.teacher.http.batch.base import (
    BatchFormat,
    BatchStatus,
    NotYetKnown,
    count,
    identifier,
    json_object,
)
from distillery.teacher.http.endpoint import Endpoint
from distillery.teacher.http.replies import PassingFault, error_of, raise_for
from distillery.teacher.protocol import Request, Response, read_response
from schemas.teacher import OpenAITeacher

_VERSION = "2023-06-01"
_PER_PAGE, _MOST_PAGES = 100, 50
_CLOCKS_S = 600.0  # how far the clock of this machine may be ahead

_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
}
"""Statuses of the types of errors; any other passes, as `api_error` and `overloaded_error` do."""

_CUT = ("max_tokens", "model_context_window_exceeded")


class AnthropicEndpoint(Endpoint):
    """Anthropic's own interface, which takes its key in a header of its own."""

    def __init__(self, spec: OpenAITeacher) -> None:
        super().__init__(spec)
        self.url = self.route(AnthropicBatches.listing)

    @property
    def headers(self) -> dict[str, str]:
        """Return what every request carries."""
        key = {"x-api-key": self.key} if self.key else {}
        return {"anthropic-version": _VERSION, **key}


class AnthropicBatches(BatchFormat):
    """Batches of Anthropic."""

    listing = "messages/batches"
    most_requests = 100_000
    most_bytes = 250_000_000
    opening, separator, closing = b'{"requests": [', b",\n", b"]}"

    def line(self, request: Request, messages: list[Message]) -> bytes:
        """Return one item of the list of requests."""
        params = message_params(self.spec, request, messages)
        return json.dumps({"custom_id": request.request_hash, "params": params}).encode()

    async def submit(self, batch: SentBatch, file: Path) -> str:
        """Return the id of a batch made of the requests in ``file``."""
        with file.open("rb") as body:
            payload = aiohttp.payload.BufferedReaderPayload(body, content_type="application/json")
            creating = self.connection.upload(
                self.endpoint.route(self.listing), payload, stall_s=self.spec.timeout_s
            )
            return identifier(json_object(await creating))

    async def find(self, batch: SentBatch, hashes: set[str], known: set[str]) -> str | None:
        """Return the id of the batch in whose results our requests are.

        A batch bears no mark of whoever made it, and tells which requests it holds only when it
        has ended. So the unknown ones of our size and time are waited for.
        """
        for one in await self._made_since(batch.sent_at - _CLOCKS_S):
            status = _status(one, yarl.URL())
            if one["id"] in known or status.total != batch.num_requests:
                continue
            if status.state == "running":
                raise NotYetKnown(f"batch {one['id']!r} may be it, and has not ended")
            if await self._holds(one, hashes):
                return str(one["id"])
        return None

    async def status(self, batch_id: str) -> BatchStatus:
        """Return how far it is."""
        found = await self.get(f"{self.listing}/{batch_id}")
        return _status(found, self._results(found))

    def read(self, entry: dict[str, Any], request: Request) -> Response:
        """Return the response in a line of the results."""
        result = entry.get("result")
        result = result if isinstance(result, dict) else {}
        match result.get("type"):
            case "succeeded":
                return read_message(result.get("message"), request)
            case "errored":
                error = error_of(json.dumps(result.get("error")))
                kind = next((word for word in error.code.split() if word in _STATUS), "")
                raise_for(_STATUS.get(kind, 500), {}, error)
        raise PassingFault(f"not answered: {result.get('type')}")

    async def _made_since(self, since_s: float) -> list[dict[str, Any]]:
        """Return the batches made since then, newest first."""
        made: list[dict[str, Any]] = []
        query: dict[str, str | int] = {"limit": _PER_PAGE}
        for _ in range(_MOST_PAGES):
            page = await self.get(self.listing, **query)
            found = [one for one in page.get("data") or [] if isinstance(one.get("id"), str)]
            young = [one for one in found if _created_s(one) >= since_s]
            made += young
            if len(young) < len(found) or not page.get("has_more") or not found:
                break
            query["after_id"] = found[-1]["id"]
        return made

    async def _holds(self, found: dict[str, Any], hashes: set[str]) -> bool:
        """Return whether one of ``hashes`` is in the results of a batch that has ended."""
        with tempfile.TemporaryFile() as file:
            await self.download(self._results(found), file)
            file.seek(0)
            return any(entry.get("custom_id") in hashes for entry in self.objects(file))

    def _results(self, found: dict[str, Any]) -> yarl.URL:
        """Return where the results are; a gateway that names another host is not followed there."""
        ours = self.endpoint.route(f"{self.listing}/{found['id']}/results")
        named = yarl.URL(str(found.get("results_url") or ours))
        return named if named.absolute and named.origin() == ours.origin() else ours


def message_params(
    spec: OpenAITeacher, request: Request, messages: list[Message]
) -> dict[str, Any]:
    """Return what Anthropic's Messages interface is asked for a response to ``messages``.

    All system turns become its `system`. It knows no seed, and refuses a nucleus beside a
    temperature unless nothing is cut. A null in `extra_body` leaves a field out.
    """
    sampling, schema = request.sampling, request.response_schema
    told = [message["content"] for message in messages if message["role"] == "system"]
    params: dict[str, Any] = {
        "model": spec.model,
        "max_tokens": sampling.max_new_tokens,
        "messages": [message for message in messages if message["role"] != "system"],
        "temperature": sampling.sampling_temperature,
    }
    if told:
        params["system"] = SYSTEM_SEPARATOR.join(told)
    if sampling.top_p < 1:
        params["top_p"] = sampling.top_p
    if schema is not None and schema.mode == "json_schema":
        described = {"type": "json_schema", "schema": json.loads(schema.json_schema)}
        params["output_config"] = {"format": described}
    params |= spec.extra_body
    return {name: value for name, value in params.items() if value is not None}


def read_message(message: Any, request: Request) -> Response:
    """Return the response that a message of Anthropic's holds.

    Raises:
        PassingFault: It is not a message.
    """
    try:
        blocks: list[dict[str, Any]] = message["content"]
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        thoughts = [b.get("thinking") or "" for b in blocks if b["type"].endswith("thinking")]
        usage, reason = message.get("usage") or {}, message.get("stop_reason")
        response = read_response(
            request,
            text,
            reason,
            reasoning="\n".join(thoughts) if thoughts else None,
            prompt_tokens=_tokens_read(usage),
            completion_tokens=usage.get("output_tokens"),
            model_reported=message.get("model"),
        )
    except (LookupError, TypeError, AttributeError):
        said = json.dumps(message)[:200]
        raise PassingFault(f"a result that is not a message: {said}", status=200) from None
    if reason == "refusal":
        return dataclasses.replace(response, state="refused", text="", error="declined")
    return dataclasses.replace(response, state="truncated") if reason in _CUT else response


def _tokens_read(usage: dict[str, Any]) -> int | None:
    """Return the tokens of a prompt, those from and for the cache too; None: it is not said."""
    if usage.get("input_tokens") is None:
        return None
    cached = ("cache_creation_input_tokens", "cache_read_input_tokens")
    return sum(count(usage.get(name)) for name in ("input_tokens", *cached))


def _status(found: dict[str, Any], results: yarl.URL) -> BatchStatus:
    """Return how far a batch is by what the listing, or it by itself, says."""
    word, counts = str(found.get("processing_status")), found.get("request_counts") or {}
    names = ("processing", "succeeded", "errored", "canceled", "expired")
    processing, succeeded, errored, canceled, expired = (count(counts.get(n)) for n in names)
    is_over = word == "ended"
    return BatchStatus(
        state=("cancelled" if canceled else "ended") if is_over else "running",
        word=word,
        total=processing + succeeded + errored + canceled + expired,
        completed=succeeded,
        failed=errored + canceled + expired,
        results=(results,) if is_over else (),
    )


def _created_s(found: dict[str, Any]) -> float:
    """Return when a batch was made, seconds since 1970; infinite where that cannot be read."""
    try:
        return datetime.fromisoformat(str(found.get("created_at"))).timestamp()
    except ValueError:
        return float("inf")
