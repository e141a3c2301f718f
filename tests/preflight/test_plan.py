"""What a plan says before anything is asked: hand-computed figures, each with its assumption."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distillery.data.loading import load_prompts
from distillery.data.validation import validate_prompts
from distillery.ledger import Ledger, LedgerRow
from distillery.preflight.generation_plan import GenerationPlan, plan_generation
from distillery.preflight.plan import plan_recipe, sentences
from distillery.storage.fingerprint import sha256
from distillery.teacher import Request
from distillery.teacher.generation import generation_stage, prompt_requests, rows_per_chunk
from distillery.teacher.protocol import teacher_identity
from schemas.errors import InputDataError, RecipeError
from schemas.execution import ExecutionSpec
from schemas.recipe import GenerationRecipe, Recipe, validate_recipe
from schemas.refs import DatasetRef
from schemas.teacher import OpenAITeacher
from tests.fixtures_ledger import commit
from tests.fixtures_models import make_tiny_model
from tests.fixtures_recipe import make_recipe, write_rows

PRICE = {"prompt_per_million": 10.0, "completion_per_million": 100.0, "currency": "EUR"}
TEXT = "the red door is open"  # 20 characters: 5 tokens at 4 characters each


class Case:
    """Prompts of 20 characters each in a store, and a teacher that nobody asks."""

    def __init__(self, folder: Path, texts: list[str], **teacher: Any) -> None:
        raw = make_recipe(folder, "http://127.0.0.1:9/v1", teacher=teacher)
        rows = [{"id": f"t{i}", "text": text} for i, text in enumerate(texts)]
        write_rows(folder / "train.jsonl", rows)
        write_rows(folder / "validation.jsonl", [{"id": "v", "text": TEXT.upper()}])
        raw["data"]["validation"] = raw["data"]["train"] | {
            "path": str(folder / "validation.jsonl")
        }
        raw["data"].pop("test")
        raw["data"].pop("gold")
        self.raw = raw

    @property
    def recipe(self) -> GenerationRecipe:
        return validate_recipe(self.raw, GenerationRecipe, source="a test's recipe")

    @property
    def prompts(self) -> DatasetRef:
        recipe = self.recipe
        loaded = load_prompts(recipe.task, recipe.data, recipe.store, recipe.execution).dataset(
            "prompts"
        )
        return validate_prompts(
            loaded, recipe.task, recipe.data, recipe.store, recipe.execution
        ).dataset("prompts")

    @property
    def requests(self) -> list[Request]:
        recipe = self.recipe
        assert not recipe.teacher.is_panel
        return list(prompt_requests(self.prompts, recipe.teacher, recipe.task, recipe.store))

    def plan(self) -> GenerationPlan:
        recipe = self.recipe
        assert not recipe.teacher.is_panel
        return plan_generation(self.prompts, recipe.teacher, recipe.task, recipe.store)

    def keep(self, *requests: Request, purpose: str | None = None, **fields: Any) -> None:
        """Put a response to each of ``requests`` into the ledger."""
        with Ledger.open(self.recipe.store) as ledger:
            rows = [self._row(request, **fields) for request in requests]
            commit(ledger, *rows, purpose=purpose)

    def _row(self, request: Request, **fields: Any) -> LedgerRow:
        identity = teacher_identity(self.recipe.teacher)
        values: dict[str, Any] = {
            "request_hash": request.request_hash,
            "prompt_hash": sha256(request.messages),
            "teacher_id": sha256(identity),
            "teacher": json.dumps(identity),
            "request": json.dumps({"messages": request.messages}),
            "state": "ok",
            "text": "warm",
            "finish_reason": "stop",
            "max_new_tokens": request.sampling.max_new_tokens,
            "prompt_tokens": 8,
            "completion_tokens": 2,
            "billed_prompt_tokens": 8,
            "billed_completion_tokens": 2,
            "cost": None,
            "currency": None,
            "model_reported": "m",
            "latency_s": 0.5,
            "attempts": 1,
            "failed_runs": 0,
            "repaired": False,
            "error": None,
        }
        return LedgerRow(**values | fields)


def _texts(number: int) -> list[str]:
    return [f"the red door is {i:04d}" for i in range(number)]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


def test_an_empty_ledger_is_planned_for_by_characters_and_the_longest_response(
    folder: Path,
) -> None:
    plan = Case(folder, _texts(9), price=PRICE, max_new_tokens=8).plan()
    assert (plan.num_rows, plan.num_requests, plan.in_ledger, plan.to_ask) == (10, 10, 0, 10)
    assert plan.prompt_tokens == 50  # 10 x 20 characters / 4
    assert plan.completion_tokens == 80 and plan.is_upper_bound
    assert plan.cost == pytest.approx((50 * 10 + 80 * 100) / 1e6)
    assert (plan.saved_cost, plan.currency) == (0.0, "EUR")
    assert plan.seconds is None
    assert [name for name, _ in plan.assumptions] == [
        "tokens per character",
        "tokens per response",
        "attempts",
    ]


def test_equal_prompts_are_asked_once(folder: Path) -> None:
    plan = Case(folder, [TEXT] * 4 + _texts(3)).plan()
    assert (plan.num_rows, plan.num_requests, plan.to_ask) == (8, 5, 5)


def test_every_sample_is_a_request(folder: Path) -> None:
    samples = {"samples": {"num_samples": 3}, "sampling_temperature": 0.7}
    plan = Case(folder, _texts(4), **samples).plan()
    assert (plan.num_rows, plan.num_samples, plan.num_requests) == (5, 3, 15)
    assert plan.prompt_tokens == 15 * 5


def test_the_teachers_own_averages_take_the_place_of_guesses(folder: Path) -> None:
    case = Case(folder, _texts(9), price=PRICE, max_new_tokens=8, concurrency=3)
    case.keep(*case.requests[:4])
    plan = case.plan()
    assert (plan.in_ledger, plan.to_ask) == (4, 6)
    assert plan.prompt_tokens == 6 * 8  # 8 tokens per 20 characters
    assert plan.completion_tokens == 6 * 2 and not plan.is_upper_bound
    assert plan.saved_cost == pytest.approx(4 * (8 * 10 + 2 * 100) / 1e6)
    assert plan.seconds == pytest.approx(2 * 0.5)  # 6 requests, 3 at a time
    named = dict(plan.assumptions)
    assert named["tokens per character"].startswith("0.400: this teacher's average over 4 ")
    assert named["latency"].startswith("0.5 s: ")
    assert named["concurrency"].startswith("3 from the first request on")


def test_an_average_above_the_limit_is_cut_to_it(folder: Path) -> None:
    case = Case(folder, _texts(3), max_new_tokens=8)
    case.keep(case.requests[0], completion_tokens=500)
    assert case.plan().completion_tokens == 3 * 8


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"state": "truncated"}, 3),
        ({"state": "truncated", "max_new_tokens": 4}, 4),
        ({"state": "refused"}, 3),
        ({"state": "failed", "failed_runs": 1}, 4),
        ({"state": "failed", "failed_runs": 3}, 3),
    ],
)
def test_what_the_ledger_has_is_asked_again_only_when_that_can_help(
    folder: Path, fields: dict[str, Any], asked: int
) -> None:
    case = Case(folder, _texts(3), max_new_tokens=8)
    case.keep(case.requests[0], **fields)
    assert case.plan().to_ask == asked


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({"requests_per_minute": 20}, 60 * 10 / 20),
        ({"tokens_per_minute": 65}, 60 * 130 / 65),
        ({"requests_per_minute": 20, "tokens_per_minute": 65}, 120),
    ],
)
def test_the_slowest_limit_sets_the_time(
    folder: Path, limits: dict[str, Any], seconds: float
) -> None:
    plan = Case(folder, _texts(9), max_new_tokens=8, **limits).plan()
    assert plan.seconds == pytest.approx(seconds)


def test_a_cap_is_held_against_what_is_spent_and_what_is_to_come(folder: Path) -> None:
    budget = {"max_tokens": 200, "max_cost": 0.01}
    case = Case(folder, _texts(9), price=PRICE, max_new_tokens=8, budget=budget)
    cost, tokens = case.plan().caps
    assert (cost.name, cost.limit, cost.spent, cost.is_enough) == ("max_cost", 0.01, 0.0, True)
    assert (tokens.spent, tokens.expected, tokens.is_enough) == (0, 130, True)

    recipe = case.recipe
    purpose = generation_stage(case.prompts, recipe.teacher, recipe.task).fingerprint
    spent = {"billed_prompt_tokens": 150, "cost": 0.009, "currency": "EUR"}
    case.keep(case.requests[0], purpose=purpose, **spent)
    cost, tokens = case.plan().caps
    assert (cost.spent, cost.is_enough) == (0.009, False)
    assert (tokens.spent, tokens.expected, tokens.is_enough) == (152, 9 * (8 + 2), False)
    said = "\n".join(sentences(case.plan()))
    assert "teacher.budget.max_tokens is 200 tokens, 152 tokens are spent: not enough." in said
    assert "Raise it to 242 tokens" in said


def test_a_full_ledger_leaves_nothing_to_ask(folder: Path) -> None:
    case = Case(folder, _texts(3), price=PRICE)
    case.keep(*case.requests)
    plan = case.plan()
    assert (plan.to_ask, plan.cost, plan.seconds, plan.assumptions) == (0, 0.0, 0.0, ())
    assert sentences(plan)[3] == "to ask             0"


def test_a_plan_in_words_names_its_assumptions(folder: Path) -> None:
    case = Case(folder, _texts(9), price=PRICE, max_new_tokens=8)
    assert sentences(case.plan()) == [
        "rows               10, 1 sample each",
        "distinct requests  10",
        "in the ledger      0",
        "to ask             10",
        "prompt tokens      about 50",
        "completion tokens  up to about 80",
        "cost               up to about 0.0085 EUR; the ledger saves 0.00 EUR",
        "time               unknown: the ledger has no response of this teacher, and the recipe "
        "sets no limit",
        "assumed            tokens per character: 1/4, as in English prose: the ledger has no "
        "count of this teacher's tokens",
        "                   tokens per response: teacher.max_new_tokens, the most there can be: "
        "the ledger has no count of this teacher's tokens",
        "                   attempts: one per request: no retry and no repair",
    ]


def test_nobody_charges_for_a_local_teacher(folder: Path) -> None:
    from tests.fixtures_models import make_tiny_model

    case = Case(folder, _texts(4))
    model = str(make_tiny_model(folder / "teacher"))
    case.raw["teacher"] = {"kind": "transformers", "model": model, "batch_size": 2}
    said = sentences(case.plan())
    assert "cost               none: the teacher runs here" in said
    assert "time               unknown: the ledger has no response of this teacher" in said
    case.keep(case.requests[0], latency_s=0.25)
    assert case.plan().seconds == pytest.approx(0.5)  # 4 prompts, 2 at a time


def test_without_a_price_the_cost_is_unknown_not_zero(folder: Path) -> None:
    plan = Case(folder, _texts(2)).plan()
    assert plan.cost is None and plan.saved_cost is None
    assert "cost               unknown: teacher.price is not set" in sentences(plan)


def test_a_plan_seals_the_prompts_and_asks_nobody(folder: Path) -> None:
    case = Case(folder, _texts(4))
    before = plan_recipe(case.recipe)
    assert isinstance(before, GenerationPlan)
    assert before.to_ask == 5
    assert load_prompts(
        case.recipe.task, case.recipe.data, case.recipe.store, case.recipe.execution
    ).reused
    assert plan_recipe(case.recipe) == before


def test_a_plan_of_the_spine_says_that_the_evaluation_is_not_in_it(folder: Path) -> None:
    raw = make_recipe(folder, "http://127.0.0.1:9/v1")
    plan = plan_recipe(validate_recipe(raw, Recipe, source="a test's recipe"))
    assert isinstance(plan, GenerationPlan)
    assert plan.num_rows == 240
    assert dict(plan.assumptions)["evaluation"].endswith("up to 80 test rows besides")


def test_a_plan_says_what_a_pruned_student_keeps_and_refuses_what_is_not_there(
    folder: Path,
) -> None:
    model = str(make_tiny_model(folder / "model", num_layers=4))
    raw = make_recipe(folder, "http://127.0.0.1:9/v1")
    student = {"kind": "pruned", "model": model, "num_layers": 2, "intermediate_size": 16}
    plan = plan_recipe(validate_recipe(raw | {"student": student}, Recipe, source="r.yaml"))
    assert sentences(plan)[-1] == (
        "                   student: prune_student keeps 2 of 4 layers: 0, 3; and 16 neurons of "
        "each feed-forward block"
    )
    raw["student"] = student | {"num_layers": 5}
    with pytest.raises(RecipeError, match="more than the 4 layers"):
        plan_recipe(validate_recipe(raw, Recipe, source="r.yaml"))
    raw["student"] = student | {"intermediate_size": 100_000}
    with pytest.raises(RecipeError, match="intermediate_size=100000 is not smaller"):
        plan_recipe(validate_recipe(raw, Recipe, source="r.yaml"))


def test_a_plan_refuses_prompts_that_the_run_would_refuse(folder: Path) -> None:
    case = Case(folder, _texts(4))
    write_rows(folder / "train.jsonl", [{"id": "same", "text": TEXT}] * 9)
    with pytest.raises(InputDataError, match="duplicate_id"):
        plan_recipe(case.recipe)


def test_a_plan_holds_no_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests come as an iterator, and each look-up is for a bounded number of them."""
    from distillery.preflight import generation_plan as planning

    monkeypatch.setattr(planning, "_REQUESTS_PER_LOOKUP", 3)
    case = Case(folder, [TEXT, *_texts(6), TEXT])
    case.keep(case.requests[1])
    plan = case.plan()
    assert (plan.num_rows, plan.num_requests, plan.in_ledger, plan.to_ask) == (9, 8, 1, 7)


def test_batches_are_planned_at_what_their_discount_leaves_and_with_a_day_each(
    folder: Path,
) -> None:
    case = Case(folder, _texts(9), price=PRICE, max_new_tokens=8, batch=True)
    case.keep(case.requests[0])
    plan = case.plan()
    assert (plan.num_batches, plan.to_ask, plan.seconds) == (1, 9, 86_400.0)
    full = Case(folder, _texts(9), price=PRICE, max_new_tokens=8).plan().cost
    assert full is not None and plan.cost == pytest.approx(full / 2)
    said = sentences(plan)
    assert "time               up to 24.0 h, and most batches take much less" in said
    assert (
        "1 batch at the provider, each answered within 24 h, for 50% of the price"
        in (dict(plan.assumptions)["batches"])
    )


def test_chunks_of_a_teacher_in_batches_fill_a_batch() -> None:
    served = OpenAITeacher(model="m", base_url="http://host/v1", batch=True)
    assert rows_per_chunk(served, ExecutionSpec(chunk_rows=1000)) == 50_000
    by_itself = served.model_copy(update={"batch": False})
    assert rows_per_chunk(by_itself, ExecutionSpec(chunk_rows=1000)) == 1000
