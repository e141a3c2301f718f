"""Scores of some rows, kept until all rows are scored, so that a killed stage goes on from them."""

import hashlib
import logging
from collections.abc import Sequence

import pyarrow as pa

from distillery.objectives.soft.targets import Scorer, ScoringRow, to_batch
from distillery.storage.fingerprint import sha256
from distillery.storage.store import Store

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 32
_PACKING = pa.ipc.IpcWriteOptions(compression="zstd")


class Parts:
    """Has rows scored, and keeps their scores as one Arrow file of the store.

    A file is named by its rows, what they say, and what they are scored with: rows that have
    changed in the meantime are scored anew. It begins with the SHA-256 of the rest, as Arrow reads
    damaged numbers without noticing.
    """

    def __init__(self, store: Store, uri: str, scorer: Scorer) -> None:
        """Keep files below ``uri``."""
        self._store, self._uri, self._scorer = store, uri, scorer
        self.num_found = 0

    def scored(self, rows: Sequence[ScoringRow]) -> pa.RecordBatch:
        """Return the scores of ``rows`` that fit, in order: found in the store, or made and kept.

        Errors are those of the scorer.
        """
        meta = self._scorer.meta
        uri = f"{self._uri}/{sha256([meta.model_dump(mode='json'), rows])}.arrow"
        if packed := self._found(uri):
            self.num_found += len(rows)
            with pa.ipc.open_file(packed) as file:
                return file.get_batch(0)
        batch, sink = to_batch(list(self._scorer.score(rows)), meta), pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema, options=_PACKING) as file:
            file.write_batch(batch)
        packed = sink.getvalue().to_pybytes()
        self._store.write_bytes(uri, hashlib.sha256(packed).digest() + packed)
        return batch

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
