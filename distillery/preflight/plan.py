"""What a run would ask its teacher, what that would cost and how long it would take.

Nothing is asked. The prompts are loaded, validated, filtered and sealed as the run would do it, so
the run reuses them, and the ledger says what is there already.
"""

import dataclasses
from collections.abc import Iterator

from distillery.preflight.generation_plan import Cap, GenerationPlan, plan_generation
from distillery.preflight.panel_plan import PanelPlan, plan_panel
from distillery.storage.stage import find_stage
from distillery.teacher.generation import generation_stage
from schemas.filters import JudgeFilter
from schemas.recipe import GenerationRecipe, Recipe
from schemas.student import PrunedStudent
from schemas.units import money_text

_NOTES = ("store", "filters", "evaluation", "student", "judge")
"""What is said of the run, beside what its estimates rest on."""


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
