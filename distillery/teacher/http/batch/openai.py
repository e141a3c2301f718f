"""OpenAI's batches: a JSONL file of chat requests is uploaded, a file of completions comes back.

Source: OpenAI's guide to the Batch API and its API reference of `/files` and `/batches`
(https://platform.openai.com/docs/guides/batch): the lines of input, output and error files, limits,
statuses, and what becomes of a batch that expires. Azure, Groq and others follow it.
"""

import json
from pathlib import Path
from typing import Any

import aiohttp

from distillery.data.chat import Message
from distillery.ledger import SentBatch
from distillery.teacher.http.batch.base import (
    BatchFormat,
    BatchStatus,
    count,
    identifier,
    json_object,
)
from distillery.teacher.http.chat_api import read_reply, request_json
from distillery.teacher.http.replies import PassingFault, Reply
from distillery.teacher.protocol import Request, Response

_COMPLETIONS = "/v1/chat/completions"
_WINDOW = "24h"  # the only one that OpenAI knows
_OURS = "distillery"  # key of the batch's metadata
_PER_PAGE, _MOST_PAGES = 100, 50

_STATES = {"completed": "ended", "expired": "ended", "failed": "failed", "cancelled": "cancelled"}


class OpenAIBatches(BatchFormat):
    """Batches of OpenAI and of those who follow it."""

    listing = "batches"
    most_requests = 50_000
    most_bytes = 200_000_000
    opening, separator, closing = b"", b"\n", b"\n"

    def line(self, request: Request, messages: list[Message]) -> bytes:
        """Return one line of the input file."""
        asked = {
            "custom_id": request.request_hash,
            "method": "POST",
            "url": _COMPLETIONS,
            "body": request_json(self.spec, request, messages),
        }
        return json.dumps(asked).encode()

    async def submit(self, batch: SentBatch, file: Path) -> str:
        """Return the id of a batch made of an uploaded file; our key is in its metadata."""
        with file.open("rb") as lines:
            form = aiohttp.FormData({"purpose": "batch"})
            form.add_field(
                "file", lines, filename=f"{batch.key}.jsonl", content_type="application/jsonl"
            )
            uploading = self.connection.upload(
                self.endpoint.route("files"), form, stall_s=self.spec.timeout_s
            )
            uploaded = json_object(await uploading)
        body = {
            "input_file_id": identifier(uploaded),
            "endpoint": _COMPLETIONS,
            "completion_window": _WINDOW,
            "metadata": {_OURS: batch.key},
        }
        return identifier(await self.post(self.listing, body))

    async def find(self, batch: SentBatch, hashes: set[str], known: set[str]) -> str | None:
        """Return the id of the batch whose metadata holds our key; the listing is newest first."""
        query: dict[str, str | int] = {"limit": _PER_PAGE}
        for _ in range(_MOST_PAGES):
            page = await self.get(self.listing, **query)
            found: list[dict[str, Any]] = page.get("data") or []
            for one in found:
                if (one.get("metadata") or {}).get(_OURS) == batch.key:
                    return identifier(one)
            if not found or not page.get("has_more"):
                break
            query["after"] = identifier(found[-1])
        return None

    async def status(self, batch_id: str) -> BatchStatus:
        """Return how far it is; the file with the answers is read before that with the errors."""
        found = await self.get(f"{self.listing}/{batch_id}")
        word = str(found.get("status"))
        counts = found.get("request_counts") or {}
        files = [found.get(name) for name in ("output_file_id", "error_file_id")]
        return BatchStatus(
            state=_STATES.get(word.lower(), "running"),  # type: ignore[arg-type]
            word=word,
            **{name: count(counts.get(name)) for name in ("total", "completed", "failed")},
            results=tuple(self.endpoint.route(f"files/{file}/content") for file in files if file),
            error=_said(found.get("errors")),
        )

    def read(self, entry: dict[str, Any], request: Request) -> Response:
        """Return the response in a line of the output or the error file."""
        replied, error = entry.get("response"), entry.get("error")
        if isinstance(replied, dict):
            status = replied.get("status_code")
            content = json.dumps(replied.get("body")).encode()
            return read_reply(Reply(status if type(status) is int else 200, {}, content), request)
        said = error if isinstance(error, dict) else {}
        raise PassingFault(f"{said.get('code')}: {said.get('message')}")


def _said(errors: Any) -> str:
    """Return the first of a batch's errors: its code, and what is said."""
    listed = errors.get("data") if isinstance(errors, dict) else None
    first = listed[0] if listed and isinstance(listed[0], dict) else {}
    return f"{first.get('code')}: {first.get('message')}" if first else ""
