"""What two tokenizers have to share so that their probabilities can be compared token by token."""

import json
from typing import Any

from distillery.storage.fingerprint import sha256
from schemas.errors import RecipeError


def tokenizer_hash(tokenizer: Any) -> str:
    """Return a hash of what token ids mean and how text is cut into them, 64 hex digits.

    Of the vocabulary (token to id, added tokens included) and of the backend's model (merges,
    scores). Chat template, padding and truncation are no part: they leave the ids' meaning alone.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = None if backend is None else json.loads(backend.to_str())["model"]
    return sha256({"vocabulary": tokenizer.get_vocab(), "model": model})


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the special tokens by their ids.

    Runs of white space are text, whatever a tokenizer's files say: some converters mark all added
    tokens as special, Gemma's line breaks and indents among them.
    """
    added = tokenizer.added_tokens_decoder.items()
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    found = {number: str(token) for number, token in added if token.special} | dict(named)
    return {number: token for number, token in found.items() if token.strip()}


def vocabulary_size(tokenizer: Any) -> int:
    """Return the range of token ids: the highest one plus 1.

    Logits beyond it are padding of the output layer (Qwen2.5 has 151,936 or 152,064 for the same
    151,665 tokens). ``len(tokenizer)`` is smaller where ids have holes, and would cut real tokens.
    """
    ids: dict[str, int] = tokenizer.get_vocab()
    return 1 + max(ids.values())


def known_vocabulary(tokenizer: Any, num_embeddings: int, *, role: str) -> int:
    """Return the range of token ids that a model both reads and writes.

    A special token that only others use (Gemma 3's for images) may lie beyond its embedding.

    Args:
        tokenizer: Its tokenizer, with a pad token.
        num_embeddings: Rows of its embedding.
        role: Whose it is, for the message.

    Raises:
        RecipeError: The tokenizer makes tokens that the model does not know.
    """
    size = vocabulary_size(tokenizer)
    if size <= num_embeddings:
        return size
    added, needed = tokenizer.added_tokens_decoder, {tokenizer.eos_token_id, tokenizer.pad_token_id}
    for token, number in tokenizer.get_vocab().items():
        is_idle = number in added and added[number].special and number not in needed
        if number >= num_embeddings and not is_idle:
            raise RecipeError(
                f"the {role} knows {num_embeddings} tokens, but its tokenizer has {size}, such as "
                f"{token!r} ({number}), which it could neither read nor write. Choose a model and "
                "a tokenizer that belong together."
            )
    return num_embeddings
