"""The distance of sorted probabilities against its definition in float64, value and gradient."""

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distillery.models.head import Head
from distillery.objectives.losses import Losses, response_losses
from distillery.objectives.soft.stored import STORED_ROUNDING, at_temperature
from distillery.objectives.sorted_probabilities import SortedTargets
from schemas.objectives import CrossTokenizer

VOCABULARY, TEACHERS = 23, 31
PROPERTY = settings(max_examples=20, deadline=None)
SPEC = CrossTokenizer(soft_weight=1, hard_weight=0.7)
seeds = st.integers(0, 2**31)
specs = st.builds(
    CrossTokenizer,
    distillation_temperature=st.sampled_from([1.0, 0.5, 2.0, 8.0]),
    soft_weight=st.sampled_from([1.0, 0.3]),
    hard_weight=st.sampled_from([0.1, 0.7]),
)


class Case(NamedTuple):
    """A student of 23 tokens, a teacher of 31, and which of 8 response tokens are compared."""

    hidden_ND: Tensor
    weight_VD: Tensor
    labels_N: Tensor
    at_M: Tensor
    teacher_MW: Tensor
    """Logits."""

    def targets(self, spec: CrossTokenizer, k: int) -> SortedTargets:
        z_MW = self.teacher_MW / spec.distillation_temperature
        log_p_MW = z_MW.log_softmax(1).sort(1, descending=True).values
        return SortedTargets(self.at_M, log_p_MW[:, :k], log_p_MW[:, k:].logsumexp(1))

    def losses(self, spec: CrossTokenizer, k: int, **options: Any) -> Losses:
        options = {"vocab_size": VOCABULARY, "normaliser": 1.0} | options
        head, targets = Head(self.weight_VD), self.targets(spec, k)
        return response_losses(
            self.hidden_ND, head, self.labels_N, soft=spec, targets=targets, **options
        )

    def reference(self, spec: CrossTokenizer) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy and the distance over all ranks, the shorter side filled up."""
        logits_NV = self.hidden_ND @ self.weight_VD.T
        hard = torch.nn.functional.cross_entropy(logits_NV, self.labels_N, reduction="sum")
        both = [
            (z / spec.distillation_temperature).softmax(1).sort(1, descending=True).values
            for z in (self.teacher_MW, logits_NV[self.at_M])
        ]
        size = max(p.shape[1] for p in both)
        p, q = (torch.nn.functional.pad(p, (0, size - p.shape[1])) for p in both)
        return hard, (p - q).abs().sum()

    def gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, (self.hidden_ND, self.weight_VD))


def make_case(seed: int, *, tokens: int = 8, teachers: int = TEACHERS, scale: float = 2.0) -> Case:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    is_compared = torch.rand(tokens, generator=random) < 0.7
    is_compared[0] = True
    return Case(
        (scale * normal(tokens, 4)).requires_grad_(),
        normal(VOCABULARY, 4).requires_grad_(),
        torch.randint(VOCABULARY, (tokens,), generator=random),
        is_compared.nonzero()[:, 0],
        2 * scale * normal(int(is_compared.sum()), teachers),
    )


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@PROPERTY
@given(seed=seeds, spec=specs, chunk=st.integers(1, 9), teachers=st.sampled_from([17, 23, 31]))
def test_with_all_ranks_it_is_the_definition(
    seed: int, spec: CrossTokenizer, chunk: int, teachers: int
) -> None:
    case = make_case(seed, teachers=teachers)
    losses = case.losses(spec, min(teachers, VOCABULARY), chunk_tokens=chunk)
    hard, soft = case.reference(spec)
    assert_same(losses.hard_nats, hard.detach())
    assert_same(losses.soft_nats, soft.detach())
    expected = spec.hard_weight * hard + spec.soft_weight * spec.distillation_temperature * soft
    assert_same(losses.loss, expected)
    assert_same(case.gradients(losses.loss), case.gradients(expected))


@PROPERTY
@given(seed=seeds, spec=specs)
def test_fewer_ranks_are_a_lower_bound_that_grows(seed: int, spec: CrossTokenizer) -> None:
    case = make_case(seed)
    by_k = [case.losses(spec, k).soft_nats.item() for k in (1, 2, 4, 8, 16, VOCABULARY)]
    for fewer, more in itertools.pairwise(by_k):
        assert fewer <= more + 1e-12
    assert by_k[-1] == pytest.approx(case.reference(spec)[1].item())


@PROPERTY
@given(seed=seeds, k=st.integers(1, VOCABULARY), temperature=st.sampled_from([0.5, 1.0, 4.0]))
def test_fewer_ranks_have_the_gradient_of_their_value(
    seed: int, k: int, temperature: float
) -> None:
    case = make_case(seed)
    spec = SPEC.model_copy(update={"distillation_temperature": temperature})
    loss = case.losses(spec, k).loss
    slope_ND, _ = case.gradients(loss)
    along_ND = torch.randn(
        slope_ND.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )

    def value(step: float) -> float:
        moved = case._replace(hidden_ND=case.hidden_ND.detach() + step * along_ND)
        return moved.losses(spec, k).loss.item()

    by_differences = (value(1e-6) - value(-1e-6)) / 2e-6
    assert (slope_ND * along_ND).sum().item() == pytest.approx(by_differences, rel=1e-4, abs=1e-4)


@PROPERTY
@given(seed=seeds, k=st.integers(1, VOCABULARY), spec=specs)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_student_like_its_teacher_has_neither_distance_nor_gradient(
    dtype: torch.dtype, seed: int, k: int, spec: CrossTokenizer
) -> None:
    """Though it has the teacher's probabilities at other tokens."""
    drawn = make_case(seed)
    logits_NV = (drawn.hidden_ND @ drawn.weight_VD.T).detach().to(dtype)
    order_V = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(seed))
    targets = drawn._replace(teacher_MW=logits_NV[drawn.at_M][:, order_V]).targets(spec, k)
    logits_NV.requires_grad_()
    with_soft, without = (
        response_losses(
            logits_NV, Head(None), drawn.labels_N, vocab_size=VOCABULARY, normaliser=1,
            soft=of, targets=targets,
        )
        for of in (spec, spec.model_copy(update={"soft_weight": 1e-12}))
    )  # fmt: skip
    assert with_soft.soft_nats == 0
    slopes = [torch.autograd.grad(losses.loss, logits_NV) for losses in (with_soft, without)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0, atol=1e-6)


