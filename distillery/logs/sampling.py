"""Which rows of a log are taken: by their topic, so that rare ones stay, or by chance."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.logs import LogSample

_BATCH_ROWS = 4096
_NUMBER = re.compile(r"\d+")
_FEATURES = 2**14
_FITTED_ROWS = 20_000

Texts = Callable[[], Iterator[str]]
"""Starts reading what the rows ask, from the first."""


def choose_rows(texts: Texts, num_rows: int, sample: LogSample, seed: int) -> npt.NDArray[np.bool_]:
    """Return which of ``num_rows`` rows are taken, the same ones for the same rows and seed.

    By cluster all clusters give as many rows as the smallest of them can, and so on until there
    are enough: a topic that is asked about once in ten thousand times is not lost among the others.
    """
    draws = _draws(seed, num_rows)
    if num_rows <= sample.rows:
        return np.ones(num_rows, bool)
    clusters = np.zeros(num_rows, np.int64)
    if sample.by == "cluster":
        clusters = cluster_rows(texts, num_rows, sample, seed)
    sizes = np.bincount(clusters)
    quotas = fair_quotas(sizes, sample.rows)
    order = np.lexsort((draws, clusters))
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(num_rows) - starts[clusters[order]]
    taken = np.zeros(num_rows, bool)
    taken[order] = rank < quotas[clusters[order]]
    return taken


def fair_quotas(sizes: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    """Return how many of ``total`` rows each cluster gives: as equally as their sizes allow.

    >>> fair_quotas(np.array([1, 100, 5]), 12).tolist()
    [1, 6, 5]
    """
    quotas, left = np.zeros_like(sizes), min(total, int(sizes.sum()))
    order = np.argsort(sizes, kind="stable")
    for position, cluster in enumerate(order):
        quotas[cluster] = min(sizes[cluster], left // (len(order) - position))
        left -= int(quotas[cluster])
    return quotas


def cluster_rows(
    texts: Texts, num_rows: int, sample: LogSample, seed: int
) -> npt.NDArray[np.int64]:
    """Return the cluster of each row: k-means over what it asks, in two passes over the log.

    Means are found on a random sample, then each row goes to the nearest. Rows are vectors of
    length one: by ``sample.model``, otherwise TF-IDF over runs of three characters, which works
    in any script; all numbers are one.

    Source: Sculley 2010, Web-scale k-means clustering (scikit-learn's MiniBatchKMeans).
    """
    from sklearn.cluster import MiniBatchKMeans

    fitted = np.sort(np.argsort(_draws(seed, num_rows))[:_FITTED_ROWS])
    is_fitted = np.zeros(num_rows, bool)
    is_fitted[fitted] = True
    num_clusters = min(sample.num_clusters, len(fitted))
    means = MiniBatchKMeans(num_clusters, random_state=seed, batch_size=_BATCH_ROWS, n_init=1)
    read = [text for text, here in zip(texts(), is_fitted, strict=True) if here]
    vectors = _vectors(sample, read)
    means.fit(vectors(read))
    found = [means.predict(vectors(batch)) for batch in _batches(texts())]
    return np.concatenate(found).astype(np.int64)


def _vectors(sample: LogSample, read: list[str]) -> Callable[[list[str]], Any]:
    """Return what makes vectors of length one of texts; how common a run is, ``read`` tells."""
    if sample.model is not None:
        from distillery.models.embedding import Encoder

        return Encoder.load(sample.model).embed
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.pipeline import make_pipeline

    runs = HashingVectorizer(
        n_features=_FEATURES,
        preprocessor=lambda text: _NUMBER.sub("0", text.casefold()),
        analyzer="char_wb",
        ngram_range=(3, 3),
        alternate_sign=False,
        norm=None,
    )
    weighted = make_pipeline(runs, TfidfTransformer(sublinear_tf=True))
    weighted.fit(read)
    transform: Callable[[list[str]], Any] = weighted.transform
    return transform


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _draws(seed: int, num_rows: int) -> npt.NDArray[np.float64]:
    """Return a random number for each row, the same ones for one seed."""
    return np.random.default_rng(seed).random(num_rows)
