"""How far apart sorted probabilities of student and teacher are, and the gradient, in place.

Two vocabularies have no tokens in common, but a distribution over either can be sorted: the
likeliest token's probability, the second's, and so on. Their distance is the Wasserstein distance
between the distributions where moving mass costs the same wherever it goes (ULD,
arXiv:2402.12030, proposition 2).

    L1 = Σ_{i ≤ K} |p_(i) - q_(i)| + |Σ_{i > K} p_(i) - Σ_{i > K} q_(i)|

with the K largest of both and what is left of either in one bucket: never more than the sum over
all ranks, and that very sum where K is the size of one of the vocabularies.

Both logits are divided by T. Far above 1 that makes probabilities alike in proportion to 1/T, and
so the gradient, so the loss is T · L1. (KL is quadratic in that difference, hence its T².) Beware
of such T where the vocabularies differ in size: both distributions are then nearly even, and what
is compared is 1 over the one size with 1 over the other, about which a student can do nothing.

Shapes: R = tokens of a block, M = those of them that are compared, V =
vocabulary of the student, K = ranks stored of the teacher's distribution, B = K and the bucket.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from distillery.objectives.divergence import cross_entropy, exponentiate
from schemas.objectives import CrossTokenizer

# In units of the last place: what a softmax of logits near 50 may be off by. A difference within it
# is none, as its sign would be noise at full strength.
_ROUNDING = 64


class SortedTargets(NamedTuple):
    """A teacher's largest probabilities and the mass of all others, at the temperature."""

    at_M: Tensor
    """int64, ascending: which response tokens are compared. The others, which begin at a byte where
    none of the teacher's does, learn from their labels alone."""
    log_p_MK: Tensor
    """float32, descending within a token."""
    log_rest_M: Tensor
    """float32, log of the mass outside the K; -inf where there is none."""
    log_rounding: float = 0.0
    """How far the logarithms of the K may be off, as a share of themselves."""

    def part(self, tokens: slice) -> "SortedTargets":
        """Return those of some response tokens."""
        edges = torch.tensor([tokens.start, tokens.stop], device=self.at_M.device)
        first, stop = torch.searchsorted(self.at_M, edges).tolist()
        part = slice(first, stop)
        return SortedTargets(
            self.at_M[part] - tokens.start,
            self.log_p_MK[part],
            self.log_rest_M[part],
            self.log_rounding,
        )


def differentiate_sorted(
    logits_RV: Tensor, labels_R: Tensor, spec: CrossTokenizer, known: SortedTargets, work_RV: Tensor
) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and L1 of tokens, and turn their logits into the gradient.

    The latter is that of hard_weight · CE + soft_weight · T · L1.

    Args:
        logits_RV: float32 or float64; overwritten.
        labels_R: int64, the tokens that the student is to write.
        spec: Weights and temperature.
        known: The teacher at these tokens; K is at most V.
        work_RV: A buffer, overwritten.

    >>> logits_RV = torch.tensor([[1.0, 3.0]]).log()  # q = 1/4, 3/4
    >>> half_MK = torch.tensor([[0.5, 0.5]]).log()
    >>> known = SortedTargets(torch.tensor([0]), half_MK, torch.tensor([-torch.inf]))
    >>> spec = CrossTokenizer(soft_weight=1, hard_weight=1e-9)
    >>> found = differentiate_sorted(logits_RV, torch.tensor([0]), spec, known, torch.empty(1, 2))
    >>> round(found[1].item(), 4)  # |3/4 - 1/2| + |1/4 - 1/2|
    0.5
    >>> logits_RV.round(decimals=4).tolist()  # q · (sign - Σ q · sign)
    [[-0.375, 0.375]]
    """
    at_M, log_p_MK, log_rest_M, log_rounding = known
    z_MV = work_RV[: len(at_M)]
    torch.index_select(logits_RV, 0, at_M, out=z_MV)
    hard_R = cross_entropy(logits_RV, labels_R, spec.hard_weight)
    soft_R = torch.zeros_like(hard_R)
    if len(at_M):
        z_MV.div_(spec.distillation_temperature)
        p_MB = torch.cat([log_p_MK, log_rest_M[:, None]], 1).to(z_MV.dtype).exp_()
        soft_R[at_M] = _compare(z_MV, p_MB, spec.soft_weight, log_rounding)
        logits_RV.index_add_(0, at_M, z_MV)
    return hard_R, soft_R


def _compare(z_MV: Tensor, p_MB: Tensor, scale: float, log_rounding: float) -> Tensor:
    """Return L1 of every token; scale · dL1/dz takes the place of z."""
    z_MK, ids_MK = z_MV.topk(p_MB.shape[1] - 1)
    # The others are summed without the K: 1 minus the K's sum would cancel to nothing.
    most_M1, sum_M1 = exponentiate(z_MV.scatter_(1, ids_MK, -math.inf))
    rest_M1 = most_M1 + sum_M1.log()
    lse_M1 = torch.logaddexp(z_MK.logsumexp(1, keepdim=True), rest_M1)
    q_MB = (torch.cat([z_MK, rest_M1], 1) - lse_M1).exp_()
    gap_MB = q_MB - p_MB
    rounding_MB = torch.maximum(p_MB, q_MB).mul_(_ROUNDING * torch.finfo(q_MB.dtype).eps)
    if log_rounding:
        # Of the K themselves, and of what all are divided by so that they keep their sum.
        p_MK = p_MB[:, :-1]
        off_MK = torch.special.entr(p_MK)
        off_MK.addcmul_(p_MK, off_MK.sum(1, keepdim=True))
        rounding_MB[:, :-1].add_(off_MK, alpha=log_rounding)
    gap_MB.masked_fill_(gap_MB.abs() <= rounding_MB, 0)
    slope_MB = gap_MB.sign()
    slope_MB -= (slope_MB * q_MB).sum(1, keepdim=True)
    slope_MB *= scale
    # Where there are no others, most is -inf, and so nothing.
    z_MV.mul_(slope_MB[:, -1:] * (most_M1 - lse_M1).exp())
    z_MV.scatter_(1, ids_MK, slope_MB[:, :-1] * q_MB[:, :-1])
    return gap_MB.abs_().sum(1)
