"""How far a student is from its labels and its teacher, and the gradient of that, in place.

Logits come in, and what they become is the gradient with respect to themselves: at 150,000 logits
a token, every further copy of them counts.

Shapes: N = response tokens, R = tokens of a block, V = vocabulary, K = tokens stored of a teacher's
distribution, B = K and one bucket for the rest.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from schemas.objectives import SoftTargets


class SparseTargets(NamedTuple):
    """A teacher's likeliest tokens and the mass of the others, at the distillation temperature."""

    ids_NK: Tensor
    """int64, distinct within a token."""
    log_p_NK: Tensor
    """float32, the teacher's log-probabilities of them."""
    log_rest_N: Tensor
    """float32, log of the mass outside the K; -inf where there is none."""


Known = SparseTargets | Tensor
"""What is known of a teacher: stored probabilities, or its logits."""

NUM_WORK = 3
"""How many buffers :func:`differentiate` needs, each as large as its logits."""


def needs_work(soft: SoftTargets | None, *, has_logits: bool) -> bool:
    """Return whether more buffers are needed than the logits' own."""
    return soft is not None and (has_logits or soft.distillation_temperature != 1)


def differentiate(
    logits_RV: Tensor,
    labels_R: Tensor,
    soft: SoftTargets | None,
    known: Known | None,
    work: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and divergence of tokens, and turn their logits into the gradient.

    The divergence is without T²; the gradient is that of hard_weight · CE + soft_weight · T² · D.

    Args:
        logits_RV: float32 or float64; overwritten.
        labels_R: int64, the tokens that the teacher wrote.
        soft: How to compare with the teacher. None: cross-entropy alone.
        known: The teacher, where there is ``soft``; logits are overwritten.
        work: NUM_WORK buffers [R, V], overwritten; none where :func:`needs_work` says so.

    >>> logits_RV = torch.tensor([[3.0, 1.0]]).log()  # q = 3/4, 1/4
    >>> teacher_RV = torch.tensor([[1.0, 1.0]]).log()  # p = 1/2, 1/2
    >>> soft = SoftTargets(soft_weight=1, hard_weight=0)
    >>> _, soft_R = differentiate(
    ...     logits_RV, torch.tensor([0]), soft, teacher_RV, list(torch.empty(3, 1, 2))
    ... )
    >>> round(soft_R.item(), 4), logits_RV.round(decimals=4).tolist()  # ln(4/3) / 2, and q - p
    (0.1438, [[0.25, -0.25]])
    """
    if soft is None:
        hard_R = cross_entropy(logits_RV, labels_R, 1.0)
        return hard_R, torch.zeros_like(hard_R)
    hard, scale = soft.hard_weight, soft.soft_weight
    if soft.distillation_temperature == 1:
        return _compare(logits_RV, labels_R, hard, scale, soft, known, work)
    at_one_RV = work[2].copy_(logits_RV)
    hard_R = cross_entropy(at_one_RV, labels_R, hard)
    # T² of the loss, over T for the logits that are divided by it.
    z_RV, scale = (
        logits_RV.div_(soft.distillation_temperature),
        scale * soft.distillation_temperature,
    )
    _, soft_R = _compare(z_RV, labels_R, 0.0, scale, soft, known, work)
    if hard:
        logits_RV += at_one_RV
    return hard_R, soft_R


def _compare(
    z_RV: Tensor,
    labels_R: Tensor,
    hard: float,
    scale: float,
    soft: SoftTargets,
    known: Known | None,
    work: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and divergence; hard · dCE/dz + scale · dD/dz takes the place of z."""
    if isinstance(known, SparseTargets):
        return _buckets(z_RV, labels_R, hard, scale, soft, known)
    assert known is not None
    return _whole(z_RV, labels_R, hard, scale, soft, known, work)


def cross_entropy(z_RV: Tensor, labels_R: Tensor, hard: float) -> Tensor:
    """Return the cross-entropy of every token; hard · dCE/dz takes the place of z."""
    z_R1 = z_RV.gather(1, labels_R[:, None])
    most_R1, sum_R1 = exponentiate(z_RV)
    z_RV.mul_(hard / sum_R1)
    _take_label(z_RV, labels_R, hard)
    return (most_R1 + sum_R1.log() - z_R1)[:, 0]


def _buckets(
    z_RV: Tensor,
    labels_R: Tensor,
    hard: float,
    scale: float,
    soft: SoftTargets,
    known: SparseTargets,
) -> tuple[Tensor, Tensor]:
    """Compare K tokens one by one, and all others as one bucket."""
    z_R1, z_RK = z_RV.gather(1, labels_R[:, None]), z_RV.gather(1, known.ids_NK)
    # The others are summed without the K: 1 minus the K's sum would cancel to nothing.
    most_R1, sum_R1 = exponentiate(z_RV.scatter_(1, known.ids_NK, -math.inf))
    rest_R1 = most_R1 + sum_R1.log()
    lse_R1 = torch.logaddexp(z_RK.logsumexp(1, keepdim=True), rest_R1)
    log_q_RB = torch.cat([z_RK, rest_R1], 1) - lse_R1
    log_p_RB = torch.cat([known.log_p_NK, known.log_rest_N[:, None]], 1).to(z_RV.dtype)
    work = [torch.empty_like(log_q_RB) for _ in range(2)]
    soft_R, slopes_RB = _divergence(soft, log_p_RB, log_q_RB, work)
    q_RK = log_q_RB[:, :-1]
    slope_R1 = scale * slopes_RB.sum(1, keepdim=True) - hard
    # A sum of exponentials of differences from the largest is 1 at least, or there are none.
    share_R1 = scale * slopes_RB[:, -1:] / sum_R1.clamp(min=1)
    z_RV.mul_(share_R1 - slope_R1 * (most_R1 - lse_R1).exp())
    z_RV.scatter_(1, known.ids_NK, scale * slopes_RB[:, :-1] - slope_R1 * q_RK)
    _take_label(z_RV, labels_R, hard)
    return (lse_R1 - z_R1)[:, 0], soft_R


def _whole(
    z_RV: Tensor,
    labels_R: Tensor,
    hard: float,
    scale: float,
    soft: SoftTargets,
    teacher_RV: Tensor,
    work: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Compare with all logits of a teacher."""
    torch.log_softmax(z_RV, 1, out=z_RV)
    torch.log_softmax(teacher_RV.div_(soft.distillation_temperature), 1, out=teacher_RV)
    hard_R = -z_RV.gather(1, labels_R[:, None])[:, 0]
    soft_R, slopes_RV = _divergence(soft, teacher_RV, z_RV, work[:2])
    slope_R1 = scale * slopes_RV.sum(1, keepdim=True) - hard
    z_RV.mul_(-slope_R1).add_(slopes_RV, alpha=scale)
    _take_label(z_RV, labels_R, hard)
    return hard_R, soft_R


def exponentiate(z_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Put exp(z - max z) in the place of z; return max z and the sum. No z: all are -inf."""
    most_R1 = z_RV.amax(1, keepdim=True)
    z_RV.sub_(torch.where(most_R1 == -math.inf, 0, most_R1)).exp_()
    return most_R1, z_RV.sum(1, keepdim=True)


def _take_label(gradient_RV: Tensor, labels_R: Tensor, hard: float) -> None:
    """Add what the cross-entropy's gradient has at the labels alone."""
    taken_R1 = torch.full_like(labels_R[:, None], -hard, dtype=gradient_RV.dtype)
    gradient_RV.scatter_add_(1, labels_R[:, None], taken_R1)


def _divergence(
    soft: SoftTargets, log_p: Tensor, log_q: Tensor, work: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the divergence of every row, and its derivatives with respect to log q.

    ``log_q`` becomes q; ``log_p`` and the two tensors of ``work`` are used up. The derivatives may
    be off by a multiple of q: through a softmax it has no effect.
    """
    # 0 · inf would be NaN. Where there is no mass, there is less than a float can hold.
    floor = math.log(torch.finfo(log_q.dtype).tiny)
    for logs in (log_p, log_q):
        logs.nan_to_num_(math.nan, math.inf, floor)
    gap, other = work
    if soft.divergence == "forward_kl":
        torch.sub(log_p, log_q, out=gap)
        log_q.exp_()
        return gap.mul_(log_p.exp_()).sum(1), log_p.neg_()
    if soft.divergence == "reverse_kl":
        torch.sub(log_q, log_p, out=gap)
        return gap.mul_(log_q.exp_()).sum(1), gap
    return _divergence_from_mixture(soft, log_p, log_q, gap, other)


def _divergence_from_mixture(
    soft: SoftTargets, log_p: Tensor, log_q: Tensor, gap: Tensor, other: Tensor
) -> tuple[Tensor, Tensor]:
    """Do the same for the divergences from m, a mixture of p and q."""
    share_p = {"jensen_shannon": soft.jsd_beta, "skew_forward_kl": soft.skew_alpha}.get(
        soft.divergence, 1 - soft.skew_alpha
    )
    torch.add(log_p, math.log(share_p), out=gap)
    torch.add(log_q, math.log1p(-share_p), out=other)
    log_m = torch.logaddexp(gap, other, out=gap)
    log_ratio = torch.sub(log_q, log_m, out=other)
    q = log_q.exp_()
    if soft.divergence == "skew_reverse_kl":
        bend = torch.exp(log_ratio, out=gap).mul_(q).mul_(share_p - 1)
        terms = log_ratio.mul_(q)
        return terms.sum(1), bend.add_(terms)
    terms = torch.sub(log_p, log_m, out=gap)
    p = log_p.exp_()
    from_p = terms.mul_(p).sum(1)
    if soft.divergence == "skew_forward_kl":
        return from_p, log_ratio.exp_().mul_(p).mul_(share_p - 1)
    terms = log_ratio.mul_(q).mul_(1 - share_p)
    return share_p * from_p + terms.sum(1), terms
