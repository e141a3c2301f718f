"""The attempts at one request: which response is final, and what is asked where none is."""

import dataclasses
import json
from typing import Any, Self

from distillery.data.chat import Message
from distillery.task_types.answer_formats import Answer, read_json
from distillery.teacher.protocol import Request, Response

_MOST_ASKED_EMPTY = 3
_CHARS_PER_TOKEN = 4.0
_LONGEST_ECHO = 16_000  # characters of the broken response; its repair has to fit beside it


@dataclasses.dataclass(eq=False)
class Attempts:
    """One request on its way to its final response."""

    request: Request

    count: int = 0
    """Attempts so far."""

    read: int = 0
    """Tokens read in them."""

    written: int = 0
    """Tokens written in them."""

    num_empty: int = 0
    """Those without text."""

    broken: Response | None = None
    """The response that is being repaired."""

    @classmethod
    def restored(cls, request: Request, dumped: str) -> Self:
        """Return the attempts at ``request`` as :meth:`dump` wrote them in an earlier run."""
        found: dict[str, Any] = json.loads(dumped)
        broken = found.pop("broken")
        return cls(request, **found, broken=Response(request, **broken) if broken else None)

    def dump(self) -> str:
        """Return what the attempts so far took and brought, as JSON; the request is not in it."""
        taken = {name.name: getattr(self, name.name) for name in dataclasses.fields(self)}
        del taken["request"]
        if self.broken is not None:
            kept = {f.name: getattr(self.broken, f.name) for f in dataclasses.fields(self.broken)}
            del kept["request"]
            taken["broken"] = kept
        return json.dumps(taken)

    @property
    def messages(self) -> list[Message]:
        """Return the conversation to ask; with a repair it is longer than the request's."""
        if self.broken is None:
            return self.request.messages
        return repair_messages(self.request, self.broken.text, self.broken.error or "")

    def spend(self, read: int, written: int) -> None:
        """Note the tokens of an attempt, whatever becomes of it."""
        self.read += read
        self.written += written

    def take(self, response: Response, *, may_differ: bool = True) -> Response | None:
        """Return the final response, or None when :attr:`messages` have to be asked (again).

        Without text it is asked for three times in all. One that breaks its schema is repaired
        once; where the repair brings nothing whole, the broken one is what there is.

        Args:
            response: What the last attempt brought.
            may_differ: Whether another attempt may bring another text.
        """
        if self.broken is not None and response.state != "ok":
            return self.final(self.broken)
        if response.state == "empty":
            self.num_empty += 1
            if may_differ and self.num_empty < _MOST_ASKED_EMPTY:
                return None
        schema = self.request.response_schema
        if response.state == "ok" and schema is not None:
            found = read_json(response.text, schema.json_schema)
            if not isinstance(found, Answer):
                response = dataclasses.replace(response, state="malformed", error=found[1])
                if self.broken is None:
                    self.broken = response
                    return None
        return self.final(response)

    def final(self, response: Response) -> Response:
        """Return ``response`` with what all attempts took."""
        return dataclasses.replace(
            response,
            attempts=self.count,
            repaired=self.broken is not None and response is not self.broken,
            billed_prompt_tokens=self.read,
            billed_completion_tokens=self.written,
        )

    def unfinished(self, error: str) -> Response:
        """Return what bills the attempts so far, and blames nothing on the request."""
        return dataclasses.replace(self.failed(error), attempts=0)

    def failed(self, error: str) -> Response:
        """Return the response to a request that got none in all its attempts."""
        return self.final(Response(self.request, "failed", "", error=error))


def repair_messages(request: Request, text: str, violation: str) -> list[Message]:
    """Return the conversation that asks for a corrected response, once.

    The schema is named in it: an endpoint whose responses are only checked has never seen it.

    Args:
        request: What was asked.
        text: What the teacher wrote; long ones are cut, so that the repair fits its context.
        violation: What breaks the schema in it.
    """
    schema = request.response_schema
    return [
        *request.messages,
        {"role": "assistant", "content": text[:_LONGEST_ECHO]},
        {
            "role": "user",
            "content": (
                f"Your response cannot be used: {violation}. Answer again with the corrected JSON "
                "alone: no fence, no text before or after it."
                + (f" It has to satisfy this JSON schema: {schema.json_schema}" if schema else "")
            ),
        },
    ]


def billed_tokens(response: Response) -> tuple[int, int]:
    """Return the tokens read and written; estimated where the endpoint does not count them."""
    read, written = response.prompt_tokens, response.completion_tokens
    if response.state == "refused" and read is None:
        return 0, 0
    num_written = len(response.text) + len(response.reasoning or "")
    return (
        round(response.request.num_chars / _CHARS_PER_TOKEN) if read is None else read,
        round(num_written / _CHARS_PER_TOKEN) if written is None else written,
    )
