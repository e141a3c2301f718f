import re

import pytest

from distillery.evaluation.picture import (
    figure_of,
    label_log,
    quality_against_cost,
    quality_against_latency,
    training_curve,
)
from tests.fixtures_comparison import SCORES, comparison, measurement, measurements
from tests.fixtures_report import ORIGINS, rich_comparison


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


def test_cost_is_drawn_where_it_is_known_in_one_currency() -> None:
    found = rich_comparison()
    picture = quality_against_cost(found)
    assert picture is not None and "cost per 1,000 requests, EUR" in picture
    assert quality_against_cost(comparison()) is None
    first, *others = found.contestants
    dollars = first.cost and first.cost.model_copy(update={"currency": "USD"})
    mixed = (first.model_copy(update={"cost": dollars}), *others)
    assert quality_against_cost(found.model_copy(update={"contestants": mixed})) is None


def test_without_latency_there_is_no_picture() -> None:
    blind = measurement(1, 1, None)
    found = comparison(measured=measurements(teacher=blind, baseline=blind, student=blind))
    assert quality_against_latency(found) is None


def test_training_curve_has_both_losses() -> None:
    picture = training_curve(ORIGINS.curves["train_student"])
    assert picture is not None
    assert ">training</text>" in picture and ">validation</text>" in picture
    assert training_curve([{"step": 1.0}]) is None


@pytest.mark.parametrize(
    ("low", "high", "labelled"),
    [
        (7.6, 10.2, [8, 9, 10]),
        (0.121, 0.129, [0.122, 0.124, 0.126, 0.128]),
        (7.0, 60.0, [10, 20, 50]),
        (1.0, 4000.0, [1, 10, 100, 1000]),
    ],
)
def test_a_logarithmic_axis_has_several_labels_however_short_it_is(
    low: float, high: float, labelled: list[float]
) -> None:
    with figure_of(3) as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        label_log(axes.xaxis, low, high)
        inside = [float(at) for at in axes.xaxis.get_majorticklocs() if low <= at <= high]
    assert inside == pytest.approx(labelled)
