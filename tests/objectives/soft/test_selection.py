"""What is kept of a distribution, and the mass outside of it, are right to the last digits."""

import numpy as np
import pytest
import torch

from distillery.objectives.soft.selection import likeliest_tokens
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
