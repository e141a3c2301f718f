"""Every loss against a dense formula in float64, in value and gradient."""

import itertools
from typing import Any, NamedTuple, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distillery.models.head import Head
from distillery.objectives.divergence import SparseTargets
from distillery.objectives.losses import DenseTargets, Losses, MixedTargets, response_losses
from distillery.objectives.sorted_probabilities import SortedTargets
from schemas.errors import InputDataError, TrainingError
from schemas.objectives import CrossTokenizer, DivergenceName, SoftTargets

DIVERGENCES = get_args(DivergenceName)
FORWARD_KL = SoftTargets(hard_weight=0, soft_weight=1)
PROPERTY = settings(max_examples=20, deadline=None)

softs = st.builds(
    SoftTargets,
    divergence=st.sampled_from(DIVERGENCES),
    jsd_beta=st.floats(0.1, 0.9),
    skew_alpha=st.floats(0.1, 0.9),
    distillation_temperature=st.sampled_from([1.0, 0.5, 2.0, 8.0]),
    soft_weight=st.sampled_from([1.0, 0.3]),
    hard_weight=st.sampled_from([0.0, 0.7]),
)
seeds = st.integers(0, 2**31)


def changed(soft: SoftTargets, **settings: Any) -> SoftTargets:
    return soft.model_copy(update=settings)


class Case(NamedTuple):
    """A student that learns, a teacher, and labels: N tokens, V of the vocabulary, D wide."""

    hidden_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor
    teacher_NE: Tensor
    teacher_VE: Tensor
    labels_N: Tensor

    @property
    def vocab_size(self) -> int:
        return len(self.weight_VD)

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        return self[:3]

    def losses(self, soft: SoftTargets | None, targets: Any, **options: Any) -> Losses:
        head = Head(self.weight_VD, self.bias_V)
        options = {"vocab_size": self.vocab_size, "normaliser": 1.0} | options
        return response_losses(
            self.hidden_ND, head, self.labels_N, soft=soft, targets=targets, **options
        )

    def dense(self) -> DenseTargets:
        return DenseTargets(self.teacher_NE, Head(self.teacher_VE))

    def sparse(self, soft: SoftTargets, k: int) -> SparseTargets:
        log_p_NV = self.log_p(soft)
        log_p_NK, ids_NK = log_p_NV.topk(k)
        rest_NV = log_p_NV.scatter(1, ids_NK, -torch.inf)
        return SparseTargets(ids_NK, log_p_NK, rest_NV.logsumexp(1))

    def log_p(self, soft: SoftTargets) -> Tensor:
        return (self.teacher_NE @ self.teacher_VE.T / soft.distillation_temperature).log_softmax(1)


def make_case(
    seed: int, *, tokens: int = 5, vocab_size: int = 23, dtype: torch.dtype = torch.float64
) -> Case:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=random, dtype=torch.float64) * scale).to(dtype)

    return Case(
        normal(tokens, 4).requires_grad_(),
        normal(vocab_size, 4).requires_grad_(),
        normal(vocab_size).requires_grad_(),
        normal(tokens, 3, scale=2),
        normal(vocab_size, 3),
        torch.randint(vocab_size, (tokens,), generator=random),
    )


def reference(case: Case, soft: SoftTargets, ids_NK: Tensor | None = None) -> Tensor:
    """Return the loss by its definition; with ids, of those tokens and one bucket for the rest."""
    logits_NV = case.hidden_ND @ case.weight_VD.T + case.bias_V
    hard = torch.nn.functional.cross_entropy(logits_NV, case.labels_N, reduction="sum")
    q = (logits_NV / soft.distillation_temperature).softmax(1)
    p = case.log_p(soft).exp()
    if ids_NK is not None:
        p, q = (
            torch.cat([x.gather(1, ids_NK), x.scatter(1, ids_NK, 0).sum(1, keepdim=True)], 1)
            for x in (p, q)
        )
    distance = divergence_by_definition(soft, p, q)
    return soft.hard_weight * hard + soft.soft_weight * soft.distillation_temperature**2 * distance


