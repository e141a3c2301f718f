"""Which losses compare, and when a training is given up by them."""

import pytest

from distillery.sweep.curves import is_behind, meaning
from schemas.refs import DatasetRef
from schemas.student import FromScratchStudent
from schemas.training import TrainingSpec

ROWS = DatasetRef(uri="u", fingerprint="f", num_rows=1, columns=())
STUDENT = FromScratchStudent(num_layers=1, hidden_size=16, intermediate_size=32, num_heads=2)


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        # Worse than the median of three.
        ({500: 2.0}, [{500: 1.0}, {500: 1.5}, {500: 3.0}], True),
        ({500: 1.5}, [{500: 1.0}, {500: 1.5}, {500: 3.0}], False),
        # A late rise is not held against it: its best counts.
        ({250: 1.0, 500: 9.0}, [{500: 1.2}, {500: 1.3}, {500: 1.4}], False),
        # What others reached later is not held against it either.
        ({500: 2.0}, [{500: 2.5, 1000: 0.1}, {500: 2.5, 1000: 0.1}, {500: 2.5}], False),
        # One that has measured nothing by then says nothing: two are too few.
        ({100: 2.0}, [{100: 1.0}, {100: 1.0}, {200: 1.0}], False),
        # A training that is over has its student.
        ({1000: 2.0}, [{500: 1.0}, {500: 1.0}, {500: 1.0}], False),
    ],
)
def test_the_median_rule(
    own: dict[int, float], others: list[dict[int, float]], expected: bool
) -> None:
    assert is_behind(own, others, after=3) is expected


def test_losses_of_other_objectives_rows_or_tokens_mean_something_else() -> None:
    soft = TrainingSpec.model_validate({"objective": {"kind": "soft_targets"}})
    weighted = TrainingSpec.model_validate({"objective": {"kind": "soft_targets", "k": 8}})
    hard = TrainingSpec()
    other_rows = ROWS.model_copy(update={"fingerprint": "g"})
    wider = STUDENT.model_copy(update={"vocab_size": 2048})
    found = {
        meaning(ROWS, STUDENT, soft),
        meaning(ROWS, STUDENT, weighted),
        meaning(ROWS, STUDENT, hard),
        meaning(other_rows, STUDENT, hard),
        meaning(ROWS, wider, hard),
    }
    assert len(found) == 5


def test_other_learning_rates_lengths_and_depths_compare() -> None:
    longer = TrainingSpec(learning_rate=1e-3, epochs=9, evaluations=2)
    deeper = STUDENT.model_copy(update={"num_layers": 3})
    assert meaning(ROWS, STUDENT, TrainingSpec()) == meaning(ROWS, deeper, longer)
