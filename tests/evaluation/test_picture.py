import re

from distillery.evaluation.picture import quality_against_latency
from tests.fixtures_comparison import SCORES, comparison


def test_picture_names_every_model_once() -> None:
    picture = quality_against_latency(comparison())
    assert picture is not None
    labels = re.findall(r">(teacher|baseline|student)</text>", picture)
    assert sorted(labels) == ["baseline", "student", "teacher"]


def test_picture_is_the_same_every_time() -> None:
    assert quality_against_latency(comparison()) == quality_against_latency(comparison())


def test_every_contestant_has_a_colour_of_its_own_which_the_page_sets() -> None:
    picture = quality_against_latency(comparison({**SCORES, "champion": SCORES["student"]}))
    assert picture is not None
    assert {f"var(--model-{number})" for number in range(4)} <= set(
        re.findall(r"var\(--model-\d\)", picture)
    )
    assert "#0a0b" not in picture
