"""What a run would ask its teacher, what that would cost and how long it would take.

Nothing is asked. The prompts are loaded, validated and sealed as the run would do it, so the run
reuses them, and the ledger says what is there already.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from distillery.storage.fingerprint import sha256
from distillery.storage.stage import find_stage
from distillery.teacher import Request, teacher_identity
from distillery.teacher.generation import generation_stage, prompt_requests
from distillery.teacher.summary import money
from schemas.execution import StoreSpec
from schemas.recipe import GenerationRecipe, Recipe
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from schemas.teacher import OpenAITeacher, TeacherSpec

if TYPE_CHECKING:
    from distillery.ledger import Averages, Ledger, LedgerRow, Spending

_CHARS_PER_TOKEN = 4
"""English prose under the vocabularies of today's models; other text takes more tokens."""

_REQUESTS_PER_LOOKUP = 2048


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cap:
    """One cap of the budget against what is spent and expected."""

    name: str
    """Field of `teacher.budget`."""

    limit: float
    """The cap, in tokens or in the currency of the price table."""

    spent: float
    """Spent for these prompts by earlier runs."""

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

    num_requests: int
    """Distinct requests: equal prompts share one."""

    in_ledger: int
    """Requests that have their final response."""

    to_ask: int
    """Requests that the teacher would be asked."""

    prompt_tokens: int
    """Tokens that it would read."""

    completion_tokens: int
    """Tokens that it would write."""

    is_upper_bound: bool
    """Whether `completion_tokens` is the most that it may write, for want of an average."""

    cost: float | None
    """Price of these tokens. None: no price is known."""

    saved_cost: float | None
    """Price of the responses that the ledger has."""

    currency: str | None
    """Currency of the price table."""

    is_local: bool
    """Whether the teacher runs here, so that nobody charges for its tokens."""

    seconds: float | None
    """Time for the asking. None: nothing is known that it could be told from."""

    caps: tuple[Cap, ...] = ()
    """Caps of the budget."""

    assumptions: tuple[tuple[str, str], ...] = ()
    """What the estimates rest on: its name, and why it was taken."""


def plan_recipe(recipe: GenerationRecipe) -> GenerationPlan:
    """Return the plan of the teacher's stage of ``recipe``; its prompts are sealed in the store.

    Raises:
        RecipeError: The recipe asks for something that cannot be done.
        InputDataError: The prompts cannot be used.
    """
    from distillery.data.loading import load_prompts
    from distillery.data.validation import validate_prompts

    task, data, teacher, store = recipe.task, recipe.data, recipe.teacher, recipe.store
    loaded = load_prompts(data, store, recipe.execution).dataset("prompts")
    valid = validate_prompts(loaded, task, data, store, recipe.execution)
    prompts = valid.dataset("prompts")
    plan = plan_generation(prompts, teacher, task, store)
    assumptions = plan.assumptions
    if find_stage(generation_stage(prompts, teacher, task), store, recipe.execution):
        assumptions += (("store", "it has these responses, so the run asks nothing at all"),)
    if isinstance(recipe, Recipe):
        num_rows = valid.manifest.counts["test"]
        why = f"not planned: evaluate_models asks the teacher up to {num_rows:,} test rows besides"
        assumptions += (("evaluation", why),)
    return dataclasses.replace(plan, assumptions=assumptions)


def plan_generation(
    prompts: DatasetRef, teacher: TeacherSpec, task: TaskSpec, store: StoreSpec
) -> GenerationPlan:
    """Return what answering ``prompts`` would take; the teacher is not asked.

    Raises:
        StoreError: The prompts or the ledger cannot be read.
    """
    from distillery.ledger import Ledger

    with Ledger.open(store) as ledger:
        tally = _tally(prompt_requests(prompts, teacher, task, store), teacher, ledger)
        averages = ledger.averages(sha256(teacher_identity(teacher)))
        spent = ledger.spent(generation_stage(prompts, teacher, task).fingerprint)
    estimate = _Estimate(tally, teacher, averages)
    return GenerationPlan(
        num_rows=tally.num_rows,
        num_samples=teacher.samples.num_samples,
        num_requests=tally.in_ledger + tally.to_ask,
        in_ledger=tally.in_ledger,
        to_ask=tally.to_ask,
        prompt_tokens=estimate.prompt_tokens,
        completion_tokens=estimate.completion_tokens,
        is_upper_bound=estimate.is_upper_bound,
        cost=estimate.cost(estimate.prompt_tokens, estimate.completion_tokens),
        saved_cost=estimate.cost(tally.saved_prompt_tokens, tally.saved_completion_tokens),
        currency=estimate.currency,
        is_local=not isinstance(teacher, OpenAITeacher),
        seconds=estimate.seconds,
        caps=tuple(estimate.caps(spent)),
        assumptions=tuple(estimate.assumptions()),
    )


