"""What one teacher would be asked, what that would cost and how long it would take."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from distillery.storage.fingerprint import sha256
from distillery.teacher import Request, teacher_identity
from distillery.teacher.generation import (
    CHUNKS_AT_A_TIME,
    ROWS_PER_BATCH,
    generation_stage,
    prompt_requests,
)
from schemas.execution import StoreSpec
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec

if TYPE_CHECKING:
    from distillery.ledger import Averages, Ledger, Spending

_CHARS_PER_TOKEN = 4
"""English prose under the vocabularies of today's models; other text takes more tokens."""

_UNKNOWN = "the ledger has no count of this teacher's tokens"

_REQUESTS_PER_LOOKUP = 2048
_BATCH_S = 86_400.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cap:
    """One cap of `teacher.budget`, in tokens or in the currency of the price table."""

    name: str
    limit: float
    spent: float
    """For these prompts, by earlier runs."""
    expected: float
    """What this run is expected to spend."""

    @property
    def is_enough(self) -> bool:
        """Return whether the run is expected to end below the cap."""
        return self.spent + self.expected <= self.limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationPlan:
    """What `generate_responses` would do. Everything that is not counted is an estimate."""

    num_rows: int
    """Prompts to be answered, those of `train` and `validation`."""
    num_samples: int
    """Responses per prompt."""
    in_ledger: int
    """Distinct requests that have their final response; equal prompts share one."""
    to_ask: int
    """Distinct requests that the teacher would be asked."""
    prompt_tokens: int
    completion_tokens: int
    is_upper_bound: bool
    """Whether `completion_tokens` is the most that it may write, for want of an average."""
    cost: float | None
    """Price of these tokens. None: no price is known."""
    saved_cost: float | None
    """Price of the responses that the ledger has."""
    currency: str | None
    is_local: bool
    """Whether the teacher runs here, so that nobody charges for its tokens."""
    seconds: float | None
    """Time that the requests take. None: too little is known to estimate it."""
    num_batches: int = 0
    """Batches in which a provider would be asked. 0: each request goes by itself."""
    caps: tuple[Cap, ...] = ()
    assumptions: tuple[tuple[str, str], ...] = ()
    """What the estimates rest on: its name, and why it was taken."""

    @property
    def num_requests(self) -> int:
        """Return the number of distinct requests."""
        return self.in_ledger + self.to_ask


def plan_generation(
    prompts: DatasetRef, teacher: TeacherSpec, task: TaskSpec, store: StoreSpec
) -> GenerationPlan:
    """Return what answering ``prompts`` would take; the teacher is not asked.

    Raises:
        StoreError: The prompts or the ledger cannot be read.
    """
    from distillery.ledger import Ledger

    with Ledger.open(store) as ledger:
        tally = Tally(teacher, ledger)
        requests = prompt_requests(prompts, teacher, task, store)
        while some := list(itertools.islice(requests, _REQUESTS_PER_LOOKUP)):
            tally.add(some)
        spent = ledger.spent(generation_stage(prompts, teacher, task).fingerprint)
        return plan_of(teacher, tally.sums, ledger, spent)


def plan_of(
    teacher: TeacherSpec,
    tally: "collections.Counter[str]",
    ledger: "Ledger",
    spent: "Spending",
) -> GenerationPlan:
    """Return the plan of one teacher whose requests are counted."""
    averages = ledger.averages(sha256(teacher_identity(teacher)))
    to_ask, is_local = tally["to_ask"], not teacher.is_served
    source = f"this teacher's average over {averages.num_rows:,} responses in the ledger"
    per_char, why_chars = _per_char(averages, source)
    per_response, why_response = _per_response(averages, teacher.max_new_tokens, source)
    prompt_tokens = math.ceil(tally["chars_to_ask"] * per_char)
    completion_tokens = math.ceil(to_ask * per_response)
    assumptions = [("tokens per character", why_chars), ("tokens per response", why_response)]
    if averages.completion_tokens is not None and tally["cut_before"]:
        why = "of those to ask: taken as long as the average, but they will be longer"
        assumptions.append(("truncated before", f"{tally['cut_before']:,} {why}"))
    num_batches = math.ceil(to_ask / ROWS_PER_BATCH) if teacher.in_batches else 0
    if num_batches:
        assumptions.append(("batches", _batches(teacher, num_batches)))
    elif averages.latency_s is not None:
        side = "teacher.batch_size" if is_local else "teacher.concurrency"
        why = f"{_at_once(teacher):,} from the first request on ({side})"
        assumptions += [("latency", f"{averages.latency_s:.2g} s: {source}"), ("concurrency", why)]
    if not is_local:
        assumptions.append(("attempts", "one per request: no retry and no repair"))
    price = teacher.charges
    plan = GenerationPlan(
        num_rows=tally["num_rows"],
        num_samples=teacher.samples.num_samples,
        in_ledger=tally["in_ledger"],
        to_ask=to_ask,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        is_upper_bound=averages.completion_tokens is None,
        cost=price.cost(prompt_tokens, completion_tokens) if price else None,
        saved_cost=price.cost(tally["saved_read"], tally["saved_written"]) if price else None,
        currency=price.currency if price else None,
        is_local=is_local,
        num_batches=num_batches,
        seconds=_seconds(to_ask, prompt_tokens + completion_tokens, teacher, averages),
        assumptions=tuple(assumptions) if to_ask else (),
    )
    return dataclasses.replace(plan, caps=tuple(_caps(teacher, spent, plan)))


