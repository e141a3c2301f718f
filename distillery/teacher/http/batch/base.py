"""What a provider's batches have in common, whatever their format."""

import abc
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import yarl

from distillery.data.chat import Message
from distillery.ledger import SentBatch
from distillery.teacher.http.connection import Connection
from distillery.teacher.http.endpoint import Endpoint
from distillery.teacher.http.replies import PassingFault, Reply, check_status, error_of
from distillery.teacher.protocol import Request, Response
from schemas.teacher import OpenAITeacher

_BODY_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class BatchStatus:
    """How far a batch is."""

    state: Literal["running", "ended", "failed", "cancelled"]
    """running: it may still change. ended: all that it will bring is there, which may be a part.
    failed: the provider could not carry it out. cancelled: somebody ended it there."""

    word: str
    """In the provider's word."""

    total: int = 0
    completed: int = 0
    failed: int = 0

    results: tuple[yarl.URL, ...] = ()
    """Where its results are read, those with answers first."""

    error: str = ""
    """What the provider says of the batch as a whole, its code first."""


class NotYetKnown(Exception):
    """Whether a batch was taken cannot be told before it has ended."""


class BatchFormat(abc.ABC):
    """How one provider takes batches and gives their results."""

    listing: ClassVar[str]
    """Path below `teacher.base_url` of its batches."""

    most_requests: ClassVar[int]
    """Most requests in one batch."""

    most_bytes: ClassVar[int]
    """Most bytes of their file."""

    opening: ClassVar[bytes]
    separator: ClassVar[bytes]
    closing: ClassVar[bytes]
    """What stands before, between and after the requests of a file."""

    def __init__(self, endpoint: Endpoint, connection: Connection) -> None:
        self.endpoint, self.connection = endpoint, connection
        self.spec: OpenAITeacher = endpoint.spec

    @abc.abstractmethod
    def line(self, request: Request, messages: list[Message]) -> bytes:
        """Return what asks for a response to ``messages``, as it stands in the file."""

    @abc.abstractmethod
    async def submit(self, batch: SentBatch, file: Path) -> str:
        """Return the provider's id of a batch that it has taken.

        Raises:
            PassingFault, RateLimited, RefusedRequest, FatalReply: It has not, as far as is known.
        """

    @abc.abstractmethod
    async def find(self, batch: SentBatch, hashes: set[str], known: set[str]) -> str | None:
        """Return the provider's id of a batch that nobody put down; None: it was never taken.

        Args:
            batch: Which.
            hashes: Some of the requests in it.
            known: Ids of other batches.

        Raises:
            NotYetKnown: It cannot be told before some batch has ended.
            PassingFault, RateLimited, RefusedRequest, FatalReply: It does not say.
        """

    @abc.abstractmethod
    async def status(self, batch_id: str) -> BatchStatus:
        """Return how far a batch is."""

    @abc.abstractmethod
    def read(self, entry: dict[str, Any], request: Request) -> Response:
        """Return the response that a line of the results holds.

        Raises:
            PassingFault, RateLimited, RefusedRequest, FatalReply: It holds none.
        """

    # -- for all formats ---------------------------------------------------------------------

    async def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """Return the JSON object at ``path``."""
        url = self.endpoint.route(path).update_query(query)
        return await self._exchange(url, None)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON object with which ``body`` is answered at ``path``."""
        return await self._exchange(self.endpoint.route(path), body)

    async def _exchange(self, url: yarl.URL, body: dict[str, Any] | None) -> dict[str, Any]:
        asking = self.connection.exchange(
            url, body, timeout_s=self.spec.timeout_s, most_bytes=_BODY_BYTES
        )
        return json_object(await asking)

    async def download(self, url: yarl.URL, file: IO[bytes]) -> None:
        """Write a file of results into ``file``.

        Raises:
            PassingFault, RateLimited, RefusedRequest, FatalReply: It is not there, or not now.
        """
        check_status(await self.connection.download(url, file, stall_s=self.spec.timeout_s))

    def objects(self, file: IO[bytes]) -> Iterator[dict[str, Any]]:
        """Yield the lines of ``file`` that are JSON objects, without our key."""
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                entry = json.loads(self.endpoint.clean(line))
                if isinstance(entry, dict):
                    yield entry


def json_object(reply: Reply) -> dict[str, Any]:
    """Return the JSON object that a reply holds.

    Raises:
        PassingFault, RateLimited, RefusedRequest, FatalReply: It holds none; see `replies.py`.
    """
    check_status(reply)
    try:
        found = json.loads(reply.content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        said = error_of(reply.text).message
        raise PassingFault(f"a body that is not a JSON object: {said}", status=200)
    return found


def identifier(found: dict[str, Any]) -> str:
    """Return the id of what a provider has made.

    Raises:
        PassingFault: It says none.
    """
    if not isinstance(found.get("id"), str):
        raise PassingFault(f"an object without an id: {json.dumps(found)[:200]}", status=200)
    return str(found["id"])


def count(value: Any) -> int:
    """Return a count of requests; 0 for what is none."""
    return value if type(value) is int and value >= 0 else 0
