"""The endpoint's key: read by name when it is needed, and kept out of everything that is kept."""

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
        key = os.environ.get(spec.api_key_env, "")
        where, put = (
            f"the environment variable {spec.api_key_env!r} (teacher.api_key_env)",
            "Export",
        )
    elif spec.api_key_secret is not None:
        key, put = _secret(spec.api_key_secret), "Save"
        where = f"the secret {spec.api_key_secret!r} (teacher.api_key_secret)"
    else:
        return None
    key = key.strip()
    if not key:
        raise RecipeError(f"{where} is not set. {put} the key; nothing has been asked yet.")
    if not (key.isascii() and key.isprintable()):
        raise RecipeError(
            f"{where} holds characters that no HTTP header can carry. {put} the key alone."
        )
    return key


def redact(text: str, key: str | None) -> str:
    """Return ``text`` from outside without ``key``, which servers like to quote in their errors.

    Replaced as it stands and as a URL or a form quotes it.

    >>> redact("no such key: sk-1+2, sk-1%2B2", "sk-1+2")
    'no such key: [key], [key]'
    """
    for form in _forms(key) if key else ():
        text = text.replace(form, _REDACTED)
    return text


def _forms(key: str) -> set[str]:
    """Return the ways in which a server may write ``key``; none is a part of another."""
    return {key, urllib.parse.quote(key), urllib.parse.quote_plus(key)}


def _secret(name: str) -> str:
    if _read_secret is None:
        raise RecipeError(
            f"the secret {name!r} (teacher.api_key_secret) cannot be read: secrets are Prefect's, "
            "and nothing here runs in a flow. Set teacher.api_key_env in its place, or call "
            "register_secret_reader."
        )
    return _read_secret(name)
