"""Fingerprints: one hash over everything that can change a result, and nothing else."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from schemas.errors import RecipeError

# Files of a model folder that decide what it computes and how text becomes tokens.
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")


_known_files: ContextVar[dict[Path, str] | None] = ContextVar("known_files", default=None)


def canonical_json(value: Any) -> str:
    """Return JSON text that is the same for equal values: sorted keys, no spaces, UTF-8 as it is.

    >>> canonical_json({"b": 1, "a": ["é", None]})
    '{"a":["é",null],"b":1}'
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256(value: Any) -> str:
    """Return the hex sha256 of the canonical JSON of ``value``.

    Lone surrogates, which JSON text may hold but UTF-8 may not, are hashed as they are.
    """
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def file_hash(path: Path) -> str:
    """Return the hex sha256 of a local file's bytes."""
    known = _known_files.get()
    if known is not None and path in known:
        return known[path]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if known is not None:
        known[path] = found
    return found


@contextlib.contextmanager
def reading_files_once() -> Iterator[None]:
    """Read each file once within the block: where many recipes name the same gigabytes."""
    token = _known_files.set({})
    try:
        yield
    finally:
        _known_files.reset(token)


def model_identity(model: str, revision: str | None, *, role: str) -> str:
    """Return what tells one set of weights and tokenizer from another.

    For a local folder the hash of its files (weights, configuration, tokenizer, chat template);
    for a hub model its id and commit hash.

    Raises:
        RecipeError: ``model`` is neither a folder with a model nor a hub id with a pinned revision.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        files = sorted({file for pattern in _MODEL_FILES for file in folder.glob(pattern)})
        if not any(file.suffix == ".json" for file in files):
            raise RecipeError(
                f"{role} folder {model!r} has no model in it (no config.json). Name the folder "
                "that save_pretrained wrote."
            )
        return sha256({file.name: file_hash(file) for file in files})
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise RecipeError(
            f"{role} {model!r} is neither an existing folder nor a hub id of the form owner/name. "
            f"Correct {role}.model."
        )
    if revision is None or not (len(revision) == 40 and set(revision) <= set("0123456789abcdef")):
        raise RecipeError(
            f"{role} {model!r} has no pinned revision ({revision!r}). A moving revision makes the "
            f"store serve another model's results. Set {role}.revision to a commit hash."
        )
    return f"{model}@{revision}"


def tokenizer_identity(tokenizer: str) -> str:
    """Return the hash of a tokenizer's local folder.

    Raises:
        RecipeError: There is no such folder; a hub id is not pinned, so it could change.
    """
    if not Path(tokenizer).expanduser().is_dir():
        raise RecipeError(
            f"student.tokenizer {tokenizer!r} is no existing folder. A tokenizer of the hub could "
            "change under you. Download it and name its folder."
        )
    return model_identity(tokenizer, None, role="student")
