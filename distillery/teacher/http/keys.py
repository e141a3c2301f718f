"""The endpoint's key: read by name when it is needed, and kept out of everything that is kept."""

import base64
import os
import urllib.parse
from collections.abc import Callable

from schemas.errors import RecipeError
from schemas.teacher import OpenAITeacher

_REDACTED = "[key]"

_read_secret: Callable[[str], str] | None = None


def register_secret_reader(reader: Callable[[str], str]) -> None:
    """Have ``reader`` return the value of a secret by its name; the last one registered counts.

    Secrets belong to the orchestrator, which this library does not know. ``reader`` raises
    RecipeError for a name that it does not know.
    """
    global _read_secret
    _read_secret = reader


def read_key(spec: OpenAITeacher) -> str | None:
    """Return the key that the recipe names, or None when it names none.

    Raises:
        RecipeError: The variable or the secret is not there, is empty, or cannot be sent.
    """
    if spec.api_key_env is not None:
        key, where = os.environ.get(spec.api_key_env, ""), _variable(spec.api_key_env)
        advice = "Export it with the key of the endpoint; nothing has been asked yet."
    elif spec.api_key_secret is not None:
        key, where = _secret(spec.api_key_secret), _block(spec.api_key_secret)
        advice = "Save the key of the endpoint in it; nothing has been asked yet."
    else:
        return None
    key = key.strip()
    if not key:
        raise RecipeError(f"{where} is not set. {advice}")
    if not (key.isascii() and key.isprintable()):
        raise RecipeError(
            f"{where} holds characters that no HTTP header can carry. "
            f"{'Export' if spec.api_key_env else 'Save'} the key alone."
        )
    return key


def redact(text: str, key: str | None) -> str:
    """Return ``text`` from outside without ``key``, which servers like to quote in their errors.

    Replaced as it stands, quoted for a URL, and as the user or the password of a basic
    authorization.

    >>> redact("no such key: sk-1+2, sk-1%2B2", "sk-1+2")
    'no such key: [key], [key]'
    """
    if not key:
        return text
    for form in _forms(key):
        text = text.replace(form, _REDACTED)
    return text


def _forms(key: str) -> list[str]:
    """Return the ways in which a server may write ``key``, the longest first."""
    basic = [base64.b64encode(pair.encode()).decode() for pair in (key, f":{key}", f"{key}:")]
    quoted = [urllib.parse.quote(key, safe=safe) for safe in ("", "/")]
    plus = urllib.parse.quote_plus(key)
    return sorted({key, plus, *quoted, *basic}, key=len, reverse=True)


def _secret(name: str) -> str:
    if _read_secret is None:
        raise RecipeError(
            f"{_block(name)} cannot be read: secrets are Prefect's, and nothing here runs in a "
            "flow. Set teacher.api_key_env in its place, or call register_secret_reader."
        )
    return _read_secret(name)


def _variable(name: str) -> str:
    return f"the environment variable {name!r} (teacher.api_key_env)"


def _block(name: str) -> str:
    return f"the secret {name!r} (teacher.api_key_secret)"
