"""Soft targets that no teacher made: random tokens with random probabilities, for their cost."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from distillery.data.chat import load_messages
from distillery.models.loading import ModelFiles
from distillery.models.vocabulary import tokenizer_hash
from distillery.objectives.soft.stored import ScoredRow, SoftTargetMeta, to_batch, write_targets
from distillery.storage.stage import Attempt, Stage
from distillery.storage.store import Store
from schemas.execution import StageName
from schemas.refs import DatasetRef

Spread = Literal["even", "zipf"]
"""How ids spread over the vocabulary. even: each as likely, the worst for compression. zipf: the
n-th as likely as 1/n, as in a BPE vocabulary, where the frequent tokens come first."""

_LOGIT_STD = 8.0  # the 64 likeliest of 151,936 tokens then hold 99 % of the mass, the first 57 %


def random_targets(
    num_tokens: int, *, vocab_size: int, k: int, spread: Spread, seed: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return ids [N, K], distinct within a token, their log-probabilities, and log_rest [N].

    The logits are those of the K highest of ``vocab_size`` normal draws, likeliest first.

    >>> ids_NK, log_p_NK, log_rest_N = random_targets(
    ...     5, vocab_size=1000, k=8, spread="zipf", seed=0
    ... )
    >>> all(len(set(row)) == 8 for row in ids_NK.tolist())
    True
    >>> bool(np.allclose(np.exp(log_p_NK).sum(1) + np.exp(log_rest_N), 1))
    True
    """
    from scipy.special import log_ndtr, logsumexp, ndtri

    draws = np.random.default_rng(seed)
    ids_NK = np.stack([_distinct(draws, vocab_size, k, spread) for _ in range(num_tokens)])
    # The highest of V draws without the others: sums of exponential gaps, as quantiles.
    gaps_NK = draws.exponential(size=(num_tokens, k)).cumsum(1) / vocab_size
    z_NK = ndtri(np.exp(-gaps_NK))
    # The sum of exp over the others hardly varies: V times the mean of it below the K-th.
    log_others_N = np.log(vocab_size) + _LOGIT_STD**2 / 2 + log_ndtr(z_NK[:, -1] - _LOGIT_STD)
    total_N = np.logaddexp(logsumexp(_LOGIT_STD * z_NK, axis=1), log_others_N)
    log_p_NK = (_LOGIT_STD * z_NK - total_N[:, None]).astype(np.float32)
    return ids_NK, log_p_NK, (log_others_N - total_N).astype(np.float32)


def _distinct(
    draws: np.random.Generator, vocab_size: int, k: int, spread: Spread
) -> npt.NDArray[np.int32]:
    """Return ``k`` different ids in the order of their draws."""
    found: npt.NDArray[Any] = np.empty(0, np.int64)
    while len(found) < k:
        uniform = draws.random(4 * k)
        # The inverse of the cumulative sum of 1/n, which is close to a logarithm.
        more = vocab_size * uniform if spread == "even" else (vocab_size + 1) ** uniform - 1
        found = np.concatenate([found, more.astype(np.int64)])
        _, first = np.unique(found, return_index=True)
        found = found[np.sort(first)]
    return found[:k].astype(np.int32)


def make_targets(store: Store, rows: DatasetRef, tokenizer: str, *, k: int) -> DatasetRef:
    """Return random soft targets for the responses of ``rows``, as a teacher's are kept."""
    chat_format = ModelFiles(tokenizer).chat_format()
    opened = chat_format.tokenizer
    meta = SoftTargetMeta(
        tokenizer_hash=tokenizer_hash(opened),
        distillation_temperature=1.0,
        k=k,
    )

    def scored() -> Iterator[ScoredRow]:
        for number, row in enumerate(store.dataset(rows).to_table().to_pylist()):
            tokens = chat_format.row(load_messages(row["messages"]), row["response"])
            response_ids = tokens.response_ids
            numbers = random_targets(
                len(response_ids), vocab_size=len(opened), k=k, spread="zipf", seed=number
            )
            yield ScoredRow(row["prompt_id"], row["split"], response_ids, *numbers)

    stage = Stage(StageName.SCORE_SOFT_TARGETS, 0, inputs={"rows": rows.fingerprint}, spec={"k": k})
    return write_targets(
        Attempt(store, stage, "made"), "soft_targets", [to_batch(list(scored()), meta)], meta
    )
