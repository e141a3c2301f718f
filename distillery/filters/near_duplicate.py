"""Prompts worded nearly like an earlier one: MinHash signatures whose bands meet in a table.

A row goes when an earlier row that is kept is too similar. So what is dropped always has its like
among what is kept, which a chain of pairwise likenesses would not promise, and filtering again
drops nothing more.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distillery.data.words import asked_text, runs, words_of
from distillery.filters.base import SetFilter
from schemas.filters import DropReason
from schemas.prompt_filters import NearDuplicateFilter

_SEED = 42
_BATCH_ROWS = 4096
# Of pairs right at the bound, so many share a band and are compared.
_RECALL = 0.99
# A bucket's first kept rows, with which a new one is compared. More only meet where a template
# makes thousands of rows half alike; rows that are alike enough meet in other buckets too.
_MOST_PER_BUCKET = 64

Bytes = npt.NDArray[np.uint8]
Words32 = npt.NDArray[np.uint32]
Words64 = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]


class NearDuplicate(SetFilter[NearDuplicateFilter]):
    """Drops rows whose wording is too similar to that of an earlier row that is kept."""

    reason = DropReason.NEAR_DUPLICATE

    def rows(self, sql: Any) -> Any:
        """Return the rows with a likeness among the kept ones before them."""
        signatures = self._signatures(sql)
        drops = near_duplicates(signatures, self.spec.max_similarity)
        return drop_relation(sql, drops, "worded like", "Jaccard index about")

    def _signatures(self, sql: Any) -> "Signatures":
        import rensa

        spec = self.spec
        [(num_rows,)] = sql.execute("SELECT count(*) FROM rows").fetchall()
        height = rows_per_band(spec.max_similarity, spec.num_permutations)
        made = Signatures.empty(num_rows, spec.num_permutations, height)
        start = 0
        for texts in asked_texts(sql):
            shingles = [_shingles(text, spec.shingle_words) for text in texts]
            digests = rensa.RMinHash.digests_from_token_sets(shingles, spec.num_permutations, _SEED)
            made.put(start, np.array(digests, np.uint32), height)
            start += len(texts)
        return made


class Signatures(NamedTuple):
    """What is kept of the MinHash signatures of N rows: 264 bytes a row by default."""

    low: Bytes
    """The lowest byte of each number, N x permutations: all that an estimate needs (Li and König
    2010, b-bit minwise hashing)."""

    bands: Words32
    """A hash of each band, N x bands: rows that agree in one are compared."""

    whole: Words64
    """A hash of the signature, N."""

    @classmethod
    def empty(cls, num_rows: int, num_permutations: int, height: int) -> "Signatures":
        """Return room for the signatures of so many rows."""
        return cls(
            low=np.empty((num_rows, num_permutations), np.uint8),
            bands=np.empty((num_rows, num_permutations // height), np.uint32),
            whole=np.empty(num_rows, np.uint64),
        )

    def put(self, start: int, digests: Words32, height: int) -> None:
        """Keep the signatures of the rows from ``start`` on."""
        rows = slice(start, start + len(digests))
        self.low[rows] = digests & 0xFF
        in_bands = digests[:, : self.bands.shape[1] * height].reshape(len(digests), -1, height)
        self.bands[rows] = _hashed(in_bands) >> np.uint64(32)
        self.whole[rows] = _hashed(digests)

    def similarity(self, row: int, others: Positions) -> npt.NDArray[np.float64]:
        """Return estimates of the Jaccard index of ``row`` and each of ``others``.

        Bytes agree by chance once in 256.
        """
        agreeing = (self.low[others] == self.low[row]).mean(axis=1)
        return np.asarray((agreeing - 1 / 256) / (1 - 1 / 256))


class Likeness(NamedTuple):
    """A row to drop, the kept one it is like, and how much."""

    position: int
    kept: int
    similarity: float


def near_duplicates(signatures: Signatures, max_similarity: float) -> list[Likeness]:
    """Return the rows to drop, in order, each with the most similar kept row before it."""
    _, firsts, same_as = np.unique(signatures.whole, return_index=True, return_inverse=True)
    first_of = firsts[same_as]  # the first row with the same signature
    likeness: dict[int, tuple[int, float]] = {}
    kept_in: defaultdict[int, list[int]] = defaultdict(list)
    for row, buckets in _in_buckets(signatures.bands, np.sort(firsts)):
        candidates = np.array(sorted({k for b in buckets for k in kept_in[b]}), np.int64)
        if len(candidates):
            similarities = signatures.similarity(row, candidates)
            best = int(similarities.argmax())
            if similarities[best] > max_similarity:
                likeness[row] = (int(candidates[best]), float(similarities[best]))
                continue
        for bucket in buckets:
            if len(kept_in[bucket]) < _MOST_PER_BUCKET:
                kept_in[bucket].append(row)
    repeated = np.flatnonzero(first_of != np.arange(len(first_of)))
    for row, first in zip(repeated.tolist(), first_of[repeated].tolist(), strict=True):
        likeness[row] = likeness.get(first, (first, 1.0))
    return [Likeness(row, *likeness[row]) for row in sorted(likeness)]


def rows_per_band(similarity: float, num_permutations: int) -> int:
    """Return the height of a band at which pairs of ``similarity`` share one almost surely.

    The highest one: the higher, the fewer pairs below it are compared in vain.

    >>> [rows_per_band(s, 128) for s in (0.5, 0.7, 0.8, 0.9)]
    [3, 4, 6, 10]
    """
    heights = [
        height
        for height in range(1, num_permutations + 1)
        if 1 - (1 - similarity**height) ** (num_permutations // height) >= _RECALL
    ]
    return max(heights, default=1)


def asked_texts(sql: Any, where: str = "true") -> Iterator[list[str]]:
    """Yield what the prompts of the table `rows` ask, those ``where`` it holds, in order."""
    query = f"SELECT messages FROM rows WHERE {where} ORDER BY rowid"
    for batch in sql.sql(query).to_arrow_reader(_BATCH_ROWS):
        yield [asked_text(messages) for messages in batch.column("messages").to_pylist()]


def drop_relation(sql: Any, drops: list[Likeness], says: str, measure: str) -> Any:
    """Return ``drops`` as the relation that a set filter returns; the details name the kept row."""
    columns = zip(*drops, strict=True) if drops else ([], [], [])
    names = ("position", "kept", "similarity")
    types = (pa.int64(), pa.int64(), pa.float64())
    arrays = [pa.array(list(c), t) for c, t in zip(columns, types, strict=True)]
    sql.register("likenesses", pa.table(arrays, names=list(names)))
    return sql.sql(f"""
        SELECT
            position,
            format('{says} {{}} row ''{{}}'', {measure} {{:.2f}}', split, prompt_id, similarity)
                AS detail,
            similarity AS score
        FROM likenesses JOIN rows ON rows.rowid = likenesses.kept
    """)


def _shingles(text: str, length: int) -> list[str]:
    words = words_of(text)
    return list(runs(words, length)) or [" ".join(words)]


def _hashed(values: Words32) -> Words64:
    """Return one 64-bit hash for each run of numbers along the last axis (FNV-1a, by words)."""
    hashed = np.full(values.shape[:-1], 0xCBF29CE484222325, np.uint64)
    for at in range(values.shape[-1]):
        hashed = (hashed ^ values[..., at]) * np.uint64(0x9E3779B97F4A7C15)
        hashed ^= hashed >> np.uint64(29)
    return hashed


def _in_buckets(bands: Words32, rows: npt.NDArray[Any]) -> Iterator[tuple[int, list[int]]]:
    """Yield of ``rows``, in order, those that share a bucket with another, and their buckets."""
    rows = rows.astype(np.int32)  # there are as many as bands and rows: half the memory counts
    found_rows, found_buckets, num_buckets = [rows[:0]], [rows[:0]], 0
    for band in range(bands.shape[1]):
        _, bucket, sizes = np.unique(bands[rows, band], return_inverse=True, return_counts=True)
        shared = sizes[bucket] > 1
        found_rows.append(rows[shared])
        found_buckets.append((bucket[shared] + num_buckets).astype(np.int32))
        num_buckets += len(sizes)
    all_rows, buckets = np.concatenate(found_rows), np.concatenate(found_buckets)
    del found_rows, found_buckets
    order = np.argsort(all_rows, kind="stable")
    all_rows, buckets = all_rows[order], buckets[order]
    del order
    ends = np.flatnonzero(np.diff(all_rows, append=-1)) + 1
    start = 0
    for end in ends.tolist():
        yield int(all_rows[start]), buckets[start:end].tolist()
        start = end
