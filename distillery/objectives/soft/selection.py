"""Which tokens are kept of a teacher's probabilities: the likeliest.

C = response tokens of a chunk, K = kept tokens, V = vocabulary.
"""

import torch
from torch import Tensor


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


def _log_rest(logits_CV: Tensor, ids_CK: Tensor, found_CK: Tensor, temperature: float) -> Tensor:
    """Return the log of the mass at T that is not on ``ids_CK``; overwrites the logits.

    log(rest / (rest + kept)) = log sigmoid(log rest - log kept), which is exact to float32 where
    either of them is tiny; 1 - sum(kept) would not be.
    """
    rest_C = (logits_CV.scatter_(-1, ids_CK, -torch.inf) / temperature).logsumexp(-1)
    kept_C = (found_CK / temperature).logsumexp(-1)
    return torch.nn.functional.logsigmoid(rest_C - kept_C)
