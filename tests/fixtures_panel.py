"""Panels of teachers whose members are scripted endpoints."""

from collections.abc import Callable
from typing import Any

from distillery.data.chat import Message, dump_messages
from distillery.teacher.panel.base import Known
from distillery.teacher.requests import Said
from schemas.panel import PanelTeacher
from tests.fixtures_ledger import row as ledger_row
from tests.stub_endpoint import Reply, StubEndpoint

SETTLED, DOUBTFUL = -0.01, -2.0
"""Mean log-probabilities of responses."""


def member(name: str, stub: StubEndpoint | None = None, **changes: Any) -> dict[str, Any]:
    """Return a member of a panel that is served by ``stub``, under its own name."""
    rule = changes.pop("rule", None)
    teacher = {
        "kind": "openai",
        "model": name,
        "base_url": stub.base_url if stub else "http://127.0.0.1:9/v1",
        "concurrency": 2,
    }
    return {"name": name, "teacher": teacher | changes} | ({"rule": rule} if rule else {})


def panel(policy: dict[str, Any], *members: dict[str, Any]) -> PanelTeacher:
    return PanelTeacher.model_validate({"kind": "panel", "policy": policy, "teachers": members})


def says(
    texts: Callable[[str], str], log_probability: Callable[[str], float] | None = None
) -> Callable[[dict[str, Any]], Reply]:
    """Return how a stub responds: by what the last user turn of a request asks."""

    def respond(body: dict[str, Any]) -> Reply:
        asked = body["messages"][-1]["content"]
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": texts(asked)},
            "finish_reason": "stop",
        }
        if body.get("logprobs") and log_probability is not None:
            tokens = [{"token": "x", "logprob": log_probability(asked)}] * 2
            choice["logprobs"] = {"content": tokens}
        return Reply(choices=[choice])

    return respond


def said(
    text: str,
    *,
    agreement: float | None = None,
    log_probability: float | None = None,
    state: str = "ok",
) -> Said:
    response = ledger_row("q", text=text, state=state, mean_log_probability=log_probability)
    return Said(response, 0, agreement, (response,))


def known(**responses: str | Said) -> Known:
    """Return what is known of a row after so many members have responded."""
    return Known({n: said(r) if isinstance(r, str) else r for n, r in responses.items()})


def row(text: str = "q", slices: str | None = None) -> dict[str, Any]:
    messages = dump_messages([Message(role="user", content=text)])
    return {"prompt_id": "p", "messages": messages, "slices": slices}
