import pytest

from distillery.evaluation.axis import Axis
from schemas.comparison import Interval


def test_the_axis_leads_from_the_lowest_end_to_the_highest() -> None:
    wide = Interval(estimate=0.5, low=0.2, high=0.7, num_rows=9)
    point = Interval(estimate=0.9, low=None, high=None, num_rows=1)
    axis = Axis.of([wide, None, point], mark=1.0)
    bar, dot = axis.bar(wide), axis.bar(point)
    assert bar and dot
    assert (bar.left, bar.point, dot.point, axis.marked_at) == (0.0, 37.5, 87.5, 100.0)
    assert bar.left + bar.width == 62.5 and axis.ends == ("20", "100")
    assert dot.width == 0.0 and dot.left == dot.point
    assert axis.bar(None) is None


def test_one_value_alone_stands_in_the_middle() -> None:
    alone = Interval(estimate=0.0, low=0.0, high=0.0, num_rows=1)
    bar = Axis.of([alone]).bar(alone)
    assert bar and bar.point == pytest.approx(50)
