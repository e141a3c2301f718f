"""What a run would ask its teacher, what that would cost and how long it would take.

Nothing is asked. The prompts are loaded, validated, filtered and sealed as the run would do it, so
the run reuses them, and the ledger says what is there already.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distillery.storage.fingerprint import sha256
from distillery.storage.stage import find_stage
from distillery.teacher import Request, teacher_identity
from distillery.teacher.generation import (
    CHUNKS_AT_A_TIME,
    ROWS_PER_BATCH,
    generation_stage,
    prompt_requests,
    prompt_rows,
)
from distillery.teacher.panel.rounds import Rounds, Row
from schemas.execution import StoreSpec
from schemas.filters import JudgeFilter
from schemas.panel import PanelTeacher
from schemas.recipe import GenerationRecipe, Recipe
from schemas.refs import DatasetRef
from schemas.student import PrunedStudent
from schemas.task import TaskSpec
from schemas.teacher import TeacherSpec
from schemas.units import money_text

if TYPE_CHECKING:
    from distillery.ledger import Averages, Ledger, LedgerRow, Spending

_CHARS_PER_TOKEN = 4
"""English prose under the vocabularies of today's models; other text takes more tokens."""

_UNKNOWN = "the ledger has no count of this teacher's tokens"

_REQUESTS_PER_LOOKUP = 2048
_BATCH_S = 86_400.0

_NOTES = ("store", "filters", "evaluation", "student", "judge")
"""What is said of the run, beside what its estimates rest on."""


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberPlan:
    """What one member of a panel would be asked."""

    name: str
    most: GenerationPlan
    """If every row went on to it that can."""
    least: int
    """Distinct requests that it would be asked in any case."""
    share: float | None = None
    """Share of the rows that went on to it, of those on which the ledger can say so. None: it
    knows of none, or nothing has to be settled before."""

    @property
    def expected(self) -> int | None:
        """Return how many requests to expect; None where nobody knows."""
        if self.least == self.most.to_ask:
            return self.least
        if self.share is None:
            return None
        return self.least + round(self.share * (self.most.to_ask - self.least))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PanelPlan:
    """What `generate_responses` would do with a panel of teachers."""

    policy: str
    members: tuple[MemberPlan, ...]
    assumptions: tuple[tuple[str, str], ...] = ()


def plan_recipe(recipe: GenerationRecipe) -> GenerationPlan | PanelPlan:
    """Return the plan of the teacher's stage of ``recipe``; its prompts are sealed in the store.

    Raises:
        RecipeError: The recipe asks for something that cannot be done.
        InputDataError: The prompts cannot be used.
    """
    from distillery.data.loading import load_prompts
    from distillery.data.validation import prompt_set, validate_prompts
    from distillery.filters.prompts import filter_prompts
    from distillery.logs.stage import read_logs

    task, data, teacher, store = recipe.task, recipe.data, recipe.teacher, recipe.store
    sources = read_logs(data, store, recipe.execution)
    loaded = load_prompts(task, sources, store, recipe.execution).dataset("prompts")
    valid = validate_prompts(loaded, task, data, store, recipe.execution)
    made = filter_prompts(prompt_set(valid), task, recipe.filters, store, recipe.execution)
    prompts = made.dataset("prompts")
    plan: GenerationPlan | PanelPlan = (
        plan_panel(prompts, teacher, task, store)
        if teacher.is_panel
        else plan_generation(prompts, teacher, task, store)
    )
    assumptions = plan.assumptions
    if find_stage(generation_stage(prompts, teacher, task), store, recipe.execution):
        assumptions += (("store", "it has these responses, so the run asks nothing at all"),)
    assumptions += tuple(
        _judging(
            recipe, made.manifest.counts["kept_train"] + made.manifest.counts["kept_validation"]
        )
    )
    if isinstance(recipe, Recipe):
        num_rows = valid.manifest.counts["test"]
        why = f"not planned: evaluate_models asks the teacher up to {num_rows:,} test rows besides"
        assumptions += (("evaluation", why),)
        if isinstance(recipe.student, PrunedStudent):
            assumptions += (("student", _pruning(recipe.student)),)
    return dataclasses.replace(plan, assumptions=assumptions)