@dataclasses.dataclass
class _Tally:
    """What the requests of a plan add up to."""

    num_rows: int = 0
    in_ledger: int = 0
    to_ask: int = 0
    chars_to_ask: int = 0
    cut_before: int = 0
    saved_prompt_tokens: int = 0
    saved_completion_tokens: int = 0

    def add(self, request: Request, row: "LedgerRow | None", max_new_tokens: int) -> None:
        """Count one distinct request with the ledger's row for it."""
        if row is None or not row.is_final(max_new_tokens):
            self.to_ask += 1
            self.cut_before += row is not None and row.state == "truncated"
            self.chars_to_ask += sum(len(message["content"]) for message in request.messages)
            return
        self.in_ledger += 1
        self.saved_prompt_tokens += row.prompt_tokens or 0
        self.saved_completion_tokens += row.completion_tokens or 0


def _tally(requests: Iterable[Request], teacher: TeacherSpec, ledger: "Ledger") -> _Tally:
    """Return the sums over the distinct requests; of all of them only the hashes are kept."""
    tally, seen = _Tally(), set[bytes]()
    for some in _portions(requests):
        tally.num_rows += sum(request.sample_index == 0 for request in some)
        fresh = {r.request_hash: r for r in some if bytes.fromhex(r.request_hash) not in seen}
        seen.update(map(bytes.fromhex, fresh))
        rows = ledger.get(fresh)
        for request_hash, request in fresh.items():
            tally.add(request, rows.get(request_hash), teacher.max_new_tokens)
    return tally


def _portions(requests: Iterable[Request]) -> Iterator[list[Request]]:
    rest = iter(requests)
    while some := list(itertools.islice(rest, _REQUESTS_PER_LOOKUP)):
        yield some


