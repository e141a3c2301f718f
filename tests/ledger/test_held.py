"""A name is held by one at a time, who may be waited for."""

import threading

from distillery.ledger.held import held
from schemas.execution import StoreSpec


def test_a_name_is_held_by_one_at_a_time(ledger_spec: StoreSpec) -> None:
    with held(ledger_spec, "a") as first, held(ledger_spec, "a") as second:
        assert (first, second) == (True, False)
        with held(ledger_spec, "b") as other:
            assert other
    with held(ledger_spec, "a") as again:
        assert again


def test_whoever_waits_comes_after(ledger_spec: StoreSpec) -> None:
    ended: list[str] = []

    def wait() -> None:
        with held(ledger_spec, "a", wait=True) as is_held:
            assert is_held
            ended.append("second")

    thread = threading.Thread(target=wait)
    with held(ledger_spec, "a"):
        thread.start()
        thread.join(0.5)
        ended.append("first")
    thread.join(60)
    assert ended == ["first", "second"]
