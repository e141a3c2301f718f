"""Where intervals stand on an axis that they share, so that a page can draw them side by side."""

from collections.abc import Iterable
from dataclasses import dataclass

from schemas.comparison import Interval


@dataclass(frozen=True)
class Bar:
    """An interval in per cent of the axis, from its left end."""

    left: float
    width: float
    point: float


@dataclass(frozen=True)
class Axis:
    """A range of values that is drawn from left to right."""

    low: float
    high: float

    mark: float | None = None
    """A value to compare with, such as the teacher's, or 0 for differences."""

    @classmethod
    def of(cls, intervals: Iterable[Interval | None], *, mark: float | None = None) -> "Axis":
        """Return an axis from the lowest to the highest of ``intervals`` and the mark."""
        known = [found for found in intervals if found]
        ends = [value for found in known for value in (found.low, found.estimate, found.high)]
        values = [value for value in (*ends, mark) if value is not None] or [0.0, 1.0]
        low, high = min(values), max(values)
        room = 0.0 if high > low else 0.01
        return cls(low - room, high + room, mark)

    def bar(self, interval: Interval | None) -> Bar | None:
        """Return where ``interval`` stands; None where there is none."""
        if interval is None:
            return None
        point = self.place(interval.estimate)
        left = point if interval.low is None else self.place(interval.low)
        right = point if interval.high is None else self.place(interval.high)
        return Bar(left, round(right - left, 2), point)

    def place(self, value: float) -> float:
        """Return a value's place in per cent of the axis.

        >>> Axis(low=0.0, high=4.0).place(1.0)
        25.0
        """
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    @property
    def ends(self) -> tuple[str, str]:
        """Return both ends as text, in per cent or percentage points."""
        return f"{self.low * 100:.0f}", f"{self.high * 100:.0f}"

    @property
    def marked_at(self) -> float | None:
        """Return the place of the mark."""
        return None if self.mark is None else self.place(self.mark)
