"""An endpoint's address, its key, and what is said of it."""

import dataclasses
import urllib.request
from typing import Any

import yarl

from distillery.teacher.http.keys import read_key, redact
from distillery.teacher.http.replies import FatalReply, RateLimited
from distillery.teacher.protocol import Response
from schemas.errors import RecipeError, TeacherError
from schemas.teacher import OpenAITeacher

_FEWEST_SECRET_CHARS = 16
_TEXTS = ("text", "reasoning", "finish_reason", "model_reported", "error")


class Endpoint:
    """Where requests go and with which key; the key is in no text that it returns."""

    def __init__(self, spec: OpenAITeacher) -> None:
        """Read address and key.

        Raises:
            RecipeError: The address is not a URL, or the key is not where the recipe says.
        """
        self.spec = spec
        self._base = _base_url(spec.base_url)
        self.url = self.route("chat/completions")
        self.key = read_key(spec)
        # Local servers are given any word, such as 'ollama': no secret, and part of responses.
        self._secret = self.key if self.key and len(self.key) >= _FEWEST_SECRET_CHARS else None

    def __str__(self) -> str:
        """Return the address without user, password and query."""
        return f"{self.url.origin()}{self.url.path}"

    def route(self, path: str) -> yarl.URL:
        """Return the address of ``path`` below teacher.base_url; its query is kept."""
        return self._base.with_path(f"{self._base.path.rstrip('/')}/{path}", keep_query=True)

    @property
    def headers(self) -> dict[str, str]:
        """Return what every request carries."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def proxy(self) -> str | None:
        """Return the proxy that the environment names.

        aiohttp's own ``trust_env`` would also read ~/.netrc, and refuse a key beside what it finds.
        """
        if urllib.request.proxy_bypass(self.url.host or ""):
            return None
        return urllib.request.getproxies().get(self.url.scheme)

    def clean(self, content: bytes) -> bytes:
        """Return a body without the key, which servers like to quote."""
        return content.replace(self._secret.encode(), b"[key]") if self._secret else content

    def without_key(self, response: Response) -> Response:
        """Return a response without the key, also where JSON has written it otherwise."""
        if not self._secret:
            return response
        return dataclasses.replace(
            response,
            **{name: self._hide(getattr(response, name)) for name in _TEXTS},
        )

    def _hide(self, text: str | None) -> Any:
        return text and redact(text, self._secret)

    def redact(self, text: str) -> str:
        """Return text from outside without the key."""
        return redact(text, self.key)

    def fatal(self, error: FatalReply) -> TeacherError:
        """Return the error for a reply that no further attempt can change."""
        spec = self.spec
        key = (
            f"the variable {spec.api_key_env!r}"
            if spec.api_key_env
            else f"the Prefect secret {spec.api_key_secret!r}"
        )
        advice = {
            401: f"Put a valid key into {key}.",
            402: "Top up the account at the provider.",
            403: f"Let the key in {key} use this model.",
            404: f"Correct teacher.model ({spec.model!r}) or teacher.base_url.",
        }
        if self.key is None:
            advice[401] = "Set teacher.api_key_env to the name of a variable that holds the key."
        said = self.redact(str(error))
        about = f", about {error.param!r}" if error.param else ""
        return self.error(
            f"answered with {said!r}{about}, which no further attempt can change",
            _correct_setting(error.param, said)
            if error.param
            else advice.get(error.status, "Correct teacher.base_url."),
        )

    def asks_to_wait(self, wait_s: float, error: RateLimited) -> TeacherError:
        """Return the error for a rate limit that holds longer than the run would wait."""
        return self.error(
            f"lets nothing in for {wait_s:,.0f} s ({self.redact(str(error))!r}), longer than "
            f"teacher.max_outage_s={self.spec.max_outage_s:g}",
            "Run again later, or raise teacher.max_outage_s to wait.",
        )

    def error(self, what: str, advice: str) -> TeacherError:
        """Return the error that ends a run."""
        return TeacherError(f"endpoint '{self}' {what}. Responses so far are kept. {advice}")


def _correct_setting(param: str, said: str) -> str:
    """Return what to change about a field of the request that the endpoint does not take."""
    other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
    if other.get(param, "none such") in said.replace(f"'{param}'", ""):
        return f"Set teacher.max_tokens_field to {other[param]}."
    if param in other:
        return "Lower teacher.max_new_tokens, or correct teacher.max_tokens_field."
    if param == "temperature":
        return "Set teacher.sampling_temperature to a value that it takes."
    if param.startswith("response_format"):
        return "Correct task.answer_format.json_schema, or set teacher.structured_output lower."
    if param == "model":
        return "Correct teacher.model."
    return f"Set teacher.extra_body.{param} to what it takes; null leaves the field out."


def _base_url(base_url: str) -> yarl.URL:
    """Return teacher.base_url, parsed."""
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
    return url
