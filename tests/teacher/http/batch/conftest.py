"""A session with a teacher that is asked by the batch, and pauses of milliseconds."""

import functools
from collections.abc import Callable
from typing import Any

import pytest

from distillery.ledger import Ledger, LedgerRow
from distillery.teacher import Sampling, make_request, teacher_identity
from distillery.teacher.http.batch.teacher import BatchTeacher
from distillery.teacher.session import AskedFor, TeacherSession, Totals
from schemas.execution import StoreSpec
from schemas.teacher import OpenAITeacher

Ask = Callable[..., tuple[dict[str, LedgerRow], Totals]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at batches every few milliseconds."""
    hasty = functools.partial(BatchTeacher, poll_s=0.005, backoff_s=0.005)
    monkeypatch.setattr("distillery.teacher.http.batch.teacher.BatchTeacher", hasty)


@pytest.fixture
def ask(store: StoreSpec) -> Ask:
    """Have prompts answered, and return what the ledger has of each then."""

    def answer(
        spec: OpenAITeacher, *prompts: str, system: str | None = None, schema: Any = None
    ) -> tuple[dict[str, LedgerRow], Totals]:
        asked, hashes = AskedFor(), {}
        told = [] if system is None else [{"role": "system", "content": system}]
        for prompt in prompts:
            request = make_request(
                teacher_identity(spec),
                [*told, {"role": "user", "content": prompt}],  # type: ignore[list-item]
                Sampling.of(spec),
                response_schema=schema,
            )
            asked.add([request])
            hashes[request.request_hash] = prompt
        with TeacherSession(spec, store, purpose="test") as session:
            session.answer(asked)
        with Ledger.open(store) as ledger:
            rows = ledger.get(hashes)
            assert not ledger.batches.holding(hashes)
        return {hashes[request_hash]: row for request_hash, row in rows.items()}, session.totals

    return answer
