"""What is in which batch, on both databases."""

from distillery.ledger import Ledger, SentBatch, SentRequest

DAY_S = 86_400.0


def batch(key: str, *, sent_at: float = 100 * DAY_S) -> SentBatch:
    return SentBatch(key, None, "http://here/v1", 2, sent_at)


def sent(*hashes: str) -> dict[str, SentRequest]:
    return {request_hash: SentRequest(f"{{{request_hash}}}", 64) for request_hash in hashes}


def test_batch_is_found_by_any_of_its_requests(ledger: Ledger) -> None:
    ledger.batches.begin(batch("one"), sent("a", "b"))
    ledger.batches.submitted("one", "batch_1")
    found = ledger.batches.holding(["b", "c"])
    assert found == {batch("one")._replace(batch_id="batch_1"): sent("b")}
    assert ledger.batches.known_ids() == {"batch_1"}


def test_request_is_in_the_newest_batch_alone(ledger: Ledger) -> None:
    ledger.batches.begin(batch("one"), sent("a", "b"))
    ledger.batches.begin(batch("two"), sent("b"))
    assert ledger.batches.holding(["a", "b"]) == {batch("one"): sent("a"), batch("two"): sent("b")}


def test_batch_is_forgotten_with_its_last_request(ledger: Ledger) -> None:
    ledger.batches.begin(batch("one"), sent("a", "b"))
    ledger.batches.settle(["a"])
    assert ledger.batches.all() == [(batch("one"), 1)]
    ledger.batches.settle(["b", "c"])
    assert ledger.batches.all() == []


def test_batch_can_be_forgotten_by_its_id(ledger: Ledger) -> None:
    ledger.batches.begin(batch("one"), sent("a", "b"))
    ledger.batches.submitted("one", "batch_1")
    assert ledger.batches.forget("batch_2") == 0
    assert ledger.batches.forget("batch_1") == 2
    assert ledger.batches.all() == []


def test_batch_whose_results_no_provider_keeps_is_forgotten(ledger: Ledger) -> None:
    ledger.batches.begin(batch("old", sent_at=69 * DAY_S), sent("a"))
    ledger.batches.begin(batch("young", sent_at=71 * DAY_S), sent("b"))
    ledger.batches.begin(batch("now"), sent("c"))
    assert [found.key for found, _ in ledger.batches.all()] == ["young", "now"]
