"""Providers' batches on this machine, which end as they are told to.

    with StubOpenAI(fates=[Fate("expired")], respond=answers) as stub:
        ...  # the first batch expires with what `answers` answers, the next ones complete

What is asked stands in `asked`, by what the last turn says; batches in `made`, oldest first.
"""

import collections
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tests.stub_endpoint import Reply, StubEndpoint


@dataclass(frozen=True)
class Fate:
    """What becomes of one batch."""

    status: str = "completed"
    """Its last status, in OpenAI's word."""
    error: dict[str, str] | None = None
    """Why it failed as a whole."""
    num_polls: int = 1
    """Looks at it that find it running."""
    loses_reply: bool = False
    """It is made, and whoever made it does not hear of it."""


UNANSWERED = Reply(reset=True)
"""A request that the batch does not come to."""


@dataclass
class Made:
    """A batch that was submitted."""

    id: str
    requests: list[dict[str, Any]]
    fate: Fate
    metadata: dict[str, str] = field(default_factory=dict)
    num_polls: int = 0
    status: str = "in_progress"

    @property
    def is_over(self) -> bool:
        return self.status != "in_progress"


class _StubBatches(StubEndpoint):
    """What both providers have in common."""

    def __init__(
        self,
        *,
        fates: Sequence[Fate] = (),
        answers: Callable[[str, int], Reply] = lambda content, n: Reply(text=f"re {content}"),
        is_running: Callable[[], bool] = lambda: False,
        has_batches: bool = True,
        **facts: Any,
    ) -> None:
        """Serve on a free port.

        Args:
            fates: Of the batches in turn; after the last one they complete.
            answers: What becomes of a request, by its last turn and how often it was asked.
            is_running: While this is so, no batch ends.
            has_batches: Whether the routes are there.
            facts: As for `StubEndpoint`.
        """
        super().__init__(**facts)
        self._fates, self._answers, self._is_running = list(fates), answers, is_running
        self.has_batches = has_batches
        self.made: list[Made] = []
        self.asked: collections.Counter[str] = collections.Counter()
        self._replies: dict[tuple[str, str], Reply] = {}

    def make(self, requests: Iterable[dict[str, Any]], metadata: dict[str, str]) -> Made:
        fate = self._fates.pop(0) if self._fates else Fate()
        made = Made(f"batch_{len(self.made)}", list(requests), fate, metadata)
        self.made.append(made)
        for one in made.requests:
            content = asked_of(one)
            self.asked[content] += 1
            reply = self._answers(content, self.asked[content])
            self._replies[made.id, one["custom_id"]] = reply
        return made

    def poll(self, made: Made) -> None:
        made.num_polls += 1
        if made.num_polls > made.fate.num_polls and not self._is_running():
            made.status = made.fate.status

    def replies(self, made: Made) -> list[tuple[str, Reply]]:
        ids = [one["custom_id"] for one in made.requests]
        return [(custom_id, self._replies[made.id, custom_id]) for custom_id in ids]

    def find(self, request: web.Request) -> Made:
        self.gets.append(request.path)
        self.headers.append(dict(request.headers))
        found = next((m for m in self.made if m.id == request.match_info["id"]), None)
        if found is None:
            raise web.HTTPNotFound(text='{"error": {"message": "no such batch"}}')
        return found


def asked_of(one: dict[str, Any]) -> str:
    """Return the last turn of a request in a batch."""
    params = one.get("body") or one["params"]
    return str(params["messages"][-1]["content"])


def lost(request: web.Request) -> web.Response:
    """Break the connection off, so that nobody hears the answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


class StubOpenAI(_StubBatches):
    """OpenAI's `/files` and `/batches`."""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        if not self.has_batches:
            return
        self.files: dict[str, str] = {}
        router.add_post("/v1/files", self._upload)
        router.add_get("/v1/files/{id}/content", self._content)
        router.add_post("/v1/batches", self._create)
        router.add_get("/v1/batches", self._list)
        router.add_get("/v1/batches/{id}", self._status)

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        upload = form["file"]
        assert isinstance(upload, web.FileField)
        name = f"file_{len(self.files)}"
        self.files[name] = upload.file.read().decode()
        return web.json_response({"id": name, "object": "file"})

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        lines = self.files[body["input_file_id"]].splitlines()
        made = self.make(map(json.loads, lines), body["metadata"])
        return lost(request) if made.fate.loses_reply else web.json_response(self._shown(made))

    async def _list(self, request: web.Request) -> web.Response:
        newest = [self._shown(made) for made in reversed(self.made)]
        if after := request.query.get("after"):
            ids = [one["id"] for one in newest]
            newest = newest[ids.index(after) + 1 :]
        limit = min(int(request.query["limit"]), 2)
        page = {"object": "list", "data": newest[:limit], "has_more": len(newest) > limit}
        return web.json_response(page)

    async def _status(self, request: web.Request) -> web.Response:
        made = self.find(request)
        self.poll(made)
        return web.json_response(self._shown(made))

    async def _content(self, request: web.Request) -> web.Response:
        return web.Response(text=self.files[request.match_info["id"]])

    def _shown(self, made: Made) -> dict[str, Any]:
        total = len(made.requests)
        shown: dict[str, Any] = {
            "id": made.id,
            "object": "batch",
            "status": made.status,
            "metadata": made.metadata,
            "request_counts": {"total": total, "completed": 0, "failed": 0},
        }
        if not made.is_over:
            return shown
        if made.fate.error is not None:
            return shown | {"errors": {"object": "list", "data": [made.fate.error]}}
        answered, failed = list[str](), list[str]()
        for custom_id, reply in self.replies(made):
            line, is_ok = _openai_line(custom_id, reply)
            (answered if is_ok else failed).append(json.dumps(line))
        for name, lines in (("output_file_id", answered), ("error_file_id", failed)):
            if lines:
                shown[name] = f"{made.id}_{name}"
                self.files[shown[name]] = "\n".join([*lines, ""])
        shown["request_counts"] |= {"completed": len(answered), "failed": len(failed)}
        return shown


