"""What two tokenizers have to share so that their probabilities can be compared token by token."""

import json
from typing import Any

from distillery.storage.fingerprint import sha256


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a hash of what token ids mean and how text is cut into them, 64 hex digits.

    Of the vocabulary (token to id, added tokens included) and of the backend's model (merges,
    scores). Chat template, padding and truncation are no part: they leave the ids' meaning alone.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = None if backend is None else json.loads(backend.to_str())["model"]
    return sha256({"vocabulary": tokenizer.get_vocab(), "model": model})


def template_hash(tokenizer: Any) -> str:
    """Return a hash of the chat template, 64 hex digits."""
    return sha256(tokenizer.chat_template)


def vocabulary_size(tokenizer: Any) -> int:
    """Return the range of token ids: the highest one plus 1.

    Logits beyond it are padding of the output layer (Qwen2.5 has 151,936 or 152,064 for the same
    151,665 tokens). ``len(tokenizer)`` is smaller where ids have holes, and would cut real tokens.
    """
    ids: dict[str, int] = tokenizer.get_vocab()
    return 1 + max(ids.values())
