import pytest

from distillery.evaluation.axis import Axis
from schemas.comparison import Interval


def test_every_interval_and_the_mark_have_room() -> None:
    wide = Interval(estimate=0.5, low=0.2, high=0.7, num_rows=9)
    point = Interval(estimate=0.9, low=None, high=None, num_rows=1)
    axis = Axis.of([wide, None, point], mark=1.0)
    bar, dot = axis.bar(wide), axis.bar(point)
    assert bar and dot and axis.marked_at
    assert 0 < bar.left < bar.point < bar.left + bar.width < dot.point < axis.marked_at < 100
    assert dot.width == 0.0 and dot.left == dot.point
    assert axis.bar(None) is None


def test_one_value_alone_stands_in_the_middle() -> None:
    alone = Interval(estimate=0.0, low=0.0, high=0.0, num_rows=1)
    bar = Axis.of([alone]).bar(alone)
    assert bar and bar.point == pytest.approx(50)