def _judging(recipe: GenerationRecipe, num_rows: int) -> Iterator[tuple[str, str]]:
    """Yield what judges among the filters over responses would be asked besides."""
    if not isinstance(recipe, Recipe):
        return
    for spec in recipe.filters.responses or ():
        if isinstance(spec, JudgeFilter):
            most = num_rows + (2 * spec.check_rows if recipe.data.gold else 0)
            yield (
                "filters",
                f"not planned: filter_responses asks the judge {spec.model.model!r} for up to "
                f"{most:,} scores besides",
            )


def _pruning(student: PrunedStudent) -> str:
    """Return what would be kept of the model that the student is made from."""
    from distillery.models.loading import ModelFiles
    from distillery.models.pruning import check_prunable, kept_layers

    check_prunable(student)
    of_model = ModelFiles.of(student).config().num_hidden_layers
    kept = kept_layers(student, of_model)
    text = f"prune_student keeps {len(kept)} of {of_model} layers: {', '.join(map(str, kept))}"
    if student.intermediate_size is None:
        return text
    return f"{text}; and {student.intermediate_size:,} neurons of each feed-forward block"


def plan_generation(
    prompts: DatasetRef, teacher: TeacherSpec, task: TaskSpec, store: StoreSpec
) -> GenerationPlan:
    """Return what answering ``prompts`` would take; the teacher is not asked.

    Raises:
        StoreError: The prompts or the ledger cannot be read.
    """
    from distillery.ledger import Ledger

    with Ledger.open(store) as ledger:
        tally = _Tally(teacher, ledger)
        requests = prompt_requests(prompts, teacher, task, store)
        while some := list(itertools.islice(requests, _REQUESTS_PER_LOOKUP)):
            tally.add(some)
        spent = ledger.spent(generation_stage(prompts, teacher, task).fingerprint)
        return _plan_of(teacher, tally.sums, ledger, spent)


def plan_panel(
    prompts: DatasetRef, panel: PanelTeacher, task: TaskSpec, store: StoreSpec
) -> PanelPlan:
    """Return what each member would be asked about ``prompts``; nobody is asked.

    Whom a row goes to in a cascade is not known before the members in front have answered it. So
    there are bounds, and between them an estimate where the ledger knows rows that were settled.

    Raises:
        StoreError: The prompts or the ledger cannot be read.
    """
    from distillery.ledger import Ledger

    purpose = generation_stage(prompts, panel, task).fingerprint
    with Ledger.open(store) as ledger:
        looking = _PanelTally(panel, task, prompts, store, ledger)
        for rows in prompt_rows(prompts, store):
            looking.add(rows)
        members = []
        for each in panel.teachers:
            spent = ledger.spent(f"{purpose}:{each.name}")
            members.append(
                MemberPlan(
                    name=each.name,
                    most=_plan_of(each.teacher, looking.most[each.name].sums, ledger, spent),
                    least=looking.least[each.name].sums["to_ask"],
                    share=looking.share(each.name),
                )
            )
    notes: tuple[tuple[str, str], ...] = ()
    if panel.judge is not None:
        why = f"not planned: up to {2 * (len(panel.teachers) - 1)} requests per row, two per pair"
        notes = (("judge", why),)
    return PanelPlan(policy=panel.policy.kind, members=tuple(members), assumptions=notes)


