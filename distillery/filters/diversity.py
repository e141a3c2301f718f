"""The training prompts that cover the others best: k-centre greedy."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from distillery.filters.base import SetFilter
from distillery.filters.embedded import embedded_rows
from distillery.filters.near_duplicate import Likeness, drop_relation
from distillery.models.embedding import Vectors, check_embedding, embedding_identity
from schemas.filters import DropReason
from schemas.prompt_filters import DiversityFilter

_OF_TRAIN = "split = 'train'"


class Diversity(SetFilter[DiversityFilter]):
    """Drops the training rows that the chosen ones stand for."""

    reason = DropReason.LESS_DIVERSE

    def check(self) -> None:
        """Refuse an encoder that is not there."""
        check_embedding(self.spec.embedding)

    def identity(self) -> str:
        """Return that of the encoder."""
        return embedding_identity(self.spec.embedding)

    def rows(self, sql: Any) -> Any:
        """Return the training rows that are not chosen, each with the chosen row nearest to it."""
        found = sql.execute(f"SELECT rowid FROM rows WHERE {_OF_TRAIN} ORDER BY rowid")
        of_train = found.fetchnumpy()["rowid"].astype(np.int64)
        keep = self.spec.keep
        num_kept = math.ceil(keep * len(of_train)) if keep < 1 else int(keep)
        if num_kept >= len(of_train):
            return drop_relation(sql, [], "", "")
        with embedded_rows(sql, self.spec.embedding, _OF_TRAIN) as vectors:
            chosen, similarity = k_centres(vectors, num_kept)
        drops = [
            Likeness(int(of_train[row]), int(of_train[centre]), float(similarity[row]))
            for row, centre in enumerate(chosen)
            if row != centre
        ]
        return drop_relation(sql, drops, "covered by", "cosine similarity")


def k_centres(
    vectors: Vectors, num_centres: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return for each row the chosen row that is nearest, itself where it is chosen, and how near.

    The first centre is the row nearest to the mean; then, again and again, the row that is
    farthest from all centres. Of equals the first in order.

    Args:
        vectors: N x width, each of length one.
        num_centres: Rows to choose, fewer than N.

    Returns:
        N positions of chosen rows, and N cosine similarities.
    """
    newest = int((vectors @ vectors.mean(axis=0, dtype=np.float64).astype(np.float32)).argmax())
    centre = np.full(len(vectors), newest, np.int64)
    similarity = np.full(len(vectors), -np.inf, np.float32)
    is_chosen = np.zeros(len(vectors), bool)
    for _ in range(num_centres):
        found = vectors @ vectors[newest]
        nearer = (found > similarity) & ~is_chosen
        similarity[nearer], centre[nearer] = found[nearer], newest
        similarity[newest], centre[newest], is_chosen[newest] = np.inf, newest, True
        newest = int(similarity.argmin())
    similarity[is_chosen] = 1.0
    return centre, similarity
