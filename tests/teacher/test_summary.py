"""What is said beside the count while a teacher answers."""

from types import SimpleNamespace
from typing import Any

from distillery.teacher.protocol import Activity, BatchActivity
from distillery.teacher.session import Totals
from distillery.teacher.summary import progress_note


def note(activity: Activity) -> str:
    session: Any = SimpleNamespace(
        activity=lambda: activity, totals=Totals(cost=1.5, currency="USD")
    )
    return progress_note(session)


def test_batches_are_counted_as_their_provider_counts_them() -> None:
    one = BatchActivity(1, 3_000, 1_240, 2, "in_progress")
    said = note(Activity(3_000, 3_000, batches=one))
    assert said == "batch in_progress, 1,240/3,000 done there, 2 failed, 1.50 USD"
    two = BatchActivity(2, 9, 1, 0, "validating")
    assert note(Activity(9, 9, batches=two)).startswith("2 batches validating, 1/9 done there")


def test_requests_by_themselves_are_counted_in_flight() -> None:
    assert note(Activity(3, 8)) == "3/8 in flight, 1.50 USD"
