"""Pruned models: which layers and neurons stay, and that the rest of the model is as it was."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.models.pruning import kept_layers
from schemas.errors import RecipeError
from schemas.student import PrunedStudent


@given(st.integers(2, 100).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n))))
def test_layers_are_spread_evenly_from_the_first_to_the_last(numbers: tuple[int, int]) -> None:
    of_model, wanted = numbers
    kept = kept_layers(PrunedStudent(model="m", num_layers=wanted), of_model)
    steps = [b - a for a, b in itertools.pairwise(kept)]
    assert (len(kept), kept[0], kept[-1]) == (wanted, 0, of_model - 1)
    assert min(steps) >= 1 and max(steps) - min(steps) <= 1


def test_a_single_layer_is_the_first_one() -> None:
    assert kept_layers(PrunedStudent(model="m", num_layers=1), 18) == (0,)


def test_layers_are_those_that_are_named_and_all_where_none_is() -> None:
    assert kept_layers(PrunedStudent(model="m", layers=(1, 5, 17)), 18) == (1, 5, 17)
    assert kept_layers(PrunedStudent(model="m", intermediate_size=8), 3) == (0, 1, 2)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (PrunedStudent(model="m", layers=(0, 18)), "names layer 18, but 'm' has 18 layers"),
        (PrunedStudent(model="m", num_layers=19), "num_layers=19 is more than the 18 layers"),
    ],
)
def test_layers_that_are_not_there_are_refused(spec: PrunedStudent, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        kept_layers(spec, 18)
