"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable

PATIENCE_S = 60.0
"""Long enough for a busy machine; what comes about sooner costs no more."""


def wait_until(is_so: Callable[[], object], *, within_s: float = PATIENCE_S) -> None:
    """Return once ``is_so`` returns something true."""
    give_up_at = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < give_up_at, "it did not come about"
        time.sleep(0.005)