def _plan_of(
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


class _Tally:
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


class _PanelTally:
    """What the ledger says of each row of a panel: whom it went to, and whom it may go to."""

    def __init__(
        self,
        panel: PanelTeacher,
        task: TaskSpec,
        prompts: DatasetRef,
        store: StoreSpec,
        ledger: "Ledger",
    ) -> None:
        self._names = [each.name for each in panel.teachers]
        self._is_cascade = panel.policy.kind == "cascade"
        self._asks_everybody = panel.policy.kind in ("vote", "best_of")
        self._rounds, self._ledger = Rounds(panel, task, prompts, store), ledger
        self.least = {e.name: _Tally(e.teacher, ledger) for e in panel.teachers}
        self.most = {e.name: _Tally(e.teacher, ledger) for e in panel.teachers}
        self._settled: collections.Counter[str] = collections.Counter()
        self._went_on: collections.Counter[str] = collections.Counter()

    def add(self, values: Sequence[dict[str, Any]]) -> None:
        """Add rows of the prompts."""
        rows = [Row(each) for each in values]
        self._rounds.settle(rows, self._look_up)
        for name in self._names:
            certain = [row for row in rows if self._is_certain(row, name)]
            possible = [row for row in rows if self._is_possible(row, name)]
            for tally, wanted in ((self.least, certain), (self.most, certain + possible)):
                requests = self._rounds.askers[name].requests([row.values for row in wanted])
                tally[name].add([request for of_row in requests for request in of_row])
        for row in rows:
            for name in row.known.said:
                is_settled = row.taken is not None and row.taken.member == name
                (self._settled if is_settled else self._went_on)[name] += 1

    def share(self, name: str) -> float | None:
        """Return the share of rows that go on to ``name``, of those that nobody can tell yet."""
        if not self._is_cascade:
            return None
        share = 1.0
        for before in self._names[: self._names.index(name)]:
            num_known = self._settled[before] + self._went_on[before]
            if not num_known:
                return None
            share *= self._went_on[before] / num_known
        return share

    def _is_certain(self, row: Row, name: str) -> bool:
        return name in row.known.said or name == row.stuck_at or self._asks_everybody

    def _is_possible(self, row: Row, name: str) -> bool:
        if not self._is_cascade or row.stuck_at is None:
            return False
        return self._names.index(name) > self._names.index(row.stuck_at)

    def _look_up(self, _: str, requests: Sequence[Request]) -> "Mapping[str, LedgerRow]":
        return self._ledger.get({request.request_hash for request in requests})


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


def sentences(plan: GenerationPlan | PanelPlan) -> list[str]:
    """Return the plan in lines for people, a label in front of each."""
    if isinstance(plan, PanelPlan):
        return _panel_sentences(plan)
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
        *(
            ("note" if name in _NOTES else "assumed", f"{name}: {why}")
            for name, why in plan.assumptions
        ),
    ]
    labels = ["" if i and pairs[i - 1][0] == label else label for i, (label, _) in enumerate(pairs)]
    return [f"{label:<19}{text}" for label, (_, text) in zip(labels, pairs, strict=True)]


def _panel_sentences(plan: PanelPlan) -> list[str]:
    lines = []
    for member in plan.members:
        lines += [f"{member.name} ({plan.policy})", *sentences(member.most)]
        if (expected := member.expected) != member.most.to_ask:
            before = "the ledger cannot say yet how many"
            if expected is not None and member.share is not None:
                before = (
                    f"about {expected:,}, as {member.share:.1%} of the rows in the ledger went on"
                )
            bounds = f"between {member.least:,} and {member.most.to_ask:,}"
            lines.append(f"{'expected':<19}{bounds} to ask: {before}")
        lines.append("")
    return [*lines, *(f"{'note':<19}{name}: {why}" for name, why in plan.assumptions)]


def _cost(plan: GenerationPlan, most: str) -> str:
    if plan.is_local:
        return "none: the teacher runs here"
    if plan.cost is None or plan.saved_cost is None or plan.currency is None:
        return "unknown: teacher.price is not set"
    saved = money_text(plan.saved_cost, plan.currency)
    return f"{most}{money_text(plan.cost, plan.currency)}; the ledger saves {saved}"


def _time(plan: GenerationPlan) -> str:
    if plan.seconds is None:
        told = "" if plan.is_local else ", and the recipe sets no limit"
        return f"unknown: the ledger has no response of this teacher{told}"
    if not plan.to_ask:
        return "none"
    if plan.num_batches:
        return f"up to {_duration(plan.seconds)}, and most batches take much less"
    return "less than a second" if plan.seconds < 1 else f"about {_duration(plan.seconds)}"


def _cap_sentence(cap: Cap, plan: GenerationPlan) -> str:
    def words(amount: float) -> str:
        is_money = cap.name == "max_cost"
        return money_text(amount, plan.currency or "") if is_money else f"{amount:,.0f} tokens"

    spent = f"teacher.budget.{cap.name} is {words(cap.limit)}, {words(cap.spent)} are spent"
    if cap.is_enough:
        return f"{spent}: enough"
    short = "may not be enough, and the run stops there" if plan.is_upper_bound else "not enough"
    return f"{spent}: {short}. Raise it to {words(cap.spent + cap.expected)}"


def _duration(seconds: float) -> str:
    """Return a duration in the unit that suits it.

    >>> _duration(0), _duration(42.4), _duration(600), _duration(9000)
    ('0 s', '42 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
