"""Hashes of the rows of each split: what is asked or learnt, in order.

So a new training prompt makes nobody answer the test rows again.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from distillery.storage.fingerprint import canonical_json


class SplitHashes:
    """Hashes that grow row by row."""

    def __init__(self, splits: Sequence[str], column: str) -> None:
        """Start with no rows.

        Args:
            splits: The splits that get a hash, also where they have no rows.
            column: What counts beside id and messages: `references`, `response` or `cluster`.
        """
        self.columns = ["split", "prompt_id", "messages", column]
        self._hashes = {split: hashlib.sha256() for split in splits}

    def update(self, rows: Iterable[Sequence[Any]]) -> None:
        """Append rows, each with the values of `columns`; what is not text counts as nothing."""
        for split, *values in rows:
            text = canonical_json([value if isinstance(value, str) else None for value in values])
            self._hashes[split].update(f"{text}\n".encode("utf-8", "surrogatepass"))

    def hexdigests(self) -> dict[str, str]:
        """Return them, 64 hex digits each."""
        return {split: found.hexdigest() for split, found in self._hashes.items()}