class Tally:
    """Sums over the distinct requests to a teacher; of all of them only the hashes are kept."""

    def __init__(self, teacher: TeacherSpec, ledger: "Ledger") -> None:
        self._most, self._ledger = teacher.max_new_tokens, ledger
        self._seen: set[bytes] = set()
        self.sums: collections.Counter[str] = collections.Counter()

    def add(self, some: Sequence[Request]) -> None:
        """Add requests."""
        tally = self.sums
        tally["num_rows"] += sum(request.sample_index == 0 for request in some)
        fresh = {r.request_hash: r for r in some if bytes.fromhex(r.request_hash) not in self._seen}
        self._seen.update(map(bytes.fromhex, fresh))
        rows = self._ledger.get(fresh)
        for request_hash, request in fresh.items():
            row = rows.get(request_hash)
            if row is not None and row.is_final(self._most):
                tally["in_ledger"] += 1
                tally["saved_read"] += row.prompt_tokens or 0
                tally["saved_written"] += row.completion_tokens or 0
            else:
                tally["to_ask"] += 1
                tally["cut_before"] += row is not None and row.state == "truncated"
                tally["chars_to_ask"] += request.num_chars


def _per_char(averages: "Averages", source: str) -> tuple[float, str]:
    """Return the prompt tokens per character, and where that is from."""
    tokens, chars = averages.prompt_tokens, averages.prompt_chars
    if tokens and chars:
        return tokens / chars, f"{tokens / chars:.3f}: {source}"
    return 1 / _CHARS_PER_TOKEN, f"1/{_CHARS_PER_TOKEN}, as in English prose: {_UNKNOWN}"


def _per_response(averages: "Averages", most: int, source: str) -> tuple[float, str]:
    """Return the completion tokens per response, and where that is from."""
    if averages.completion_tokens is None:
        return most, f"teacher.max_new_tokens, the most there can be: {_UNKNOWN}"
    tokens = min(averages.completion_tokens, most)
    return tokens, f"{tokens:.1f}: {source}"


def _batches(teacher: TeacherSpec, num_batches: int) -> str:
    """Return how a provider is asked by the batch, and what it takes off."""
    noun = "batch" if num_batches == 1 else "batches"
    text = f"{num_batches:,} {noun} at the provider, each answered within 24 h"
    if teacher.price is None:
        return text
    return f"{text}, for {1 - teacher.price.batch_discount:.0%} of the price"


def _at_once(teacher: TeacherSpec) -> int:
    return teacher.concurrency if teacher.is_served else teacher.batch_size


def _seconds(
    to_ask: int, num_tokens: int, teacher: TeacherSpec, averages: "Averages"
) -> float | None:
    """Return the time that latency and limits allow, the slowest of them; None: unknown."""
    if not to_ask:
        return 0.0
    if teacher.in_batches:
        num_rounds = math.ceil(to_ask / (ROWS_PER_BATCH * CHUNKS_AT_A_TIME))
        return _BATCH_S * num_rounds
    bounds = []
    if averages.latency_s is not None:
        bounds.append(math.ceil(to_ask / _at_once(teacher)) * averages.latency_s)
    if teacher.is_hosted:
        if teacher.requests_per_minute:
            bounds.append(60 * to_ask / teacher.requests_per_minute)
        if teacher.tokens_per_minute:
            bounds.append(60 * num_tokens / teacher.tokens_per_minute)
    return max(bounds, default=None)


def _caps(teacher: TeacherSpec, spent: "Spending", plan: GenerationPlan) -> Iterator[Cap]:
    budget, cost = teacher.budget, plan.cost
    if budget.max_cost is not None and cost is not None:
        yield Cap(name="max_cost", limit=budget.max_cost, spent=spent.cost, expected=cost)
    if budget.max_tokens is not None:
        before = spent.prompt_tokens + spent.completion_tokens
        expected = plan.prompt_tokens + plan.completion_tokens
        yield Cap(name="max_tokens", limit=budget.max_tokens, spent=before, expected=expected)
