"""A teacher behind an OpenAI-compatible chat endpoint.

What can go wrong, and what follows:

    the endpoint   unreachable, 401, 403, 404, 3xx          the run ends: TeacherError
    this request   400, 413, 422, stopped by a filter       state 'failed', with the reason
    passing        408, 409, 425, 429, 5xx, time-outs,      asked again up to max_attempts times,
                   resets, bodies that are no completion    then left to the next run
"""

import asyncio
import concurrent.futures
import contextlib
import email.utils
import json
import logging
import os
import random
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import aiohttp
import yarl

from distillery.teacher.protocol import (
    Request,
    Response,
    Unfinished,
    response_state,
    teacher_identity,
)
from schemas.errors import RecipeError, TeacherError
from schemas.teacher import OpenAITeacher

logger = logging.getLogger(__name__)

_REFUSED_REQUEST = (400, 413, 422)
_PASSING = (408, 409, 425, 429)
_CONNECT_TIMEOUT_S = 10.0
_MAX_BACKOFF_S = 30.0
_MAX_RETRY_AFTER_S = 120.0
_QUOTED_CHARS = 300
# So many requests refused before any is answered: the settings are at fault, not the prompts.
_REFUSED_AT_FIRST = 8
# So many requests out of attempts with not one word from the endpoint meanwhile: it hangs.
_MAX_SILENT = 3


class EndpointTeacher:
    """Asks an OpenAI-compatible endpoint, at most ``concurrency`` requests at a time."""

    def __init__(self, spec: OpenAITeacher, *, backoff_s: float = 0.5) -> None:
        """Describe the teacher. ``backoff_s`` bounds the first pause; each next one is doubled."""
        self._spec = spec
        self._backoff_s = backoff_s

    @property
    def identity(self) -> dict[str, Any]:
        """Return who serves what; never where."""
        return teacher_identity(self._spec)

    def answer(
        self, requests: Iterable[Request], on_response: Callable[[Response], None]
    ) -> list[Unfinished]:
        """Ask all requests and return those that got no response in ``max_attempts``.

        The first request goes alone, so that a wrong key or address costs exactly one.

        Raises:
            RecipeError: The variable ``api_key_env`` is not set; nothing has been sent.
            TeacherError: The endpoint cannot be reached, refuses the key, does not know the
                model, or refuses every request.
        """
        run = _Run(self._spec, _read_key(self._spec), self._backoff_s, on_response)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(run.answer(iter(requests)))
        # A notebook has a loop in this thread already.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(run.answer(iter(requests)))).result()


