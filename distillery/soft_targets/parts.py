"""Scores of some rows, kept until all rows are scored: what a killed stage need not do again."""

import logging
from collections.abc import Sequence

import pyarrow as pa

from distillery.fingerprint import sha256
from distillery.soft_targets.storage import (
    ScoredRow,
    Scorer,
    ScoringRow,
    pack_rows,
    unpack_rows,
)
from distillery.store import Store

logger = logging.getLogger(__name__)


class Parts:
    """Has rows scored, and keeps their scores as one file of the store.

    A file is named by its rows, what they say, and what they are scored with: rows that came out
    otherwise in the meantime, or a teacher whose template was changed, are scored anew.
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
        content = self._store.read_bytes(uri)
        if content is not None:
            try:
                found = list(unpack_rows(content, meta))
            except pa.ArrowInvalid:
                logger.warning("%s is damaged; its rows are scored again", self._store.path(uri))
            else:
                self.num_found += len(rows)
                return found
        if self.num_found and not self._has_scored:
            logger.info("scoring goes on; %d rows were scored before", self.num_found)
        self._has_scored = True
        scored = list(self._scorer.score(rows))
        self._store.write_bytes(uri, pack_rows(scored, meta))
        return scored
