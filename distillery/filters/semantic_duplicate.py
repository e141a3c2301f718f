"""Prompts that mean what an earlier one means."""

from typing import Any

import numpy as np

from distillery.filters.base import SetFilter
from distillery.filters.embedded import embedded_rows
from distillery.filters.near_duplicate import Likeness, drop_relation
from distillery.models.embedding import Vectors, check_embedding, embedding_identity
from schemas.filters import DropReason
from schemas.prompt_filters import SemanticDuplicateFilter

_BLOCK = 1024


class SemanticDuplicate(SetFilter[SemanticDuplicateFilter]):
    """Drops rows whose vector is too near to that of an earlier row that is kept."""

    reason = DropReason.SEMANTIC_DUPLICATE

    def check(self) -> None:
        """Refuse an encoder that is not there."""
        check_embedding(self.spec.embedding)

    def identity(self) -> str:
        """Return that of the encoder."""
        return embedding_identity(self.spec.embedding)

    def rows(self, sql: Any) -> Any:
        """Return the rows with a likeness among the kept ones before them."""
        with embedded_rows(sql, self.spec.embedding) as vectors:
            drops = semantic_duplicates(vectors, self.spec.max_similarity)
        return drop_relation(sql, drops, "means the same as", "cosine similarity")


def semantic_duplicates(vectors: Vectors, max_similarity: float) -> list[Likeness]:
    """Return the rows to drop, in order, each with the most similar kept row before it.

    Args:
        vectors: N x width, each of length one.
        max_similarity: Highest cosine that is kept.
    """
    drops: list[Likeness] = []
    kept = np.empty(0, np.int64)
    for start in range(0, len(vectors), _BLOCK):
        block = np.asarray(vectors[start : start + _BLOCK])
        best, similarity = _nearest(block, vectors, kept)
        within = block @ block.T
        kept_here: list[int] = []
        for row in range(len(block)):
            if kept_here:
                nearest = kept_here[int(within[row, kept_here].argmax())]
                if within[row, nearest] > similarity[row]:
                    best[row], similarity[row] = start + nearest, within[row, nearest]
            if similarity[row] > max_similarity:
                drops.append(Likeness(start + row, int(best[row]), float(similarity[row])))
            else:
                kept_here.append(row)
        kept = np.append(kept, np.array(kept_here, np.int64) + start)
    return drops


def _nearest(block: Vectors, vectors: Vectors, kept: Any) -> tuple[Any, Any]:
    """Return for each row of ``block`` the most similar of ``kept``, and how similar it is."""
    best, similarity = np.full(len(block), -1), np.full(len(block), -1.0)
    for start in range(0, len(kept), 8 * _BLOCK):
        some = kept[start : start + 8 * _BLOCK]
        found = block @ vectors[some].T
        at = found.argmax(axis=1)
        value = found[np.arange(len(block)), at]
        nearer = value > similarity
        best[nearer], similarity[nearer] = some[at[nearer]], value[nearer]
    return best, similarity
