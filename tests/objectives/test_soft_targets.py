"""Soft targets belong to the tokens that the student is to write."""

import numpy as np
import pytest

from distillery.objectives.soft.stored import ScoredRow
from distillery.objectives.soft_targets import up_to_the_end
from schemas.errors import TrainingError

K = 2


def _scored(*ids: int) -> ScoredRow:
    n = len(ids)
    numbers_NK = np.arange(n * K, dtype=np.int32).reshape(n, K)
    return ScoredRow(
        "row-1",
        "train",
        list(ids),
        numbers_NK,
        -numbers_NK.astype(np.float16),
        np.zeros(n, dtype=np.float32),
    )


def test_what_a_served_template_writes_after_the_end_is_left_off() -> None:
    cut, whole = up_to_the_end(_scored(7, 8, 2, 13), [7, 8, 2]), _scored(7, 8, 2)
    assert cut.response_ids == [7, 8, 2]
    assert cut.ids_NK.tolist() == whole.ids_NK.tolist()
    assert cut.log_probs_NK.tolist() == whole.log_probs_NK.tolist()
    assert cut.log_rest_N.shape == (3,)


@pytest.mark.parametrize("theirs", [(7, 8), (7, 9, 2)])
def test_soft_targets_of_other_tokens_are_refused(theirs: tuple[int, ...]) -> None:
    with pytest.raises(TrainingError, match=r"row 'row-1': .* make 3 tokens of the response"):
        up_to_the_end(_scored(*theirs), [7, 8, 2])
