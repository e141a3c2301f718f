"""What is kept of a distribution, and the mass outside of it, are right to the last digits."""

import numpy as np
import pytest
import torch

from distillery.objectives.soft.selection import draw_tokens, likeliest_tokens, uniform_numbers
from distillery.objectives.soft.stored import at_temperature

pytestmark = pytest.mark.usefixtures("one_thread")


def test_tiny_masses_keep_their_digits_on_either_side() -> None:
    rare_V = torch.full((1, 4000), -20.0)
    rare_V[0, 7] = 0.0  # all but 4000 e^-20 of the mass
    _, _, log_rest_N = likeliest_tokens(rare_V.clone(), 1, 1.0)
    assert log_rest_N.item() == pytest.approx(np.log(3999) - 20, rel=1e-5)
    flat_V = torch.zeros(1, 150_000, dtype=torch.float32)
    _, log_probs_NK, log_rest_N = likeliest_tokens(flat_V, 1, 1.0)
    log_p_NK, _ = at_temperature(log_probs_NK.half(), log_rest_N, 1.0)
    assert log_p_NK.item() == pytest.approx(-np.log(150_000), rel=1e-5)


def test_the_whole_vocabulary_leaves_no_rest() -> None:
    logits_V = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    ids_NK, log_probs_NK, log_rest_N = likeliest_tokens(logits_V.clone(), 8, 2.0)
    assert bool(log_rest_N.isneginf().all())
    log_p_NK, _ = at_temperature(log_probs_NK, log_rest_N, 2.0)
    expected_NV = (logits_V / 2).log_softmax(-1)
    torch.testing.assert_close(log_p_NK, expected_NV.gather(-1, ids_NK))


def test_draws_are_right_on_average_and_know_what_they_left_out() -> None:
    temperature, k, num_seeds = 2.0, 16, 500
    logits_V = 4 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    numbers_CK = torch.cat([uniform_numbers("a", seed, 1, k) for seed in range(num_seeds)])
    ids_CK, log_probs_CK, log_rest_C, counts_CK = draw_tokens(
        logits_V.repeat(num_seeds, 1), numbers_CK, temperature
    )
    log_p_V = (logits_V.double() / temperature).log_softmax(-1)
    counts_V = torch.zeros(40).scatter_add_(0, ids_CK.flatten(), counts_CK.flatten().float())
    draws = num_seeds * k
    deviation_V = (log_p_V.exp() * (1 - log_p_V.exp()) / draws).sqrt()
    assert bool(((counts_V / draws - log_p_V.exp()).abs() < 4.5 * deviation_V + 1e-9).all())
    drawn_CK = counts_CK > 0
    expected_CK = log_p_V[ids_CK]
    torch.testing.assert_close(
        log_probs_CK[drawn_CK].double(), expected_CK[drawn_CK], rtol=1e-5, atol=1e-5
    )
    left_C = 1 - (expected_CK.exp() * drawn_CK).sum(-1)
    torch.testing.assert_close(log_rest_C.double().exp(), left_C, rtol=1e-5, atol=1e-6)
