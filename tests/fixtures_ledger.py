"""Rows of the ledger, and ledgers on SQLite and on PostgreSQL."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distillery.data.chat import Message
from distillery.ledger import Ledger, LedgerRow
from distillery.storage.fingerprint import sha256
from distillery.teacher.protocol import Sampling, make_request, request_body
from schemas.execution import StoreSpec

IDENTITY = {"kind": "openai", "provider": "vllm", "model": "owner/name", "weights": None}
SAMPLING = Sampling(max_new_tokens=64, sampling_temperature=0.0, top_p=1.0, seed=0)


def row(prompt: str, *, identity: dict[str, Any] = IDENTITY, **changes: Any) -> LedgerRow:
    """The row of a request that was answered well at the first attempt, but for ``changes``."""
    messages = [Message(role="user", content=prompt)]
    request = make_request(identity, messages, SAMPLING)
    fields: dict[str, Any] = {
        "request_hash": request.request_hash,
        "prompt_hash": sha256(messages),
        "teacher_id": sha256(identity),
        "teacher": json.dumps(identity, sort_keys=True),
        "request": json.dumps(request_body(request), sort_keys=True),
        "state": "ok",
        "text": "yes",
        "finish_reason": "stop",
        "max_new_tokens": 64,
        "prompt_tokens": 3,
        "completion_tokens": 1,
        "billed_prompt_tokens": 3,
        "billed_completion_tokens": 1,
        "cost": 0.25,
        "currency": "USD",
        "model_reported": "name",
        "latency_s": 0.1,
        "attempts": 1,
        "failed_runs": 0,
        "repaired": False,
        "error": None,
    }
    return LedgerRow(**fields | changes)


def failed(prompt: str, **changes: Any) -> LedgerRow:
    """The row of a request that was not answered in six attempts."""
    return row(
        prompt,
        **{
            "state": "failed",
            "text": "",
            "finish_reason": None,
            "prompt_tokens": None,
            "completion_tokens": None,
            "billed_prompt_tokens": 0,
            "billed_completion_tokens": 0,
            "cost": None,
            "currency": None,
            "attempts": 6,
            "failed_runs": 1,
            "error": "HTTP 500",
            **changes,
        },
    )


def commit(ledger: Ledger, *rows: LedgerRow, purpose: str | None = None) -> None:
    """Commit rows and wait until they are there."""
    for future in [ledger.commit_soon(row, purpose=purpose) for row in rows]:
        future.result(60)


def kept(ledger: Ledger, prompt: str) -> LedgerRow:
    """What the ledger has for ``prompt``."""
    request_hash = row(prompt).request_hash
    return ledger.get([request_hash])[request_hash]


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_spec(request: pytest.FixtureRequest, tmp_path: Path) -> StoreSpec:
    """Where an empty ledger is, on each of the two databases."""
    root = str(tmp_path / "store")
    if request.param == "sqlite":
        return StoreSpec(root=root)
    return StoreSpec(root=root, ledger_url=request.getfixturevalue("postgresql").new_database())


@pytest.fixture
def sqlite_spec(tmp_path: Path) -> StoreSpec:
    """Where an empty ledger is, on SQLite."""
    return StoreSpec(root=str(tmp_path / "store"))


@pytest.fixture
def ledger(ledger_spec: StoreSpec) -> Iterator[Ledger]:
    with Ledger.open(ledger_spec) as opened:
        yield opened
