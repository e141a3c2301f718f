"""Rows as vectors, for the filters that go by what a prompt means."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from distillery.filters.near_duplicate import asked_texts
from distillery.models.embedding import Encoder, Vectors
from distillery.storage.scratch import scratch_folder
from schemas.filters import FilterSpec
from schemas.prompt_filters import EmbeddingModel


@contextlib.contextmanager
def embedded_rows(sql: Any, spec: EmbeddingModel, where: str = "true") -> Iterator[Vectors]:
    """Yield the vectors of the table `rows`, those ``where`` it holds; in a file, not in memory.

    N x width, each of length one.
    """
    [(num_rows,)] = sql.execute(f"SELECT count(*) FROM rows WHERE {where}").fetchall()
    encoder = Encoder.load(spec)
    width = encoder.model.config.hidden_size
    with scratch_folder("embedding") as scratch:
        vectors = np.memmap(
            scratch / "vectors.f32", np.float32, "w+", shape=(max(num_rows, 1), width)
        )[:num_rows]
        start = 0
        for texts in asked_texts(sql, where):
            vectors[start : start + len(texts)] = encoder.embed(texts)
            start += len(texts)
        yield vectors


def embedder(filters: FilterSpec) -> Callable[[Sequence[str]], Vectors] | None:
    """Return what makes vectors of texts by the first embedding model of ``filters``, or None.

    The model is loaded when it is called.
    """
    specs = [each.embedding for each in filters.prompts if hasattr(each, "embedding")]
    return (lambda texts: Encoder.load(specs[0]).embed(texts)) if specs else None
