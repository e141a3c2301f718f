"""A warning that repeats is printed once, and counted."""

import logging
import uuid

import pytest

from distillery.storage import logs


def warn(logger: logging.Logger, times: int, message: str = "row %d is odd") -> None:
    for _ in range(times):
        logger.warning(message, 7)


@pytest.fixture
def logger() -> logging.Logger:
    return logs.counting_logger(f"tests.{uuid.uuid4()}")


def test_repeated_warning_is_printed_at_powers_of_ten_with_its_count(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    warn(logger, 1234)
    assert caplog.messages == [
        "row 7 is odd",
        "row 7 is odd (10 times so far)",
        "row 7 is odd (100 times so far)",
        "row 7 is odd (1,000 times so far)",
    ]


def test_other_warnings_and_what_is_no_warning_are_printed_each_time(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    logger.setLevel(logging.INFO)
    logger.warning("row %d", 1)
    logger.warning("row %d", 2)
    for _ in range(3):
        logger.info("going on")
    assert caplog.messages == ["row 1", "row 2", *3 * ["going on"]]


def test_warning_is_news_again_after_a_long_silence(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    warn(logger, 2)
    monkeypatch.setattr(logs, "_FORGET_S", -1.0)
    warn(logger, 1)
    assert caplog.messages == 2 * ["row 7 is odd"]


def test_logger_asked_for_twice_counts_once(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    warn(logs.counting_logger(logger.name), 2)
    assert caplog.messages == ["row 7 is odd"]