def divergence_by_definition(soft: SoftTargets, p: Tensor, q: Tensor) -> Tensor:
    def kl(one: Tensor, other: Tensor) -> Tensor:
        return (one * (one / other).log()).sum()

    beta, alpha = soft.jsd_beta, soft.skew_alpha
    if soft.divergence == "forward_kl":
        return kl(p, q)
    if soft.divergence == "reverse_kl":
        return kl(q, p)
    if soft.divergence == "jensen_shannon":
        m = beta * p + (1 - beta) * q
        return beta * kl(p, m) + (1 - beta) * kl(q, m)
    if soft.divergence == "skew_forward_kl":
        return kl(p, alpha * p + (1 - alpha) * q)
    return kl(q, (1 - alpha) * p + alpha * q)


def gradients(loss: Tensor, case: Case) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, case.parameters)


def assert_same(found: Any, expected: Any, *, rtol: float = 1e-8, atol: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def assert_same_loss(case: Case, losses: Losses, expected: Tensor) -> None:
    """Check value and gradients, of hidden states, weight and bias."""
    assert_same(losses.loss, expected)
    assert_same(gradients(losses.loss, case), gradients(expected, case))


# 1. Zero, with zero gradient, when the student equals the teacher.


@PROPERTY
@given(seed=seeds, soft=softs, k=st.sampled_from([None, 1, 5, 23]))
def test_student_that_equals_its_teacher_has_no_loss_and_no_gradient(
    seed: int, soft: SoftTargets, k: int | None
) -> None:
    drawn = make_case(seed, dtype=torch.float32)
    bias_V = torch.zeros_like(drawn.bias_V).requires_grad_()
    case = drawn._replace(teacher_NE=drawn[0].detach(), teacher_VE=drawn[1].detach(), bias_V=bias_V)
    soft = changed(soft, hard_weight=0.0)
    targets = case.dense() if k is None else case.sparse(soft, k)
    losses = case.losses(soft, targets)
    # Rounding of float32, by T².
    bound = 1e-5 * max(1.0, soft.distillation_temperature**2)
    assert abs(losses.loss.item()) < bound
    assert max(g.abs().max().item() for g in gradients(losses.loss, case)) < bound


# 2. Equal to the reference; sparse equals dense at k = V, and grows towards it with k.


@PROPERTY
@given(seed=seeds, soft=softs, chunk=st.integers(1, 6))
def test_dense_loss_is_the_reference(seed: int, soft: SoftTargets, chunk: int) -> None:
    case = make_case(seed)
    losses = case.losses(soft, case.dense(), chunk_tokens=chunk)
    assert_same_loss(case, losses, reference(case, soft))


@PROPERTY
@given(seed=seeds, soft=softs, k=st.integers(1, 22), chunk=st.integers(1, 6))
def test_sparse_loss_is_the_reference_with_a_bucket_for_the_rest(
    seed: int, soft: SoftTargets, k: int, chunk: int
) -> None:
    case = make_case(seed)
    targets = case.sparse(soft, k)
    losses = case.losses(soft, targets, chunk_tokens=chunk)
    assert_same_loss(case, losses, reference(case, soft, targets.ids_NK))


@PROPERTY
@given(seed=seeds, soft=softs)
def test_sparse_loss_of_all_tokens_is_the_dense_one(seed: int, soft: SoftTargets) -> None:
    case = make_case(seed)
    targets = case.sparse(soft, case.vocab_size)
    assert torch.isneginf(targets.log_rest_N).all()
    assert_same_loss(case, case.losses(soft, targets), reference(case, soft))


@PROPERTY
@given(seed=seeds, soft=softs)
def test_sparse_loss_is_a_lower_bound_that_grows_with_k(seed: int, soft: SoftTargets) -> None:
    case = make_case(seed)
    by_k = [case.losses(soft, case.sparse(soft, k)).soft_nats.item() for k in (1, 2, 4, 8, 16, 23)]
    assert by_k == sorted(by_k)
    assert by_k[0] < by_k[-1]
    assert by_k[-1] == pytest.approx(case.losses(soft, case.dense()).soft_nats.item())


@PROPERTY
@given(seed=seeds, chunk=st.integers(1, 6))
def test_hard_loss_is_the_cross_entropy(seed: int, chunk: int) -> None:
    case = make_case(seed)
    losses = case.losses(None, None, chunk_tokens=chunk)
    logits_NV = case.hidden_ND @ case.weight_VD.T + case.bias_V
    expected = torch.nn.functional.cross_entropy(logits_NV, case.labels_N, reduction="sum")
    assert_same_loss(case, losses, expected)
    assert losses.soft_nats == 0


@PROPERTY
@given(seed=seeds, soft=softs)
def test_parts_are_told_apart_and_add_up(seed: int, soft: SoftTargets) -> None:
    case = make_case(seed)
    losses = case.losses(soft, case.dense(), normaliser=3.0)
    assert_same(losses.hard_nats, case.losses(None, None).loss.detach())
    soft_part = soft.soft_weight * soft.distillation_temperature**2 * losses.soft_nats
    assert_same(losses.loss.detach(), (soft.hard_weight * losses.hard_nats + soft_part) / 3)
    assert not losses.hard_nats.requires_grad and not losses.soft_nats.requires_grad


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_tokens_without_mass_in_the_teacher_give_no_nan(divergence: DivergenceName) -> None:
    soft = changed(FORWARD_KL, divergence=divergence)
    case = make_case(0, dtype=torch.float32)
    sparse = case.sparse(soft, 3)
    no_rest = sparse._replace(log_rest_N=torch.full_like(sparse.log_rest_N, -torch.inf))
    dense = DenseTargets(
        case.log_p(soft).masked_fill(case.log_p(soft) < -3, -torch.inf), Head(None)
    )
    for targets in (no_rest, dense):
        losses = case.losses(soft, targets)
        assert losses.loss.isfinite()
        assert all(g.isfinite().all() for g in gradients(losses.loss, case))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_tokens_without_mass_in_the_student_give_no_nan(divergence: DivergenceName) -> None:
    soft = changed(FORWARD_KL, divergence=divergence)
    case = make_case(0, dtype=torch.float32)
    sparse = case.sparse(soft, 3)
    # All that is left of the student are the teacher's 3, as after a mask on its logits.
    logits_NV = torch.full((5, 23), -torch.inf).scatter(1, sparse.ids_NK, 0.0).requires_grad_()
    losses = response_losses(
        logits_NV, Head(None), sparse.ids_NK[:, 0], vocab_size=23, normaliser=1, soft=soft,
        targets=sparse,
    )  # fmt: skip
    (gradient_NV,) = torch.autograd.grad(losses.loss, logits_NV)
    assert losses.loss.isfinite() and gradient_NV.isfinite().all()
    assert gradient_NV.gather(1, sparse.ids_NK).any()


def test_nan_in_the_student_is_not_hidden() -> None:
    case = make_case(0)
    case.hidden_ND.data[2, 1] = torch.nan
    for targets in (case.dense(), SparseTargets(*make_case(0).sparse(FORWARD_KL, 3))):
        losses = case.losses(FORWARD_KL, targets)
        assert losses.loss.isnan() and losses.soft_nats.isnan()


# 3. Invariant to order, chunks, micro-batches and padding of the vocabulary.


@PROPERTY
@given(seed=seeds, soft=softs, is_sparse=st.booleans(), chunk=st.integers(1, 9))
def test_order_and_chunks_do_not_matter(
    seed: int, soft: SoftTargets, is_sparse: bool, chunk: int
) -> None:
    case = make_case(seed, tokens=8)
    order_N = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    mixed = case._replace(
        hidden_ND=case.hidden_ND[order_N],
        teacher_NE=case.teacher_NE[order_N],
        labels_N=case.labels_N[order_N],
    )

    def loss(of: Case, **options: int) -> Losses:
        return of.losses(soft, of.sparse(soft, 5) if is_sparse else of.dense(), **options)

    expected = loss(case).loss
    found = loss(mixed, chunk_tokens=chunk).loss
    assert_same(found, expected)
    assert_same(gradients(found, case), gradients(expected, case))


@PROPERTY
@given(seed=seeds, soft=softs, is_sparse=st.booleans(), parts=st.sampled_from([1, 2, 8]))
def test_micro_batches_add_up_to_the_batch(
    seed: int, soft: SoftTargets, is_sparse: bool, parts: int
) -> None:
    case = make_case(seed, tokens=16)
    # Of different sizes, so that averages of averages would differ.
    cuts = sorted({0, 16, *torch.randperm(15, generator=torch.Generator().manual_seed(seed))
                   .add(1)[: parts - 1].tolist()})  # fmt: skip
    assert len(cuts) == parts + 1

    def loss(start: int, stop: int) -> Tensor:
        of = case._replace(
            hidden_ND=case.hidden_ND[start:stop],
            teacher_NE=case.teacher_NE[start:stop],
            labels_N=case.labels_N[start:stop],
        )
        targets = of.sparse(soft, 5) if is_sparse else of.dense()
        return of.losses(soft, targets, normaliser=torch.tensor(16)).loss

    whole = loss(0, 16)
    pieces = [loss(start, stop) for start, stop in itertools.pairwise(cuts)]
    assert_same(sum(pieces), whole)
    summed = [sum(g) for g in zip(*(gradients(piece, case) for piece in pieces), strict=True)]
    assert_same(summed, list(gradients(whole, case)))


def padded(tensor: Tensor, size: int) -> Tensor:
    """Return more rows, with values that would matter if they were looked at."""
    more = torch.full((size - len(tensor), *tensor.shape[1:]), 3.0, dtype=tensor.dtype)
    return torch.cat([tensor.detach(), more]).requires_grad_(tensor.requires_grad)


@PROPERTY
@given(
    seed=seeds,
    soft=st.none() | softs,
    k=st.sampled_from([None, 5, 23]),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_padding_of_either_vocabulary_does_not_matter(
    seed: int, soft: SoftTargets | None, k: int | None, padding: tuple[int, int]
) -> None:
    case = make_case(seed)
    wide = case._replace(
        weight_VD=padded(case.weight_VD, 23 + padding[0]),
        bias_V=padded(case.bias_V, 23 + padding[0]),
        teacher_VE=padded(case.teacher_VE, 23 + padding[1]),
    )
    expected, found = (
        of.losses(
            soft,
            None if soft is None else case.sparse(soft, k) if k else of.dense(),
            vocab_size=23,
        ).loss
        for of in (case, wide)
    )
    assert_same(found, expected)
    hidden_ND, weight_VD, bias_V = gradients(found, wide)
    assert_same((hidden_ND, weight_VD[:23], bias_V[:23]), gradients(expected, case))
    assert not weight_VD[23:].any() and not bias_V[23:].any()


@pytest.mark.parametrize("is_sparse", [True, False])
def test_one_family_with_two_paddings_of_one_tokenizer(is_sparse: bool) -> None:
    tokenizer_size, student_size, teacher_size = 151_665, 151_936, 152_064
    random = torch.Generator().manual_seed(0)
    same_VD = torch.randn(tokenizer_size, 2, generator=random)
    hidden_ND = torch.randn(7, 2, generator=random)
    labels_N = torch.randint(tokenizer_size, (7,), generator=random)
    weight_VD = padded(same_VD, student_size).requires_grad_()
    logits_NV = hidden_ND @ same_VD.T
    targets: Any = DenseTargets(hidden_ND, Head(padded(same_VD, teacher_size)))
    if is_sparse:
        log_p_NV = logits_NV.log_softmax(1)
        log_p_NK, ids_NK = log_p_NV.topk(64)
        rest_N = log_p_NV.scatter(1, ids_NK, -torch.inf).logsumexp(1)
        targets = SparseTargets(ids_NK, log_p_NK, rest_N)
    losses = response_losses(
        hidden_ND,
        Head(weight_VD),
        labels_N,
        vocab_size=tokenizer_size,
        normaliser=7,
        soft=FORWARD_KL,
        targets=targets,
        chunk_tokens=5,  # a chunk of several blocks, and a part of one
    )
    losses.loss.backward()
    assert weight_VD.grad is not None
    assert abs(losses.loss.item()) < 1e-5
    assert weight_VD.grad.abs().max() < 1e-5
    assert not weight_VD.grad[tokenizer_size:].any()
    hard = torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum")
    assert losses.hard_nats.item() == pytest.approx(hard.item(), rel=1e-5)


# 4. T² keeps the size of gradients, and the reported loss is the one that is differentiated.


@PROPERTY
@given(seed=seeds, divergence=st.sampled_from(DIVERGENCES), is_sparse=st.booleans())
def test_gradients_at_8_and_16_are_of_one_size(
    seed: int, divergence: DivergenceName, is_sparse: bool
) -> None:
    drawn = make_case(seed, tokens=8)
    # T² is right where T is large beside the logits: these are about 0.3, not 2 to 4.
    case = drawn._replace(
        hidden_ND=(drawn.hidden_ND.detach() / 8).requires_grad_(),
        bias_V=(drawn.bias_V.detach() / 8).requires_grad_(),
        teacher_NE=drawn.teacher_NE / 16,
    )
    norms = []
    for temperature in (8.0, 16.0):
        soft = changed(FORWARD_KL, divergence=divergence, distillation_temperature=temperature)
        targets = case.sparse(soft, 12) if is_sparse else case.dense()
        norms.append(gradients(case.losses(soft, targets).loss, case)[0].norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


@PROPERTY
@given(seed=seeds, soft=st.none() | softs, k=st.sampled_from([None, 4, 23]))
def test_reported_loss_is_the_one_that_is_differentiated(
    seed: int, soft: SoftTargets | None, k: int | None
) -> None:
    case = make_case(seed)
    targets: Any = None
    if soft is not None:
        targets = case.sparse(soft, k) if k else case.dense()

    def value(step: float, along: list[Tensor]) -> float:
        moved = [p.detach() + step * d for p, d in zip(case.parameters, along, strict=True)]
        at = Case(moved[0], moved[1], moved[2], *case[3:])
        return at.losses(soft, targets, normaliser=5).loss.item()

    random = torch.Generator().manual_seed(seed)
    along = [torch.randn(p.shape, generator=random, dtype=p.dtype) for p in case.parameters]
    found = gradients(case.losses(soft, targets, normaliser=5).loss, case)
    slope = sum((g * d).sum().item() for g, d in zip(found, along, strict=True))
    by_differences = (value(1e-5, along) - value(-1e-5, along)) / 2e-5
    assert slope == pytest.approx(by_differences, rel=1e-5, abs=1e-6)


# 5. What cannot count is refused.


def test_no_response_token_is_refused() -> None:
    case = make_case(0)._replace(hidden_ND=torch.zeros(0, 4), labels_N=torch.zeros(0).long())
    with pytest.raises(TrainingError, match="no response token"):
        case.losses(None, None)


@pytest.mark.parametrize("token", [-100, 20, 23])
def test_tokens_outside_the_shared_vocabulary_are_refused(token: int) -> None:
    case = make_case(0)
    targets = case.sparse(FORWARD_KL, 3)
    case.labels_N.fill_(0)
    targets.ids_NK.clamp_(max=19)[2, 1] = token
    with pytest.raises(InputDataError, match=f"soft targets have token {token}, outside .* of 20"):
        case.losses(FORWARD_KL, targets, vocab_size=20)
    case.labels_N[3] = token
    with pytest.raises(InputDataError, match=f"labels have token {token}, outside"):
        case.losses(None, None, vocab_size=20)


# 6. Never more than one chunk of logits.


class LargestTensor(TorchDispatchMode):
    """Keeps the largest number of values that any operation made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return made


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_no_operation_makes_more_than_a_chunk_of_logits(
    divergence: DivergenceName, temperature: float
) -> None:
    soft = SoftTargets(divergence=divergence, distillation_temperature=temperature)
    case = make_case(0, tokens=64, vocab_size=500, dtype=torch.float32)
    for targets in (case.sparse(soft, 8), case.dense(), mixed(case, 0.5)[0], None):
        for chunk in (1, 8):
            with LargestTensor() as largest:
                losses = case.losses(soft if targets else None, targets, chunk_tokens=chunk)
                gradients(losses.loss, case)
            # The output layer and its gradient, 4 wide, are as large as a chunk of 4 tokens.
            assert 500 * 4 <= largest.numel <= 500 * max(chunk, 4)


@pytest.mark.parametrize("chunk", [1, 8])
def test_nor_do_sorted_probabilities(chunk: int) -> None:
    case = make_case(0, tokens=64, vocab_size=500, dtype=torch.float32)
    log_p_NK = torch.randn(64, 8).log_softmax(1)
    targets = SortedTargets(torch.arange(64), log_p_NK, torch.full((64,), -torch.inf), 2**-10)
    with LargestTensor() as largest:
        losses = response_losses(
            case.hidden_ND, Head(case.weight_VD), case.labels_N, vocab_size=500, normaliser=1,
            soft=CrossTokenizer(k=8), targets=targets, chunk_tokens=chunk,
        )  # fmt: skip
        losses.loss.backward()
    assert 500 * 4 <= largest.numel <= 500 * max(chunk, 4)


# Several teachers: the average of their probabilities.


def mixed(case: Case, weight: float) -> tuple[MixedTargets, Tensor]:
    """Return the case's teacher and another, and log Σ w p by the formula."""
    second = make_case(99, tokens=len(case.labels_N), vocab_size=case.vocab_size).dense()
    parts = []
    for each, share in ((case.dense(), weight), (second, 1 - weight)):
        assert each.head.weight_VD is not None
        parts.append(share * (each.hidden_NE @ each.head.weight_VD.T).softmax(1))
    return MixedTargets((case.dense(), second), (weight, 1 - weight)), sum(parts).log()  # type: ignore[union-attr]


@PROPERTY
@given(seed=seeds, soft=softs, weight=st.floats(0.05, 0.95), chunk=st.integers(1, 6))
def test_the_average_of_teachers_is_compared_as_one_teacher_with_its_logarithm_as_logits(
    seed: int, soft: SoftTargets, weight: float, chunk: int
) -> None:
    case = make_case(seed)
    targets, log_p_NV = mixed(case, weight)
    as_one = case._replace(teacher_NE=log_p_NV, teacher_VE=torch.eye(23, dtype=torch.float64))
    losses = case.losses(soft, targets, chunk_tokens=chunk)
    assert_same_loss(case, losses, reference(as_one, soft))


@pytest.mark.parametrize("temperature", [1.0, 8.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_student_equal_to_the_average_has_no_loss_and_no_gradient(
    divergence: DivergenceName, temperature: float
) -> None:
    case = make_case(5)
    targets, log_p_NV = mixed(case, 0.3)
    soft = changed(FORWARD_KL, divergence=divergence, distillation_temperature=temperature)
    logits_NV = log_p_NV.clone().requires_grad_()
    loss = response_losses(
        logits_NV, Head(None), case.labels_N, vocab_size=23, normaliser=1, soft=soft,
        targets=targets,
    ).loss  # fmt: skip
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert float(torch.autograd.grad(loss, logits_NV)[0].abs().max()) < 1e-9


# Precision, and what needs no gradient.


@PROPERTY
@given(seed=seeds, soft=st.none() | softs, k=st.sampled_from([None, 4]))
def test_logits_in_place_of_hidden_states_give_the_same(
    seed: int, soft: SoftTargets | None, k: int | None
) -> None:
    case = make_case(seed)
    targets: Any = None
    if soft is not None:
        targets = case.sparse(soft, k) if k else case.dense()
    expected = case.losses(soft, targets).loss
    if isinstance(targets, DenseTargets):
        targets = DenseTargets(case.teacher_NE @ case.teacher_VE.T, Head(None))
    logits_NV = case.hidden_ND @ case.weight_VD.T + case.bias_V
    of = case._replace(hidden_ND=torch.nn.functional.pad(logits_NV, (0, 3), value=9.0))
    found = response_losses(
        of.hidden_ND, Head(None), case.labels_N, vocab_size=23, normaliser=1, soft=soft,
        targets=targets, chunk_tokens=2,
    ).loss  # fmt: skip
    assert_same(found, expected)
    assert_same(gradients(found, case), gradients(expected, case))


@pytest.mark.parametrize("is_sparse", [True, False])
@pytest.mark.parametrize("hidden_dtype", [torch.bfloat16, torch.float32])
def test_half_precision_stays_within_its_rounding(
    hidden_dtype: torch.dtype, is_sparse: bool
) -> None:
    exact = make_case(1, tokens=40)
    soft = SoftTargets(distillation_temperature=2.0)
    expected = reference(exact, soft)
    case = exact._replace(
        hidden_ND=exact.hidden_ND.detach().to(hidden_dtype).requires_grad_(),
        weight_VD=exact.weight_VD.detach().float().requires_grad_(),
        bias_V=exact.bias_V.detach().float().requires_grad_(),
    )
    targets = exact.sparse(soft, 23) if is_sparse else exact.dense()
    # As in training: float32 weights, and bfloat16 products, by the hidden states or autocast.
    with torch.autocast("cpu", torch.bfloat16, enabled=hidden_dtype == torch.float32):
        losses = case.losses(soft, targets, chunk_tokens=3)
    plain = case.losses(soft, targets, chunk_tokens=3)
    assert torch.equal(plain.loss, losses.loss) == (hidden_dtype == torch.bfloat16)
    assert losses.loss.dtype == losses.hard_nats.dtype == torch.float32
    assert losses.loss.item() == pytest.approx(expected.item(), rel=0.01)
    found = gradients(losses.loss, case)
    assert [g.dtype for g in found] == [hidden_dtype, torch.float32, torch.float32]
    for gradient, right in zip(found, gradients(expected, exact), strict=True):
        assert (gradient - right).norm() < 0.02 * right.norm()
    assert not torch.equal(found[1], found[1].bfloat16().float())  # summed in float32


class CountProducts(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("learns_hidden", "learns_weight", "products"), [(True, True, 3), (True, False, 2),
                                                     (False, True, 2), (False, False, 1)]
)  # fmt: skip
def test_only_the_gradients_that_are_needed_are_computed(
    learns_hidden: bool, learns_weight: bool, products: int
) -> None:
    drawn = make_case(0)
    targets = drawn.sparse(FORWARD_KL, 3)
    wanted = gradients(drawn.losses(FORWARD_KL, targets).loss, drawn)
    case = drawn._replace(
        hidden_ND=drawn.hidden_ND.detach().requires_grad_(learns_hidden),
        weight_VD=drawn.weight_VD.detach().requires_grad_(learns_weight),
        bias_V=drawn.bias_V.detach(),
    )
    with CountProducts() as count:
        loss = case.losses(FORWARD_KL, targets).loss
    assert count.products == products
    assert loss.requires_grad == (learns_hidden or learns_weight)
    if loss.requires_grad:
        loss.backward()
    for tensor, right in zip(case.parameters[:2], wanted[:2], strict=True):
        if tensor.requires_grad:
            assert tensor.grad is not None
            assert_same(tensor.grad, right)
        else:
            assert tensor.grad is None


def test_evaluation_computes_the_loss_alone() -> None:
    case = make_case(0)
    expected = case.losses(FORWARD_KL, case.dense())
    with torch.no_grad(), CountProducts() as count:
        losses = case.losses(FORWARD_KL, case.dense())
    assert count.products == 2  # student's and teacher's logits
    assert_same(losses.loss, expected.loss.detach())
    assert not losses.loss.requires_grad


def test_inputs_are_left_as_they_were() -> None:
    case = make_case(0)
    soft = changed(FORWARD_KL, distillation_temperature=2.0)
    logits = DenseTargets(case.teacher_NE @ case.teacher_VE.T, Head(None))
    sparse = case.sparse(soft, 3)
    before = [tensor.clone() for tensor in (*case, logits.hidden_NE, *sparse)]
    for targets in (logits, sparse):
        case.losses(soft, targets).loss.backward()
    assert_same([*case, logits.hidden_NE, *sparse], before, rtol=0, atol=0)


def test_second_backward_is_refused_and_not_wrong() -> None:
    case = make_case(0)
    loss = case.losses(None, None).loss
    gradients(loss * 3, case)
    with pytest.raises(RuntimeError, match="second time"):
        gradients(loss, case)
