"""The ledger says what it holds by teacher, and what a response takes on average."""

from distillery.ledger import Averages, Ledger
from tests.fixtures_ledger import IDENTITY, commit, failed, row

LOCAL = {"kind": "transformers", "weights": "owner/local@" + "c" * 40, "dtype": "bfloat16"}


def test_stats_add_up_by_teacher(ledger: Ledger) -> None:
    commit(
        ledger,
        row("a", created_at=10.0),
        row("b", cost=0.5, currency="EUR", repaired=True, created_at=30.0),
        failed("c", billed_prompt_tokens=5, created_at=20.0),
        row("a", identity=LOCAL, cost=None, currency=None),
    )
    first, second = ledger.stats()
    assert first == {
        "teacher_id": row("a").teacher_id,
        "teacher": IDENTITY,
        "model": "owner/name",
        "num_rows": 3,
        "states": {"ok": 2, "failed": 1},
        "prompt_tokens": 11,
        "completion_tokens": 2,
        "cost": {"USD": 0.25, "EUR": 0.5},
        "repaired": 1,
        "oldest": 10.0,
        "newest": 30.0,
    }
    assert (second["model"], second["num_rows"], second["cost"]) == ("owner/local", 1, {})


def test_averages_are_over_the_newest_ok_rows_with_usage(ledger: Ledger) -> None:
    commit(
        ledger,
        row("1234", prompt_tokens=10, completion_tokens=2, latency_s=1.0),
        row("123456", prompt_tokens=20, completion_tokens=4, latency_s=2.0),
        row("unknown usage", prompt_tokens=None, latency_s=3.0),
        row("cut", state="truncated", prompt_tokens=1000),
        row("other", teacher_id="t" * 64, prompt_tokens=1000),
    )
    assert ledger.averages(row("1234").teacher_id) == Averages(
        num_rows=3, prompt_chars=5.0, prompt_tokens=15.0, completion_tokens=3.0, latency_s=2.0
    )


def test_averages_look_at_the_newest_thousand_rows_only(ledger: Ledger) -> None:
    old = [row("a", request_hash=f"{n:064}", prompt_tokens=9, created_at=n) for n in range(500)]
    new = [
        row("a", request_hash=f"{n:064}", prompt_tokens=1, created_at=n) for n in range(500, 1500)
    ]
    commit(ledger, *old, *new)
    found = ledger.averages(row("a").teacher_id)
    assert (found.num_rows, found.prompt_tokens) == (1000, 1.0)


def test_averages_of_an_unknown_teacher_are_unknown(ledger: Ledger) -> None:
    assert ledger.averages("nobody") == Averages()
