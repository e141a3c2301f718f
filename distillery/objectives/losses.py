"""The loss of a student at its response tokens, without ever making all of their logits.

The logits of a few thousand tokens are gigabytes where a vocabulary has 150,000 entries. Here they
are made for a chunk of tokens at a time, turned in place into the gradient with respect to
themselves, and passed on to the gradients of hidden states and output layer before the next chunk
needs the buffer. That takes the three matrix products of any output layer; what is left for
``backward`` is to scale.

Shapes: N = response tokens, C = tokens of a chunk, R = tokens of a block within a chunk, V = shared
vocabulary, D and E = width of student and teacher, K = tokens stored of a teacher's distribution.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distillery.models.head import ChunkedHead, Head
from distillery.objectives.divergence import (
    NUM_WORK,
    Known,
    SparseTargets,
    differentiate,
    needs_work,
)
from distillery.objectives.sorted_probabilities import SortedTargets, differentiate_sorted
from schemas.errors import InputDataError, TrainingError
from schemas.objectives import CrossTokenizer, SoftTargets

# Measured on two cores at vocabularies of 8,192 to 151,936: fewer tokens make slow products, more
# gain nothing. A block is small enough to stay in the cache while it is passed over many times.
_CPU_CHUNK_NUMEL, _CPU_CHUNK_TOKENS = 2**24, 512
_CPU_BLOCK_NUMEL = 2**20
_GPU_CHUNK_NUMEL, _GPU_CHUNK_TOKENS = 2**28, 4096
_GPU_BLOCK_NUMEL = 2**25
_LEAST_CHUNK_TOKENS = 64


class DenseTargets(NamedTuple):
    """A teacher that runs beside the student; no gradient reaches it."""

    hidden_NE: Tensor
    """Its hidden states before the output layer, at the same tokens."""
    head: Head
    """Its output layer."""


class MixedTargets(NamedTuple):
    """The weighted average of several teachers' probabilities; they run beside the student."""

    teachers: tuple[DenseTargets, ...]
    """At the same tokens."""
    weights: tuple[float, ...]
    """Theirs, which sum to 1."""


class Losses(NamedTuple):
    """The loss of some response tokens, and the sums that it is made of."""

    loss: Tensor
    """Differentiable scalar: (hard_weight · Σ CE + soft_weight · T² · Σ D) / normaliser; with T in
    place of T² for sorted probabilities, whose distance is no square."""
    hard_nats: Tensor
    """Detached float32 scalar, nats: Σ CE, the cross-entropy on the labels."""
    soft_nats: Tensor
    """Detached float32 scalar, nats: Σ D, without T². 0 with hard targets alone."""
    soft_nats_N: Tensor
    """The terms of that sum, token by token."""


Targets = SparseTargets | SortedTargets | DenseTargets | MixedTargets


def response_losses(
    hidden_ND: Tensor,
    head: Head,
    labels_N: Tensor,
    *,
    vocab_size: int,
    normaliser: Tensor | float,
    soft: SoftTargets | CrossTokenizer | None = None,
    targets: Targets | None = None,
    chunk_tokens: int | None = None,
) -> Losses:
    """Return the loss at N response tokens; its gradients are computed on the way.

    Products are made in the dtype of the hidden states (of autocast, where that is on and they are
    float32), everything after the logits in float32, or float64 for float64 hidden states. A
    second ``backward`` through the same loss is refused by PyTorch.

    Args:
        hidden_ND: The student's hidden states before its output layer.
        head: The student's output layer.
        labels_N: int64, the tokens that the teacher wrote.
        vocab_size: Tokens that student and teacher share. Logits beyond are padding of either
            model's vocabulary: cut off on both sides, and without a gradient.
        normaliser: What the sums are divided by: the response tokens of all micro-batches and
            processes of a step, so that the loss does not depend on how a step is split.
        soft: How the student is compared with the teacher. None: cross-entropy on the labels.
        targets: The teacher's probabilities; with ``soft``, and only with it.
        chunk_tokens: Tokens whose logits exist at a time. None: what suits the device.

    Raises:
        TrainingError: There is no response token.
        InputDataError: A label or an id of ``targets`` is not in the vocabulary.

    Sources: Hinton et al. 2015, arXiv:1503.02531, section 2, for T²; GKD, arXiv:2306.13649, for
    the generalised Jensen-Shannon divergence; DistiLLM, arXiv:2402.03898, for the skew KLs.

    >>> logits_NV = torch.tensor([[3.0, 1.0]]).log().requires_grad_()  # q = 3/4, 1/4
    >>> losses = response_losses(
    ...     logits_NV, Head(None), torch.tensor([0]), vocab_size=2, normaliser=1
    ... )
    >>> losses.loss.backward()
    >>> round(losses.hard_nats.item(), 4), logits_NV.grad.round(decimals=4).tolist()  # -ln(3/4)
    (0.2877, [[-0.25, 0.25]])
    """
    if not len(labels_N):
        raise TrainingError(
            "there is no response token to learn from, so the loss has no value. Leave out rows "
            "whose response is empty or cut off."
        )
    _check_ids("labels", labels_N, vocab_size)
    if isinstance(targets, SparseTargets):
        _check_ids("soft targets", targets.ids_NK, vocab_size)
    inputs = (hidden_ND, *head)
    wanted = [t is not None and t.requires_grad and torch.is_grad_enabled() for t in inputs]
    chunk = min(chunk_tokens or default_chunk_tokens(vocab_size, hidden_ND.device), len(labels_N))
    with torch.no_grad():
        student = ChunkedHead(hidden_ND, head, vocab_size, chunk, wanted)
        teacher: _Teacher | None = None
        if isinstance(targets, DenseTargets):
            teacher = ChunkedHead(*targets, vocab_size, chunk)
        elif isinstance(targets, MixedTargets):
            teacher = _MixedHead(targets, vocab_size, chunk)
        elif targets is not None:
            teacher = targets
        with torch.autocast(hidden_ND.device.type, enabled=False):
            hard_N, soft_N = _run(student, labels_N, chunk, soft, teacher)
    # Summed at the end, so that the sums do not depend on the chunks.
    total = hard_nats = hard_N.sum()
    soft_nats = soft_N.sum()
    if soft is not None:
        power = 1 if isinstance(soft, CrossTokenizer) else 2
        total = (
            soft.hard_weight * hard_nats
            + soft.soft_weight * soft.distillation_temperature**power * soft_nats
        )
    if any(wanted):
        total = _WithGradients.apply(total, *student.gradients, *inputs)  # type: ignore[no-untyped-call]
    return Losses(total / normaliser, hard_nats, soft_nats, soft_N)