@PROPERTY
@given(seed=seeds, k=st.integers(1, VOCABULARY), spec=specs, cold=st.sampled_from([None, 0.1]))
def test_nor_has_one_whose_teacher_was_stored_in_16_bits(
    seed: int, k: int, spec: CrossTokenizer, cold: float | None
) -> None:
    """The sign of a rounding error would be a gradient at full strength."""
    spec = spec.model_copy(update={"distillation_temperature": cold} if cold else {})
    rounding = STORED_ROUNDING / min(1.0, spec.distillation_temperature)
    drawn = make_case(seed)
    logits_NV = (drawn.hidden_ND @ drawn.weight_VD.T).detach().float()
    log_p_MV = logits_NV[drawn.at_M].log_softmax(1).sort(1, descending=True).values
    at_T_MV = (log_p_MV / spec.distillation_temperature).log_softmax(1)
    rest_M = at_T_MV[:, k:].logsumexp(1)
    stored = at_temperature(log_p_MV[:, :k].half(), rest_M, spec.distillation_temperature)
    targets = SortedTargets(drawn.at_M, *stored, log_rounding=rounding)
    losses = response_losses(
        logits_NV, Head(None), drawn.labels_N, vocab_size=VOCABULARY, normaliser=1,
        soft=spec, targets=targets,
    )  # fmt: skip
    assert losses.soft_nats < 1e-5  # at T = 0.1 float32 itself is off by more than 64 ulp
    apart = drawn._replace(teacher_MW=logits_NV[drawn.at_M] * 1.05).targets(spec, k)
    moved = response_losses(
        logits_NV, Head(None), drawn.labels_N, vocab_size=VOCABULARY, normaliser=1,
        soft=spec, targets=apart._replace(log_rounding=rounding),
    )  # fmt: skip
    assert moved.soft_nats > 0


