"""Scores of some rows, kept until all rows are scored: what a killed stage need not do again."""

import hashlib
import logging
from collections.abc import Sequence

from distillery.objectives.soft.targets import (
    ScoredRow,
    Scorer,
    ScoringRow,
    pack_rows,
    unpack_rows,
)
from distillery.storage.fingerprint import sha256
from distillery.storage.store import Store

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 32


class Parts:
    """Has rows scored, and keeps their scores as one file of the store.

    A file is named by its rows, what they say, and what they are scored with: rows that came out
    otherwise in the meantime, or a teacher whose template was changed, are scored anew. It begins
    with the SHA-256 of the rest, as Arrow reads damaged numbers without a word.
    """

    def __init__(self, store: Store, uri: str, scorer: Scorer) -> None:
        """Keep files below ``uri``."""
        self._store, self._uri, self._scorer = store, uri, scorer
        self.num_found, self._has_scored = 0, False

    def scored(self, rows: Sequence[ScoringRow]) -> list[ScoredRow]:
        """Return the scores of ``rows`` that fit, in order: found in the store, or made and kept.

        Errors are those of the scorer.
        """
        meta = self._scorer.meta
        uri = f"{self._uri}/{sha256([meta.model_dump(mode='json'), rows])}.arrow"
        packed = self._found(uri)
        if packed is not None:
            self.num_found += len(rows)
            return list(unpack_rows(packed, meta))
        if self.num_found and not self._has_scored:
            logger.info("scoring goes on; %d rows were scored before", self.num_found)
        self._has_scored = True
        scored = list(self._scorer.score(rows))
        packed = pack_rows(scored, meta)
        self._store.write_bytes(uri, hashlib.sha256(packed).digest() + packed)
        return scored

    def _found(self, uri: str) -> bytes | None:
        """Return what a file keeps; None where there is none, or it is damaged."""
        content = self._store.read_bytes(uri)
        if content is None:
            return None
        digest, packed = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(packed).digest() == digest:
            return packed
        logger.warning("%s is damaged; its rows are scored again", self._store.path(uri))
        return None