def default_chunk_tokens(vocab_size: int, device: torch.device) -> int:
    """Return how many tokens' logits exist at a time: 64 MiB of them, or 1 GiB on a GPU.

    >>> [default_chunk_tokens(151_936, torch.device(name)) for name in ("cpu", "cuda")]
    [110, 1766]
    """
    numel, most = _GPU_CHUNK_NUMEL, _GPU_CHUNK_TOKENS
    if device.type == "cpu":
        numel, most = _CPU_CHUNK_NUMEL, _CPU_CHUNK_TOKENS
    return max(_LEAST_CHUNK_TOKENS, min(most, numel // vocab_size))


def _check_ids(name: str, ids: Tensor, vocab_size: int) -> None:
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        raise InputDataError(
            f"{name} have token {int(outside[0])}, outside the vocabulary of {vocab_size} tokens. "
            "Use labels and soft targets made with the student's tokenizer, at response tokens."
        )


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *tensors: Tensor | None) -> Tensor:
        """Return the loss; ``tensors`` are its gradients, then what they belong to."""
        gradients, inputs = tensors[:3], tensors[3:]
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if t is None else t.dtype for t in inputs]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients, scaled in place: the one of the output layer is large."""
        found = [
            None if gradient is None else gradient.mul_(upstream).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (None, None, None, None, *found)


class _MixedHead:
    """Makes the logarithm of an average of probabilities, a chunk of tokens at a time."""

    def __init__(self, targets: MixedTargets, vocab_size: int, chunk: int) -> None:
        self._heads = [ChunkedHead(*each, vocab_size, chunk) for each in targets.teachers]
        self._log_weights = [math.log(weight) for weight in targets.weights]

    def logits(self, rows: slice) -> Tensor:
        """Return log Σ wᵢ pᵢ of some tokens, in the buffer that the next call uses again."""
        mixed_CV: Tensor | None = None
        for head, log_weight in zip(self._heads, self._log_weights, strict=True):
            logits_CV = head.logits(rows)
            log_p_CV = torch.log_softmax(logits_CV, 1, out=logits_CV).add_(log_weight)
            if mixed_CV is None:
                mixed_CV = log_p_CV
            else:
                torch.logaddexp(mixed_CV, log_p_CV, out=mixed_CV)
        assert mixed_CV is not None
        return mixed_CV


_Teacher = SparseTargets | SortedTargets | ChunkedHead | _MixedHead


def _run(
    student: ChunkedHead,
    labels_N: Tensor,
    chunk: int,
    soft: SoftTargets | CrossTokenizer | None,
    teacher: _Teacher | None,
) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and divergence of every token; gradients are left with the student."""
    # Preallocated: small tensors that stay between large ones that go would scatter the heap.
    hard_N, soft_N = student.empty(2, len(labels_N))
    block = min(chunk, _block_tokens(labels_N.device, student.vocab_size))
    if isinstance(soft, CrossTokenizer):
        num_work = 1
    else:
        has_logits = isinstance(teacher, ChunkedHead | _MixedHead)
        num_work = NUM_WORK if needs_work(soft, has_logits=has_logits) else 0
    work = [student.empty(block, student.vocab_size) for _ in range(num_work)]
    for rows in _slices(0, len(labels_N), chunk):
        logits_CV = student.logits(rows)
        teacher_CV = None
        if isinstance(teacher, ChunkedHead | _MixedHead):
            teacher_CV = teacher.logits(rows)
        for part in _slices(rows.start, rows.stop, block):
            inside = slice(part.start - rows.start, part.stop - rows.start)
            buffers = [buffer_RV[: part.stop - part.start] for buffer_RV in work]
            if isinstance(soft, CrossTokenizer):
                assert isinstance(teacher, SortedTargets)
                hard_N[part], soft_N[part] = differentiate_sorted(
                    logits_CV[inside], labels_N[part], soft, teacher.part(part), buffers[0]
                )
                continue
            known: Known | None = None if teacher_CV is None else teacher_CV[inside]
            if isinstance(teacher, SparseTargets):
                known = SparseTargets(*(tensor[part] for tensor in teacher))
            hard_N[part], soft_N[part] = differentiate(
                logits_CV[inside], labels_N[part], soft, known, buffers
            )
        student.add_gradients(rows, logits_CV)
    return hard_N, soft_N


def _slices(start: int, stop: int, step: int) -> Iterator[slice]:
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def _block_tokens(device: torch.device, vocab_size: int) -> int:
    """Return how many tokens' logits are compared at a time, with all that this makes of them."""
    return max(1, (_CPU_BLOCK_NUMEL if device.type == "cpu" else _GPU_BLOCK_NUMEL) // vocab_size)
