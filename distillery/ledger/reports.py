"""What the ledger knows as a whole: by teacher, by purpose, on average."""

import collections
import json
from typing import Any

import sqlalchemy as sa

from distillery.ledger.rows import Averages, Spending
from distillery.ledger.tables import charges, responses

_SAMPLE_ROWS = 1000


def model_name(identity: dict[str, Any]) -> str:
    """Return a teacher's name for people: what its provider calls it, or whose weights it has.

    >>> model_name({"kind": "openai", "provider": "vllm", "model": "Qwen/Qwen3-8B"})
    'Qwen/Qwen3-8B'
    >>> model_name({"kind": "transformers", "weights": "Qwen/Qwen3-8B@abc", "dtype": "bfloat16"})
    'Qwen/Qwen3-8B'
    """
    name = identity.get("model") or identity.get("weights") or "unknown"
    return str(name).partition("@")[0]


def spent(connection: sa.Connection, purpose: str) -> Spending:
    """Return what was spent for ``purpose``."""
    c, count, total = charges.c, sa.func.count(), sa.func.sum
    query = sa.select(count, total(c.prompt_tokens), total(c.completion_tokens), total(c.cost))
    requests, prompt, completion, cost = connection.execute(query.where(c.purpose == purpose)).one()
    # PostgreSQL's sums of big integers are decimals.
    return Spending(
        requests=requests,
        prompt_tokens=int(prompt or 0),
        completion_tokens=int(completion or 0),
        cost=cost or 0.0,
    )


def averages(connection: sa.Connection, teacher_id: str) -> Averages:
    """Return means over the newest ok rows of a teacher."""
    c = responses.c
    columns = (c.request, c.prompt_tokens, c.completion_tokens, c.latency_s)
    query = sa.select(*columns).where(c.teacher_id == teacher_id, c.state == "ok")
    rows = connection.execute(query.order_by(c.created_at.desc()).limit(_SAMPLE_ROWS)).all()
    if not rows:
        return Averages()
    known = [r for r in rows if r.prompt_tokens is not None and r.completion_tokens is not None]
    waits_s = [row.latency_s for row in rows if row.latency_s]  # a batch tells none
    latency_s = sum(waits_s) / len(waits_s) if waits_s else None
    if not known:
        return Averages(num_rows=len(rows), latency_s=latency_s)
    chars = sum(len(m["content"]) for r in known for m in json.loads(r.request)["messages"])
    return Averages(
        num_rows=len(rows),
        prompt_chars=chars / len(known),
        prompt_tokens=sum(row.prompt_tokens for row in known) / len(known),
        completion_tokens=sum(row.completion_tokens for row in known) / len(known),
        latency_s=latency_s,
    )


def stats(connection: sa.Connection) -> list[dict[str, Any]]:
    """Return one dictionary per teacher, those with most rows first.

    Its keys: `teacher_id`, `teacher` (the identity), `model`, `num_rows`, `states` (rows by
    state), `prompt_tokens` and `completion_tokens` (billed, over all attempts), `cost` (by
    currency), `repaired` (rows), `oldest` and `newest` (seconds since 1970).
    """
    c, count = responses.c, sa.func.count()
    query = sa.select(
        c.teacher_id,
        c.state,
        c.currency,
        sa.func.min(c.teacher).label("teacher"),
        count.label("num_rows"),
        sa.func.sum(c.billed_prompt_tokens).label("prompt_tokens"),
        sa.func.sum(c.billed_completion_tokens).label("completion_tokens"),
        sa.func.sum(c.cost).label("cost"),
        sa.func.sum(sa.case((c.repaired, 1), else_=0)).label("repaired"),
        sa.func.min(c.created_at).label("oldest"),
        sa.func.max(c.created_at).label("newest"),
    ).group_by(c.teacher_id, c.state, c.currency)
    by_teacher = collections.defaultdict(list)
    for row in connection.execute(query).mappings():
        by_teacher[row["teacher_id"]].append(dict(row))
    return sorted(map(_stat, by_teacher.values()), key=lambda stat: -stat["num_rows"])


def _stat(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the rows of one teacher, by state and currency, add up to."""
    identity = json.loads(rows[0]["teacher"])
    states: collections.Counter[str] = collections.Counter()
    cost: dict[str | None, float] = {}
    for row in rows:
        states[row["state"]] += row["num_rows"]
        if row["cost"] is not None:
            cost[row["currency"]] = cost.get(row["currency"], 0.0) + row["cost"]
    # PostgreSQL's sums of big integers are decimals.
    counted = ("num_rows", "prompt_tokens", "completion_tokens", "repaired")
    return {
        "teacher_id": rows[0]["teacher_id"],
        "teacher": identity,
        "model": model_name(identity),
        "states": dict(states),
        "cost": cost,
        **{name: sum(int(row[name]) for row in rows) for name in counted},
        "oldest": min(row["oldest"] for row in rows),
        "newest": max(row["newest"] for row in rows),
    }


def teachers(connection: sa.Connection, teacher: str) -> list[str]:
    """Return the ids of the teachers that ``teacher`` names: a model's name, or an id's start."""
    query = sa.select(responses.c.teacher_id, sa.func.min(responses.c.teacher).label("identity"))
    return [
        row.teacher_id
        for row in connection.execute(query.group_by(responses.c.teacher_id))
        if teacher in _names(json.loads(row.identity)) or _is_start(teacher, row.teacher_id)
    ]


def _names(identity: dict[str, Any]) -> set[str]:
    return {model_name(identity), str(identity.get("model")), str(identity.get("weights"))}


def _is_start(text: str, teacher_id: str) -> bool:
    # As short as git's: less could be hit by a word.
    return len(text) >= 7 and teacher_id.startswith(text)
