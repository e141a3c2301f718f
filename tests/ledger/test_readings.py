"""Watermarks of logs, on both databases."""

from distillery.ledger import Ledger


def test_reading_counts_when_its_run_has_finished(ledger: Ledger) -> None:
    ledger.readings.note("a", "nightly", 1.0)
    assert ledger.readings.since("nightly") is None
    ledger.readings.finish(["a", "of no log"])
    assert ledger.readings.since("nightly") == 1.0
    assert ledger.readings.since("other") is None


def test_watermark_never_goes_back(ledger: Ledger) -> None:
    for identity, newest in (("a", 2.0), ("b", 1.0)):
        ledger.readings.note(identity, "nightly", newest)
    ledger.readings.finish(["a"])
    ledger.readings.finish(["b"])
    assert ledger.readings.since("nightly") == 2.0


def test_reading_that_has_finished_stays_so_when_it_is_read_again(ledger: Ledger) -> None:
    ledger.readings.note("a", "nightly", 1.0)
    ledger.readings.finish(["a"])
    ledger.readings.note("a", "nightly", 1.0)
    assert ledger.readings.since("nightly") == 1.0