def _openai_line(custom_id: str, reply: Reply) -> tuple[dict[str, Any], bool]:
    line: dict[str, Any] = {"id": "batch_req", "custom_id": custom_id, "error": None}
    if reply.reset:
        error = {"code": "batch_expired", "message": "could not be executed in time"}
        return line | {"response": None, "error": error}, False
    body: dict[str, Any] = {"error": {"message": reply.error, **reply.error_facts}}
    if reply.status == 200:
        message = {"role": "assistant", "content": reply.text, **reply.message_facts}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
        body = {"model": reply.model or "big", "choices": [choice], "usage": reply.usage}
    return line | {"response": {"status_code": reply.status, "body": body}}, reply.status == 200


class StubAnthropic(_StubBatches):
    """Anthropic's `/messages/batches`."""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        if not self.has_batches:
            return
        router.add_post("/v1/messages/batches", self._create)
        router.add_get("/v1/messages/batches", self._list)
        router.add_get("/v1/messages/batches/{id}", self._status)
        router.add_get("/v1/messages/batches/{id}/results", self._results)

    async def _create(self, request: web.Request) -> web.Response:
        self.headers.append(dict(request.headers))
        body = await request.json()
        self.requests.append(body)
        made = self.make(body["requests"], {})
        return lost(request) if made.fate.loses_reply else web.json_response(self._shown(made))

    async def _list(self, request: web.Request) -> web.Response:
        newest = [self._shown(made) for made in reversed(self.made)]
        return web.json_response({"data": newest, "has_more": False})

    async def _status(self, request: web.Request) -> web.Response:
        made = self.find(request)
        self.poll(made)
        return web.json_response(self._shown(made))

    async def _results(self, request: web.Request) -> web.Response:
        made = self.find(request)
        assert made.is_over
        lines = [_anthropic_line(i, reply, made.status) for i, reply in self.replies(made)]
        return web.Response(text="".join(json.dumps(line) + "\n" for line in reversed(lines)))

    def _shown(self, made: Made) -> dict[str, Any]:
        kinds = ("processing", "succeeded", "errored", "canceled", "expired")
        counts = dict.fromkeys(kinds, 0)
        if made.is_over:
            for custom_id, reply in self.replies(made):
                counts[_anthropic_line(custom_id, reply, made.status)["result"]["type"]] += 1
        else:
            counts["processing"] = len(made.requests)
        url = f"{self.base_url}/messages/batches/{made.id}/results"
        return {
            "id": made.id,
            "type": "message_batch",
            "processing_status": "ended" if made.is_over else "in_progress",
            "request_counts": counts,
            "created_at": datetime.now(UTC).isoformat(),
            "results_url": url if made.is_over else None,
        }


def _anthropic_line(custom_id: str, reply: Reply, status: str) -> dict[str, Any]:
    result: dict[str, Any]
    if reply.reset:
        result = {"type": "canceled" if status == "cancelled" else "expired"}
    elif reply.status != 200:
        error = {"type": "api_error", "message": reply.error, **reply.error_facts}
        result = {"type": "errored", "error": {"type": "error", "error": error}}
    else:
        read, written = (reply.usage or {}).values()
        blocks = [{"type": "text", "text": reply.text}] if reply.text else []
        message = {
            "type": "message",
            "role": "assistant",
            "model": reply.model or "big",
            "content": reply.message_facts.get("blocks", []) + blocks,
            "stop_reason": {"stop": "end_turn"}.get(reply.finish_reason or "", reply.finish_reason),
            "usage": {"input_tokens": read, "output_tokens": written},
        }
        result = {"type": "succeeded", "message": message}
    return {"custom_id": custom_id, "result": result}