class _Estimate:
    """Tokens, cost and time of what is to be asked, from the teacher's averages where it has any.

    Each figure has its entry in ``assumptions``.
    """

    def __init__(self, tally: _Tally, teacher: TeacherSpec, averages: "Averages") -> None:
        self._tally, self._teacher, self._averages = tally, teacher, averages
        self._endpoint = teacher if isinstance(teacher, OpenAITeacher) else None
        self._price = self._endpoint.price if self._endpoint else None
        self.currency = self._price.currency if self._price else None
        self.prompt_tokens = math.ceil(tally.chars_to_ask * self._tokens_per_char)
        self.completion_tokens = math.ceil(tally.to_ask * self._tokens_per_response)

    @property
    def is_upper_bound(self) -> bool:
        """Return whether no average of the responses' length is known."""
        return self._averages.completion_tokens is None

    @property
    def _tokens_per_char(self) -> float:
        tokens, chars = self._averages.prompt_tokens, self._averages.prompt_chars
        return tokens / chars if tokens and chars else 1 / _CHARS_PER_TOKEN

    @property
    def _tokens_per_response(self) -> float:
        average, most = self._averages.completion_tokens, self._teacher.max_new_tokens
        return most if average is None else min(average, most)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Return the price of tokens; None without a price table."""
        return self._price.cost(prompt_tokens, completion_tokens) if self._price else None

    @property
    def seconds(self) -> float | None:
        """Return the time that latency and limits allow, the slowest of them; None: unknown."""
        if not self._tally.to_ask:
            return 0.0
        bounds = [pace for pace in (self._by_latency, *self._by_limits) if pace is not None]
        return max(bounds, default=None)

    @property
    def _by_latency(self) -> float | None:
        latency_s, to_ask = self._averages.latency_s, self._tally.to_ask
        if latency_s is None:
            return None
        return math.ceil(to_ask / self._at_once) * latency_s

    @property
    def _at_once(self) -> int:
        """Return the requests that are answered side by side."""
        if isinstance(self._teacher, OpenAITeacher):
            return self._teacher.concurrency
        return self._teacher.batch_size

    @property
    def _by_limits(self) -> Iterator[float]:
        if self._endpoint is None:
            return
        if self._endpoint.requests_per_minute:
            yield 60 * self._tally.to_ask / self._endpoint.requests_per_minute
        if self._endpoint.tokens_per_minute:
            tokens = self.prompt_tokens + self.completion_tokens
            yield 60 * tokens / self._endpoint.tokens_per_minute

    def caps(self, spent: "Spending") -> Iterator[Cap]:
        """Yield the caps that the budget sets."""
        if self._endpoint is None:
            return
        cost = self.cost(self.prompt_tokens, self.completion_tokens)
        budget = self._endpoint.budget
        if budget.max_cost is not None and cost is not None:
            yield Cap(name="max_cost", limit=budget.max_cost, spent=spent.cost, expected=cost)
        if budget.max_tokens is not None:
            yield Cap(
                name="max_tokens",
                limit=budget.max_tokens,
                spent=spent.prompt_tokens + spent.completion_tokens,
                expected=self.prompt_tokens + self.completion_tokens,
            )

    def assumptions(self) -> Iterator[tuple[str, str]]:
        """Yield what the figures rest on: a name, and why it was taken."""
        if not self._tally.to_ask:
            return
        known = f"this teacher's average over {self._averages.num_rows:,} responses in the ledger"
        unknown = "the ledger has no count of this teacher's tokens"
        if self._averages.prompt_tokens and self._averages.prompt_chars:
            yield "tokens per character", f"{self._tokens_per_char:.3f}: {known}"
        else:
            yield "tokens per character", f"1/{_CHARS_PER_TOKEN}, as in English prose: {unknown}"
        if self.is_upper_bound:
            yield "tokens per response", f"teacher.max_new_tokens, the most there can be: {unknown}"
        else:
            yield "tokens per response", f"{self._tokens_per_response:.1f}: {known}"
        if self._tally.cut_before and not self.is_upper_bound:
            why = "taken as long as the average, but they will be longer"
            yield "truncated before", f"{self._tally.cut_before:,} of those to ask: {why}"
        if self._averages.latency_s is not None:
            side = "teacher.concurrency" if self._endpoint else "teacher.batch_size"
            yield "latency", f"{self._averages.latency_s:.2g} s: {known}"
            yield "concurrency", f"{self._at_once:,} from the first request on ({side})"
        if self._endpoint:
            yield "attempts", "one per request: no retry and no repair"


def sentences(plan: GenerationPlan) -> list[str]:
    """Return the plan in lines for people, a label in front of each."""
    roughly = "about " if plan.to_ask else ""
    most = f"up to {roughly}" if plan.is_upper_bound and plan.to_ask else roughly
    samples = "1 sample" if plan.num_samples == 1 else f"{plan.num_samples} samples"
    pairs = [
        ("rows", f"{plan.num_rows:,}, {samples} each"),
        ("distinct requests", f"{plan.num_requests:,}"),
        ("in the ledger", f"{plan.in_ledger:,}"),
        ("to ask", f"{plan.to_ask:,}"),
        ("prompt tokens", f"{roughly}{plan.prompt_tokens:,}"),
        ("completion tokens", f"{most}{plan.completion_tokens:,}"),
        ("cost", _cost(plan, most)),
        ("time", _time(plan)),
        *(("budget", _cap_sentence(cap, plan)) for cap in plan.caps),
        *((_label(name), f"{name}: {why}") for name, why in plan.assumptions),
    ]
    labels = ["" if i and pairs[i - 1][0] == label else label for i, (label, _) in enumerate(pairs)]
    return [f"{label:<19}{text}" for label, (_, text) in zip(labels, pairs, strict=True)]


def _label(name: str) -> str:
    return "note" if name in ("store", "evaluation") else "assumed"


def _cost(plan: GenerationPlan, most: str) -> str:
    if plan.is_local:
        return "none: the teacher runs here"
    if plan.cost is None or plan.saved_cost is None or plan.currency is None:
        return "unknown: teacher.price is not set"
    saved = money(plan.saved_cost, plan.currency)
    return f"{most}{money(plan.cost, plan.currency)}; the ledger saves {saved}"


def _time(plan: GenerationPlan) -> str:
    if plan.seconds is None:
        told = "" if plan.is_local else ", and the recipe sets no limit"
        return f"unknown: the ledger has no response of this teacher{told}"
    if not plan.to_ask:
        return "none"
    return "less than a second" if plan.seconds < 1 else f"about {_duration(plan.seconds)}"


def _cap_sentence(cap: Cap, plan: GenerationPlan) -> str:
    in_words = (lambda x: money(x, plan.currency or "")) if cap.name == "max_cost" else _tokens
    spent = f"teacher.budget.{cap.name} is {in_words(cap.limit)}, {in_words(cap.spent)} are spent"
    if cap.is_enough:
        return f"{spent}: enough"
    needed = in_words(cap.spent + cap.expected)
    short = "may not be enough, and the run stops there" if plan.is_upper_bound else "not enough"
    return f"{spent}: {short}. Raise it to {needed}"


def _tokens(count: float) -> str:
    return f"{count:,.0f} tokens"


def _duration(seconds: float) -> str:
    """Return a duration in the unit that suits it.

    >>> _duration(0), _duration(42.4), _duration(600), _duration(9000)
    ('0 s', '42 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