class _PassingError(Exception):
    """This attempt failed; the next one may not."""

    def __init__(self, message: str, *, heard: bool, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.heard = heard
        self.retry_after_s = retry_after_s


class _UnreachableError(_PassingError):
    """No connection to the endpoint could be made."""

    def __init__(self, message: str) -> None:
        super().__init__(message, heard=False)


class _Run:
    """One call of :meth:`EndpointTeacher.answer`."""

    def __init__(
        self,
        spec: OpenAITeacher,
        key: str | None,
        backoff_s: float,
        on_response: Callable[[Response], None],
    ) -> None:
        self._spec = spec
        self._key = key
        self._backoff_s = backoff_s
        self._on_response = on_response
        self._url = _chat_url(spec.base_url)
        self._admitted = asyncio.Event()  # the endpoint has answered something
        self._resume_at = 0.0  # time.monotonic() until which Retry-After holds everyone back
        self._heard = 0  # answers of the endpoint, of whatever status
        self._silent = 0  # requests given up in a row without one
        self._any_given = False  # some request was answered with a completion
        self._refused: list[Response] = []  # held back until then
        self._unfinished: list[Unfinished] = []

    async def answer(self, requests: Iterator[Request]) -> list[Unfinished]:
        """Ask everything with a pool of workers; the first failure of the run stops them all."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else None
        timeout = aiohttp.ClientTimeout(
            total=self._spec.timeout_s, sock_connect=min(_CONNECT_TIMEOUT_S, self._spec.timeout_s)
        )
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._spec.concurrency),
            headers=headers,
            timeout=timeout,
            proxy=_proxy(self._url),
        ) as session:
            workers = [
                asyncio.create_task(self._work(session, requests, is_probe=number == 0))
                for number in range(self._spec.concurrency)
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        for response in self._refused:
            self._on_response(response)
        return self._unfinished

    async def _work(
        self, session: aiohttp.ClientSession, requests: Iterator[Request], *, is_probe: bool
    ) -> None:
        """Ask one request after the other until there are none."""
        if not is_probe:
            await self._admitted.wait()
        for request in requests:
            await self._ask_until_done(session, request)
        self._admitted.set()

    async def _ask_until_done(self, session: aiohttp.ClientSession, request: Request) -> None:
        """Ask one request until it has a response, is out of attempts, or the run has to end."""
        heard_before = self._heard
        for attempt in range(1, self._spec.max_attempts + 1):
            while (wait_s := self._resume_at - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            try:
                response = await self._ask(session, request, attempt)
            except _PassingError as error:
                last = error
            else:
                self._hand_over(response)
                return
            if last.heard:
                self._note_heard()
            logger.debug("attempt %d at %s: %s", attempt, request.request_hash[:12], last)
            if attempt < self._spec.max_attempts:
                await self._pause(attempt, last)
        self._give_up(request, last, silent=self._heard == heard_before)

    async def _pause(self, attempt: int, error: _PassingError) -> None:
        """Wait for as long as the endpoint asks for, otherwise exponentially with full jitter."""
        if error.retry_after_s is not None:
            wait_s = min(error.retry_after_s, _MAX_RETRY_AFTER_S)
            self._resume_at = max(self._resume_at, time.monotonic() + wait_s)
            return
        await asyncio.sleep(
            random.uniform(0, min(_MAX_BACKOFF_S, self._backoff_s * 2 ** (attempt - 1)))
        )

    async def _ask(
        self, session: aiohttp.ClientSession, request: Request, attempt: int
    ) -> Response:
        """Return the response of one attempt.

        Raises:
            _PassingError: Worth another attempt.
            TeacherError: The run has to end.
        """
        sampling = request.sampling
        body = {
            "model": self._spec.model,
            "messages": request.messages,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.sampling_temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed + request.sample_index,
        }
        start = time.perf_counter()
        try:
            async with session.post(self._url, json=body, allow_redirects=False) as reply:
                content = await reply.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _UnreachableError(self._clean(str(error))) from None
        except TimeoutError:
            message = f"no response within teacher.timeout_s={self._spec.timeout_s:g}"
            raise _PassingError(message, heard=False) from None
        except (aiohttp.ClientError, OSError) as error:
            message = f"connection lost ({self._clean(str(error)) or type(error).__name__})"
            raise _PassingError(message, heard=False) from None
        latency_s = time.perf_counter() - start
        text = content.decode("utf-8", "replace")
        if reply.status == 200:
            return self._read_completion(request, text, latency_s, attempt)
        message = f"status {reply.status}: {self._clean(_server_message(text))}"
        if reply.status in _REFUSED_REQUEST:
            return _failed(request, message, latency_s, attempt)
        if reply.status in _PASSING or reply.status >= 500:
            retry_after_s = _retry_after_s(reply.headers.get("Retry-After"))
            raise _PassingError(message, heard=True, retry_after_s=retry_after_s)
        raise TeacherError(self._fatal_message(reply.status, message))

    def _read_completion(
        self, request: Request, text: str, latency_s: float, attempt: int
    ) -> Response:
        """Return the response that a body with status 200 holds."""
        try:
            body = json.loads(text)
            choice = body["choices"][0]
            content = choice["message"].get("content")
            usage = body.get("usage") or {}
            if not (content is None or isinstance(content, str)):
                raise TypeError
            counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            finish_reason, model = choice.get("finish_reason"), body.get("model")
        except (ValueError, LookupError, TypeError, AttributeError):
            message = f"a body that is no chat completion: {self._clean(_server_message(text))}"
            raise _PassingError(message, heard=True) from None
        if finish_reason == "content_filter":
            return _failed(request, "stopped by the content filter", latency_s, attempt)
        answer = (content or "").strip()
        return Response(
            request=request,
            state=response_state(answer, finish_reason),
            text=answer,
            finish_reason=None if finish_reason is None else str(finish_reason),
            prompt_tokens=counts[0] if isinstance(counts[0], int) else None,
            completion_tokens=counts[1] if isinstance(counts[1], int) else None,
            model_reported=None if model is None else str(model),
            latency_s=latency_s,
            attempts=attempt,
        )

    def _note_heard(self) -> None:
        """Remember that the endpoint answers, so that the other workers may start."""
        self._heard += 1
        self._silent = 0
        self._admitted.set()

    def _hand_over(self, response: Response) -> None:
        """Pass a response on. Refusals wait until something is answered, as they cost nothing.

        A parameter that the endpoint does not know makes it refuse every request; were these
        committed, no later run would ask again.
        """
        self._note_heard()
        if response.state == "failed" and not self._any_given:
            self._refused.append(response)
            if len(self._refused) >= _REFUSED_AT_FIRST:
                raise TeacherError(
                    f"{self._where()} refused the first {len(self._refused)} requests, the last "
                    f"with {response.error!r}. Nothing was kept. Correct the teacher section of "
                    "the recipe and run again."
                )
            return
        self._any_given = True
        for held in self._refused:
            self._on_response(held)
        self._refused.clear()
        self._on_response(response)

    def _give_up(self, request: Request, error: _PassingError, *, silent: bool) -> None:
        """Leave a request to the next run; end this one when the endpoint is not there."""
        self._unfinished.append(Unfinished(request, str(error)))
        self._silent = self._silent + 1 if silent else 0
        if silent and (isinstance(error, _UnreachableError) or self._silent >= _MAX_SILENT):
            raise TeacherError(
                f"{self._where()} gave no answer in {self._spec.max_attempts} attempts; the last "
                f"failed with {str(error)!r}. Responses so far are kept. Start the endpoint or "
                "correct teacher.base_url, then run again."
            )

    def _fatal_message(self, status: int, message: str) -> str:
        advice = {
            401: f"Put a valid key into the variable {self._spec.api_key_env!r}.",
            402: "Top up the account at the provider.",
            403: f"Let the key in the variable {self._spec.api_key_env!r} use this model.",
            404: f"Correct teacher.model ({self._spec.model!r}) or teacher.base_url.",
        }
        if status == 401 and self._spec.api_key_env is None:
            advice[401] = "Set teacher.api_key_env to the name of a variable that holds the key."
        return (
            f"{self._where()} answered with {message!r}, which no further attempt can change. "
            f"Responses so far are kept. {advice.get(status, 'Correct teacher.base_url.')}"
        )

    def _where(self) -> str:
        """Return the endpoint for messages, without user, password and query."""
        return f"endpoint '{self._url.origin()}{self._url.path}'"

    def _clean(self, text: str) -> str:
        """Return text from outside, cut short and without the key, which servers like to quote."""
        shown = text.replace(self._key, "[key]") if self._key else text
        return shown[:_QUOTED_CHARS]


def _failed(request: Request, error: str, latency_s: float, attempt: int) -> Response:
    return Response(
        request=request,
        state="failed",
        text="",
        finish_reason=None,
        prompt_tokens=None,
        completion_tokens=None,
        model_reported=None,
        latency_s=latency_s,
        attempts=attempt,
        error=error,
    )


def _read_key(spec: OpenAITeacher) -> str | None:
    """Return the key that the recipe names, or None when it names none."""
    if spec.api_key_env is None:
        return None
    key = os.environ.get(spec.api_key_env, "").strip()
    if not key:
        raise RecipeError(
            f"the environment variable {spec.api_key_env!r} (teacher.api_key_env) is not set. "
            "Export it with the key of the endpoint; nothing has been asked yet."
        )
    if not (key.isascii() and key.isprintable()):
        raise RecipeError(
            f"the environment variable {spec.api_key_env!r} (teacher.api_key_env) holds characters "
            "that no HTTP header can carry. Export the key alone."
        )
    return key


def _chat_url(base_url: str) -> yarl.URL:
    """Return the address that requests go to."""
    try:
        url = yarl.URL(base_url)
    except ValueError:
        url = yarl.URL()
    if not url.host:
        raise RecipeError("teacher.base_url is not a URL. Write it as http://host:port/v1.")
    if url.user or url.password:
        raise RecipeError(
            "teacher.base_url holds a user or a password, which would end up in recipes and "
            "manifests. Put the key into a variable and name that in teacher.api_key_env."
        )
    return url.with_path(url.path.rstrip("/") + "/chat/completions", keep_query=True)


def _server_message(text: str) -> str:
    """Return what an error body says: its message when it has the usual shape, else all of it.

    >>> _server_message('{"error": {"message": "no such model"}}')
    'no such model'
    """
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
        body = json.loads(text)
        error = body.get("error", body)
        return str(error["message"] if isinstance(error, dict) else error)
    return " ".join(text.split())


def _retry_after_s(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for; it holds seconds or a date.

    >>> _retry_after_s("1.5"), _retry_after_s("soon"), _retry_after_s(None)
    (1.5, None, None)
    """
    if header is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(header)
        return max(0.0, seconds) if seconds == seconds else None
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    return None


def _proxy(url: yarl.URL) -> str | None:
    """Return the proxy that the environment names for ``url``.

    aiohttp's own ``trust_env`` would also read ~/.netrc, and refuse a key beside what it finds.
    """
    if urllib.request.proxy_bypass(url.host or ""):
        return None
    return urllib.request.getproxies().get(url.scheme)
