"""Loggers that print a warning once however often it repeats."""

import logging
import math
import time

# After so long without a repeat, the next one is news again.
_FORGET_S = 600.0


def counting_logger(name: str) -> logging.Logger:
    """Return the logger ``name``, which lets the 1st, 10th, 100th ... of equal warnings through.

    From the 10th on the line says how many there have been. For warnings that come from a loop or
    from every row; nothing below a warning is held back.
    """
    logger = logging.getLogger(name)
    if not any(isinstance(known, _Repeats) for known in logger.filters):
        logger.addFilter(_Repeats())
    return logger


class _Repeats(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, tuple[int, float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        message, now = record.getMessage(), time.monotonic()
        count, last = self._seen.get(message, (0, now))
        count = 1 if now - last > _FORGET_S else count + 1
        self._seen[message] = count, now
        if count > 1:
            record.msg, record.args = f"{message} ({count:,} times so far)", ()
        return math.log10(count).is_integer()