@PROPERTY
@given(seed=seeds, spec=specs, chunk=st.integers(1, 9), k=st.sampled_from([3, VOCABULARY]))
def test_order_and_chunks_do_not_matter(
    seed: int, spec: CrossTokenizer, chunk: int, k: int
) -> None:
    case = make_case(seed)
    order_N = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    where_N = order_N.argsort()[case.at_M]  # compared tokens, in the new order
    mixed = case._replace(
        hidden_ND=case.hidden_ND[order_N],
        labels_N=case.labels_N[order_N],
        at_M=where_N.sort().values,
        teacher_MW=case.teacher_MW[where_N.argsort()],
    )
    expected, found = case.losses(spec, k).loss, mixed.losses(spec, k, chunk_tokens=chunk).loss
    assert_same(found, expected)
    assert_same(case.gradients(found), case.gradients(expected))


@PROPERTY
@given(seed=seeds, spec=specs, cut=st.integers(1, 7))
def test_micro_batches_add_up_to_the_batch(seed: int, spec: CrossTokenizer, cut: int) -> None:
    case = make_case(seed)

    def part(start: int, stop: int) -> Tensor:
        inside = (case.at_M >= start) & (case.at_M < stop)
        of = case._replace(
            hidden_ND=case.hidden_ND[start:stop],
            labels_N=case.labels_N[start:stop],
            at_M=case.at_M[inside] - start,
            teacher_MW=case.teacher_MW[inside],
        )
        return of.losses(spec, 5, normaliser=8).loss

    whole, pieces = case.losses(spec, 5, normaliser=8).loss, part(0, cut) + part(cut, 8)
    assert_same(pieces, whole)
    assert_same(case.gradients(pieces), case.gradients(whole))


@PROPERTY
@given(seed=seeds, spec=specs, padding=st.integers(1, 4))
def test_padding_of_the_vocabulary_does_not_matter(
    seed: int, spec: CrossTokenizer, padding: int
) -> None:
    case = make_case(seed)
    more_VD = torch.full((padding, 4), 3.0, dtype=torch.float64)
    wide = case._replace(weight_VD=torch.cat([case.weight_VD.detach(), more_VD]).requires_grad_())
    expected, found = case.losses(spec, 5).loss, wide.losses(spec, 5).loss
    assert_same(found, expected)
    (hidden_ND, weight_VD), slopes = wide.gradients(found), case.gradients(expected)
    assert_same((hidden_ND, weight_VD[:VOCABULARY]), slopes)
    assert not weight_VD[VOCABULARY:].any()


@PROPERTY
@given(seed=seeds, k=st.sampled_from([12, VOCABULARY]))
def test_gradients_at_8_and_16_are_of_one_size(seed: int, k: int) -> None:
    """T, not T²: the distance is linear in how far the probabilities are apart."""
    case = make_case(seed, tokens=64, teachers=VOCABULARY, scale=0.25)
    norms = []
    for temperature in (8.0, 16.0):
        spec = SPEC.model_copy(update={"distillation_temperature": temperature})
        both = (
            case.losses(spec, k).loss
            - case.losses(spec.model_copy(update={"soft_weight": 1e-12}), k).loss
        )
        norms.append(case.gradients(both)[0].norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


def test_tokens_that_are_not_compared_learn_from_their_labels_alone() -> None:
    case = make_case(3)
    slope_ND, _ = case.gradients(case.losses(SPEC, 5).loss)
    logits_NV = case.hidden_ND @ case.weight_VD.T
    hard = torch.nn.functional.cross_entropy(logits_NV, case.labels_N, reduction="sum")
    hard_ND, _ = case.gradients(SPEC.hard_weight * hard)
    alone = torch.ones(8, dtype=torch.bool)
    alone[case.at_M] = False
    assert 0 < alone.sum() < 8
    assert_same(slope_ND[alone], hard_ND[alone])
    assert ((slope_ND - hard_ND)[~alone].norm(dim=1) > 1e-3).all()


def test_a_batch_in_which_nothing_is_compared_is_the_cross_entropy() -> None:
    case = make_case(0)
    none = case._replace(at_M=case.at_M[:0], teacher_MW=case.teacher_MW[:0])
    losses = none.losses(SPEC, 5)
    assert losses.soft_nats == 0
    assert losses.loss.item() == pytest.approx(0.7 * losses.hard_nats.item())


def test_nan_in_the_student_is_not_hidden() -> None:
    case = make_case(0)
    case.hidden_ND.data[0, 1] = torch.nan
    losses = case.losses(SPEC, 5)
    assert losses.loss.isnan()
