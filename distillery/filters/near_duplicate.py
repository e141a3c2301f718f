"""Prompts worded nearly like an earlier one: MinHash signatures whose bands meet in a table.

A row goes when an earlier row that is kept is too similar. So what is dropped always has its like
among what is kept, which a chain of pairwise likenesses would not promise, and filtering again
drops nothing more.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distillery.data.words import asked_text, runs, words_of
from distillery.filters.base import SetFilter
from distillery.storage.scratch import scratch_folder
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
        with scratch_folder("signatures") as folder:
            drops = near_duplicates(self._signatures(sql, folder), self.spec.max_similarity)
        return drop_relation(sql, drops, "worded like", "Jaccard index about")

    def _signatures(self, sql: Any, folder: Path) -> "Signatures":
        import rensa

        spec = self.spec
        height = rows_per_band(spec.max_similarity, spec.num_permutations)
        made = Signatures(folder, spec.num_permutations, height)
        for texts in asked_texts(sql):
            shingles = [_shingles(text, spec.shingle_words) for text in texts]
            digests = rensa.RMinHash.digests_from_token_sets(shingles, spec.num_permutations, _SEED)
            made.append(np.array(digests, np.uint32))
        return made


class Signatures:
    """What is kept of the MinHash signatures of N rows: 264 bytes a row by default, in files.

    Few rows share a band with another, and only those are ever compared, so memory holds little.
    """

    def __init__(self, folder: Path, num_permutations: int, height: int) -> None:
        """No row is there yet, and nothing in ``folder``."""
        self._folder, self._width, self._height = folder, num_permutations, height
        self.num_bands = num_permutations // height
        self._write("whole", np.empty(0, np.uint64))

    def append(self, digests: Words32) -> None:
        """Keep the signatures of the next rows, each N x permutations."""
        in_bands = digests[:, : self.num_bands * self._height]
        bands = _hashed(in_bands.reshape(len(digests), -1, self._height)) >> np.uint64(32)
        for number in range(self.num_bands):
            self._write(f"band-{number}", bands[:, number].astype(np.uint32))
        self._write("low", digests.astype(np.uint8))
        self._write("whole", _hashed(digests))

    def whole(self) -> Words64:
        """Return a hash of each signature, N."""
        return np.fromfile(self._folder / "whole", np.uint64)

    def band(self, number: int) -> Words32:
        """Return a hash of one band of each signature, N: rows that agree in it are compared."""
        return np.fromfile(self._folder / f"band-{number}", np.uint32)

    def low(self, rows: Positions) -> Bytes:
        """Return the lowest byte of each number of ``rows``, which ascend: rows x permutations.

        It is all that an estimate needs (Li and König 2010, b-bit minwise hashing).
        """
        found = [np.empty((0, self._width), np.uint8)]
        if len(rows):
            with (self._folder / "low").open("rb") as file:
                for start in range(0, int(rows[-1]) + 1, _BATCH_ROWS):
                    block = np.fromfile(file, np.uint8, _BATCH_ROWS * self._width)
                    first, end = np.searchsorted(rows, (start, start + _BATCH_ROWS))
                    found.append(block.reshape(-1, self._width)[rows[first:end] - start])
        return np.concatenate(found)

    def _write(self, name: str, numbers: npt.NDArray[Any]) -> None:
        with (self._folder / name).open("ab") as file:
            numbers.tofile(file)


class Likeness(NamedTuple):
    """A row to drop, the kept one it is like, and how much."""

    position: int
    kept: int
    similarity: float


def near_duplicates(signatures: Signatures, max_similarity: float) -> list[Likeness]:
    """Return the rows to drop, in order, each with the most similar kept row before it."""
    _, firsts, same_as = np.unique(signatures.whole(), return_index=True, return_inverse=True)
    first_of = firsts[same_as]  # the first row with the same signature
    rows, buckets_of = _in_buckets(signatures, np.sort(firsts))
    low = signatures.low(rows)
    likeness: dict[int, tuple[int, float]] = {}
    kept_in: defaultdict[int, list[int]] = defaultdict(list)  # places among `rows`
    for place, buckets in enumerate(buckets_of):
        candidates = np.array(sorted({k for b in buckets for k in kept_in[b]}), np.int64)
        if len(candidates):
            similarities = _similarities(low[place], low[candidates])
            best = int(similarities.argmax())
            if similarities[best] > max_similarity:
                likeness[int(rows[place])] = int(rows[candidates[best]]), float(similarities[best])
                continue
        for bucket in buckets:
            if len(kept_in[bucket]) < _MOST_PER_BUCKET:
                kept_in[bucket].append(place)
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


def _similarities(low: Bytes, others: Bytes) -> npt.NDArray[np.float64]:
    """Return estimates of the Jaccard index of one row and each of the others.

    Bytes agree by chance once in 256.
    """
    agreeing = (others == low).mean(axis=1)
    return np.asarray((agreeing - 1 / 256) / (1 - 1 / 256))


def _in_buckets(signatures: Signatures, rows: Positions) -> tuple[Positions, Iterator[list[int]]]:
    """Return those of ``rows``, in order, that share a bucket with another, and their buckets."""
    rows = rows.astype(np.int32)  # there are as many as bands and rows: half the memory counts
    found_rows, found_buckets, num_buckets = [rows[:0]], [rows[:0]], 0
    for number in range(signatures.num_bands):
        band = signatures.band(number)[rows]
        _, bucket, sizes = np.unique(band, return_inverse=True, return_counts=True)
        shared = sizes[bucket] > 1
        found_rows.append(rows[shared])
        found_buckets.append((bucket[shared] + num_buckets).astype(np.int32))
        num_buckets += len(sizes)
    all_rows, all_buckets = np.concatenate(found_rows), np.concatenate(found_buckets)
    del found_rows, found_buckets
    order = np.argsort(all_rows, kind="stable")
    all_rows, all_buckets = all_rows[order], all_buckets[order]
    del order
    found, starts = np.unique(all_rows, return_index=True)
    ends = [*starts[1:].tolist(), len(all_rows)]
    spans = zip(starts.tolist(), ends, strict=False)
    return found.astype(np.int64), (all_buckets[start:end].tolist() for start, end in spans)
