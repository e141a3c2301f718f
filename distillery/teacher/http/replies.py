"""What a reply means before anyone reads its body: by its status, its headers and its error.

    this run       401, 402, 403, 404, 3xx, no quota left  FatalReply: the run ends
    this request   400, 413, 422                           RefusedRequest
    its pace       429                                     RateLimited: waits, costs no attempt
    passing        408, 409, 425, 5xx, no reply at all     PassingFault: asked again

An error in the body counts like the status that it names: gateways send both with status 200.

Source: OpenAI's guide to error codes and rate limits, which the providers follow; RFC 9110.
"""

import contextlib
import email.utils
import json
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

_REFUSED = (400, 413, 422)
_PASSING = (408, 409, 425)
_RATE_LIMITED = 429
_NO_CREDIT = 402
# What is called a rate limit, but no waiting helps.
_NO_CREDIT_CODES = {
    *("insufficient_quota", "insufficient_balance", "insufficient_credits"),
    *("billing_hard_limit_reached", "billing_not_active", "credit_limit_exceeded"),
}
# As OpenAI, Azure and DashScope call what is wrong with one prompt.
_ABOUT_PROMPT = re.compile(
    "content_?(filter|policy|management)|responsibleaipolicy|data_inspection|invalid_prompt"
    "|context_length|string_above_max",
    re.IGNORECASE,
)
# A limit to the response may be too high for a long prompt alone.
_NAMES_PROMPT = re.compile(r"\b(prompt|context|messages?|input)\b", re.IGNORECASE)
_QUOTED_CHARS = 300
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
# A reset is when a budget is full again; something of it may be there much earlier.
_LONGEST_RESET_S = 5.0


class PassingFault(Exception):
    """This attempt failed; the next one may not."""

    def __init__(
        self, message: str, *, status: int | None = None, tokens: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__(message)
        self.status = status
        self.tokens = tokens
        """Read and written for nothing, as far as the endpoint says."""


class Unreachable(PassingFault):
    """No connection to the endpoint could be made."""


class RateLimited(Exception):
    """The endpoint wants fewer requests."""

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RefusedRequest(Exception):
    """The endpoint will not do this request, however often it is asked."""

    def __init__(self, message: str, error: "ErrorBody") -> None:
        super().__init__(message)
        self.error = error

    @property
    def is_about_prompt(self) -> bool:
        """Return whether this prompt is at fault, and another may fare better."""
        return _ABOUT_PROMPT.search(self.error.code) is not None

    def is_about_settings(self, body: Mapping[str, Any]) -> bool:
        """Return whether a field of the request other than its messages is at fault."""
        field = (self.error.param or "messages").split(".")[0].split("[")[0]
        is_of_row = self.is_about_prompt or _NAMES_PROMPT.search(self.error.message)
        return field != "messages" and field in body and not is_of_row


class FatalReply(Exception):
    """No further attempt, and no other request, can meet anything else."""

    def __init__(self, message: str, status: int, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


class ErrorBody(NamedTuple):
    """The error that a body holds."""

    message: str
    """In one line, cut short."""

    code: str = ""
    """Its code and its type, as words."""

    param: str | None = None
    """The field of the request that it is about."""


class Reply(NamedTuple):
    """A whole reply."""

    status: int
    headers: Mapping[str, str]
    """Looked up by lower-case names."""
    content: bytes

    @property
    def text(self) -> str:
        """Return the body."""
        return self.content.decode("utf-8", "replace")


def check_status(reply: Reply) -> None:
    """Return when ``reply`` has what was asked for.

    Raises:
        PassingFault, RateLimited, RefusedRequest, FatalReply: See the table above.
    """
    if reply.status != 200:
        raise_for(reply.status, reply.headers, error_of(reply.text))


def raise_for(status: int, headers: Mapping[str, str], error: ErrorBody) -> None:
    """Raise what a status other than 200 means."""
    message = f"status {status}: {error.message}"
    if status in (_RATE_LIMITED, *_REFUSED, 403) and _NO_CREDIT_CODES & set(error.code.split()):
        raise FatalReply(message, _NO_CREDIT)
    if status in _REFUSED:
        raise RefusedRequest(message, error)
    if status == _RATE_LIMITED:
        raise RateLimited(message, retry_after_s(headers))
    if status in _PASSING or status >= 500:
        raise PassingFault(message, status=status)
    raise FatalReply(message, status)


def error_of(text: str) -> ErrorBody:
    """Return the error in a body; its text, cut short, when it has not the usual shape.

    >>> error_of('{"error": {"message": "no such model", "code": 404}}')
    ErrorBody(message='no such model', code='404', param=None)
    >>> error_of("<html>  busy </html>").message
    '<html> busy </html>'
    """
    said, words, param = text, "", None
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        body = json.loads(text)
        error = body.get("error", body)
        if isinstance(error, dict):
            inner = error.get("innererror")
            names = [error.get("code"), error.get("type")]
            names += [inner.get("code")] if isinstance(inner, dict) else []
            words = " ".join(str(name) for name in names if name is not None)
            param = error.get("param") if isinstance(error.get("param"), str) else None
        said = str(error["message"] if isinstance(error, dict) else error)
    return ErrorBody(" ".join(said[: 4 * _QUOTED_CHARS].split())[:_QUOTED_CHARS], words, param)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds for which the endpoint asks to wait; None when it does not say.

    The finest figure counts: `retry-after-ms`, then `Retry-After` (seconds or a date), then the
    reset of what `x-ratelimit-remaining-*` says is used up.

    >>> retry_after_s({"retry-after-ms": "40", "retry-after": "1"})
    0.04
    >>> retry_after_s({"retry-after": "1.5"}), retry_after_s({"retry-after": "soon"})
    (1.5, None)
    """
    if (milliseconds := _seconds(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    header = headers.get("retry-after")
    if (seconds := _seconds(header)) is not None:
        return seconds
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(header or "").timestamp() - time.time())
    return used_up_s(headers)


def used_up_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds, 5 at most, until what `x-ratelimit-*` says is used up comes back.

    >>> used_up_s({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m0.5s"})
    5.0
    >>> used_up_s({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"})
    0.02
    >>> used_up_s({"x-ratelimit-remaining-tokens": "9", "x-ratelimit-reset-tokens": "20ms"})
    """
    resets = [
        _duration_s(headers.get(f"x-ratelimit-reset{what}"))
        for what in ("", "-requests", "-tokens")
        if _seconds(headers.get(f"x-ratelimit-remaining{what}")) == 0
    ]
    known = [reset for reset in resets if reset is not None]
    return min(_LONGEST_RESET_S, max(known)) if known else None


def _seconds(header: str | None) -> float | None:
    """Return a number of a header, at least 0; None for what is not one."""
    with contextlib.suppress(ValueError):
        seconds = float(header or "")
        return max(0.0, seconds) if seconds == seconds else None
    return None


def _duration_s(header: str | None) -> float | None:
    """Return a duration such as `6m0s`, `20ms` or `30`, or the time until a moment, in seconds."""
    if (seconds := _seconds(header)) is not None:
        return seconds if seconds < 1e9 else max(0.0, seconds - time.time())
    parts: list[Any] = _DURATION.findall(header or "")
    if header is None or "".join(map("".join, parts)) != header:
        return None
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
