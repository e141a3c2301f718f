"""An endpoint's address, its key, and what is said of it."""

import dataclasses
import urllib.request

import yarl

from distillery.teacher.http.chat_api import Completion
from distillery.teacher.http.keys import read_key, redact
from schemas.errors import RecipeError, TeacherError
from schemas.teacher import OpenAITeacher

_FEWEST_SECRET_CHARS = 16


class Endpoint:
    """Where requests go and with which key; the key is in no text that it returns."""

    def __init__(self, spec: OpenAITeacher) -> None:
        """Read address and key.

        Raises:
            RecipeError: The address is none, or the key is not where the recipe says.
        """
        self.spec = spec
        self.url = _chat_url(spec.base_url)
        self.key = read_key(spec)
        # Local servers are given any word, such as 'ollama': no secret, and part of responses.
        self._secret = self.key if self.key and len(self.key) >= _FEWEST_SECRET_CHARS else None

    def __repr__(self) -> str:
        return f"Endpoint({str(self)!r})"

    def __str__(self) -> str:
        """Return the address without user, password and query."""
        return f"{self.url.origin()}{self.url.path}"

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

    def without_key(self, completion: Completion) -> Completion:
        """Return a completion without the key, also where JSON has written it otherwise."""
        if not self._secret:
            return completion
        model, reason = completion.model, completion.finish_reason
        return dataclasses.replace(
            completion,
            text=redact(completion.text, self._secret),
            model=model and redact(model, self._secret),
            finish_reason=reason and redact(reason, self._secret),
        )

    def redact(self, text: str) -> str:
        """Return text from outside without the key."""
        return redact(text, self.key)

    def fatal(self, status: int, message: str) -> TeacherError:
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
        return TeacherError(
            f"endpoint '{self}' answered with {message!r}, which no further attempt can change. "
            f"Responses so far are kept. {advice.get(status, 'Correct teacher.base_url.')}"
        )

    def refuses_all(self, count: int, last: str | None) -> TeacherError:
        """Return the error for an endpoint that refuses every request."""
        return TeacherError(
            f"endpoint '{self}' refused the first {count} requests, the last with {last!r}. "
            "Nothing was kept. Correct the teacher section of the recipe and run again."
        )

    def never_there(self, attempts: int, last: str) -> TeacherError:
        """Return the error for an endpoint that was never heard of."""
        return TeacherError(
            f"endpoint '{self}' gave no answer in {attempts} attempts; the last failed with "
            f"{last!r}. Responses so far are kept. Start the endpoint or correct "
            "teacher.base_url, then run again."
        )

    def gone(self, last: str) -> TeacherError:
        """Return the error for an endpoint that has gone away."""
        return TeacherError(
            f"endpoint '{self}' has answered nothing for more than teacher.max_outage_s="
            f"{self.spec.max_outage_s:g}; the last attempt failed with {last!r}. Responses so far "
            "are kept. Run again when it is well: only the missing ones are asked."
        )

    def closed(self) -> TeacherError:
        """Return the error for requests that are on their way when the run lets go."""
        return TeacherError(
            f"the connections to endpoint '{self}' were closed while it was being asked. Responses "
            "so far are kept. Run again: only the missing ones are asked."
        )

    def asks_to_wait(self, wait_s: float, last: str) -> TeacherError:
        """Return the error for a rate limit that holds longer than the run would wait."""
        return TeacherError(
            f"endpoint '{self}' lets nothing in for {wait_s:,.0f} s ({last!r}), longer than "
            f"teacher.max_outage_s={self.spec.max_outage_s:g}. Responses so far are kept. Run "
            "again later, or raise teacher.max_outage_s to wait."
        )


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
