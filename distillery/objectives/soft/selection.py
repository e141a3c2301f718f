"""Which tokens are kept of a teacher's probabilities: the likeliest, or draws.

C = response tokens of a chunk, K = kept tokens, V = vocabulary.
"""

import hashlib

import torch
from torch import Tensor

_LOWEST = float(torch.finfo(torch.float16).min)


def likeliest_tokens(
    logits_CV: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k likeliest tokens, their log-probabilities at T = 1, and the log of the rest.

    Args:
        logits_CV: float32; overwritten.
        k: How many.
        temperature: T of the rest, > 0.

    Returns:
        Ids [C, K], log-probabilities [C, K], and the log of the mass outside of them at T, [C].

    >>> logits = torch.tensor([[0.5, 0.1, 0.4]]).log()
    >>> ids, log_probs, log_rest = likeliest_tokens(logits, 2, 1.0)
    >>> ids.tolist()
    [[0, 2]]
    >>> torch.allclose(log_probs.exp(), torch.tensor([[0.5, 0.4]]))
    True
    >>> round(log_rest.exp().item(), 2)
    0.1
    """
    found_CK, ids_CK = logits_CV.topk(k)
    log_probs_CK = found_CK - logits_CV.logsumexp(-1, keepdim=True)
    return ids_CK, log_probs_CK, _log_rest(logits_CV, ids_CK, found_CK, temperature)


def draw_tokens(
    logits_CV: Tensor, numbers_CK: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return K draws with replacement from p(T): what was drawn, how often, and how likely it was.

    The expected count of a token is K p(T), so that a loss over counts is right on average.

    Args:
        logits_CV: float32; overwritten.
        numbers_CK: Uniform in [0, 1), float64: the random numbers of the draws.
        temperature: T > 0.

    Returns:
        Distinct ids [C, K] in ascending order, their log-probabilities at T [C, K], the log of the
        mass outside of them at T [C], and their counts [C, K]. Filling, where fewer than K are
        distinct, has the last id again, the lowest float16, and the count 0.

    Source: Anshumann et al. 2025, arXiv:2503.16870, section 4.
    """
    logits_CV /= temperature
    # In float64: a float32 sum over 151,936 tokens misses small probabilities.
    summed_CV = logits_CV.double().softmax(-1).cumsum_(-1)
    draws_CK = torch.searchsorted(summed_CV, numbers_CK * summed_CV[:, -1:], right=True)
    ids_CK, counts_CK = _distinct(draws_CK.clamp_(max=logits_CV.shape[-1] - 1))
    is_filling_CK = counts_CK == 0
    found_CK = logits_CV.gather(-1, ids_CK)
    log_probs_CK = found_CK - logits_CV.logsumexp(-1, keepdim=True)
    log_probs_CK.masked_fill_(is_filling_CK, _LOWEST)
    found_CK.masked_fill_(is_filling_CK, -torch.inf)
    return ids_CK, log_probs_CK, _log_rest(logits_CV, ids_CK, found_CK, 1.0), counts_CK


def uniform_numbers(prompt_id: str, seed: int, num_tokens: int, k: int) -> Tensor:
    """Return the random numbers of one row, [num_tokens, k] in [0, 1), float64 on the CPU.

    They follow from the row and the seed, so the draws do not depend on batches or devices.
    """
    digest = hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(num_tokens, k, generator=generator, dtype=torch.float64)


def _distinct(draws_CK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct draws of each token, ascending and filled up, and how often each is.

    >>> ids, counts = _distinct(torch.tensor([[7, 3, 7, 5]]))
    >>> ids.tolist(), counts.tolist()
    ([[3, 5, 7, 7]], [[1, 1, 2, 0]])
    """
    sorted_CK = draws_CK.sort(-1).values
    is_new_CK = torch.ones_like(sorted_CK, dtype=torch.bool)
    is_new_CK[:, 1:] = sorted_CK[:, 1:] != sorted_CK[:, :-1]
    places_CK = is_new_CK.cumsum(-1) - 1
    counts_CK = torch.zeros_like(sorted_CK).scatter_add_(-1, places_CK, torch.ones_like(sorted_CK))
    ids_CK = sorted_CK[:, -1:].repeat(1, sorted_CK.shape[-1]).scatter_(-1, places_CK, sorted_CK)
    return ids_CK, counts_CK


def _log_rest(logits_CV: Tensor, ids_CK: Tensor, found_CK: Tensor, temperature: float) -> Tensor:
    """Return the log of the mass at T that is not on ``ids_CK``; overwrites the logits.

    log(rest / (rest + kept)) = log sigmoid(log rest - log kept), which is exact to float32 where
    either of them is tiny; 1 - sum(kept) would not be.
    """
    rest_C = (logits_CV.scatter_(-1, ids_CK, -torch.inf) / temperature).logsumexp(-1)
    kept_C = (found_CK / temperature).logsumexp(-1)
    return torch.nn.functional.logsigmoid(rest_C - kept_C)
