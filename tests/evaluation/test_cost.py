from typing import Any

import pytest

from distillery.evaluation.cost import Prices, cost_of_requests, distillation_cost
from distillery.evaluation.findings import findings, notes
from distillery.evaluation.verdict import verdict
from distillery.storage.stage import Attempt, Stage, run_stage
from distillery.storage.store import Store
from schemas.budget import MachinePrice, PriceSpec
from schemas.comparison import Comparison, DistillationCost, Measurements, Performance
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.refs import Lineage, ReportRef
from tests.fixtures_comparison import STUDENT_REF, comparison, measurement, measurements
from tests.fixtures_lineage import dataset_ref, lineage_of

TOKENS = PriceSpec(prompt_per_million=2.0, completion_per_million=10.0, source="a list of May")
MACHINE = MachinePrice(per_hour=0.36, source="a bill of May")
BOTH = Prices(TOKENS, MACHINE)
# 500 tokens read, 40 written: 0.0010 + 0.0004 USD.
SPEED = Performance(queries_per_hour=36_000.0, prompt_tokens=500.0, new_tokens=40.0)


def hosted() -> Measurements:
    """Return a served teacher that answers 36,000 requests an hour, and the usual students."""
    teacher = measurement(0, None, 0.1)
    return measurements(teacher=teacher.model_copy(update={"performance": SPEED}))


def sealed(
    store: StoreSpec, *, hours: dict[StageName, float], bill: dict[str, int] | None = None
) -> Lineage:
    """Return a lineage whose stages took so long and whose responses took so many tokens."""

    def seal(name: StageName, facts: dict[str, Any]) -> str:
        def work(attempt: Attempt) -> None:
            attempt.outputs["made"] = ReportRef(uri=attempt.uri, fingerprint="f")
            attempt.facts |= facts

        done = run_stage(Stage(name, 1, inputs={}, spec={}), store, ExecutionSpec(), work).manifest
        slow = done.model_copy(update={"timings_s": {"total": hours.get(name, 0.0) * 3600}})
        uri = f"{name}/{done.fingerprint}/manifest.json"
        Store(store.root).write_bytes(uri, slow.model_dump_json().encode())
        return done.fingerprint

    def model(name: StageName) -> Any:
        fingerprint = seal(name, {})
        uri = f"{name}/{fingerprint}/a/model"
        return STUDENT_REF.model_copy(update={"uri": uri, "fingerprint": fingerprint})

    student = model(StageName.TRAIN_STUDENT)
    made = {StageName.TRAIN_BASELINE, StageName.PRUNE_STUDENT} & hours.keys()
    baseline = model(made.pop()) if made else None
    responses = seal(StageName.GENERATE_RESPONSES, {} if bill is None else {"bill": bill})
    soft_targets = None
    if StageName.SCORE_SOFT_TARGETS in hours:
        fingerprint = seal(StageName.SCORE_SOFT_TARGETS, {})
        soft_targets = dataset_ref(StageName.SCORE_SOFT_TARGETS, fingerprint=fingerprint)
    return lineage_of(student, baseline=baseline).model_copy(
        update={
            "responses": dataset_ref(StageName.GENERATE_RESPONSES, fingerprint=responses),
            "soft_targets": soft_targets,
        }
    )


BILL = {"responses": 3000, "prompt_tokens": 5_000_000, "completion_tokens": 200_000}  # 12 USD


def distilled(
    store: StoreSpec, found: Comparison, prices: Prices = BOTH, **lineage: Any
) -> DistillationCost | None:
    known: dict[str, Any] = {"hours": {StageName.TRAIN_STUDENT: 2.0}, "bill": BILL}
    return distillation_cost(found, sealed(store, **known | lineage), prices, Store(store.root))


def test_a_served_model_costs_its_tokens_and_names_where_the_price_is_from() -> None:
    cost = cost_of_requests(SPEED, BOTH, is_served=True)
    assert cost is not None
    assert cost.per_1000 == pytest.approx(1.4) and cost.currency == "USD"
    assert cost.source == (
        "500 tokens read and 40 written per request, at 2 and 10 USD per million (a list of May)"
    )


def test_a_local_model_costs_the_hours_of_its_machine() -> None:
    cost = cost_of_requests(SPEED, BOTH, is_served=False)
    assert cost is not None
    assert cost.per_1000 == pytest.approx(0.01) and cost.currency == "USD"
    assert cost.source == (
        "36,000 requests per hour of a machine at 0.36 USD per hour (a bill of May)"
    )


@pytest.mark.parametrize(
    ("speed", "prices", "is_served"),
    [
        (SPEED, Prices(machine=MACHINE), True),
        (SPEED, Prices(tokens=TOKENS), False),
        (SPEED.model_copy(update={"new_tokens": None}), BOTH, True),
        (SPEED.model_copy(update={"queries_per_hour": None}), BOTH, False),
    ],
    ids=["no price of tokens", "no price of the machine", "tokens not counted", "not measured"],
)
def test_what_is_not_known_has_no_cost(
    speed: Performance, prices: Prices, *, is_served: bool
) -> None:
    assert cost_of_requests(speed, prices, is_served=is_served) is None


def test_the_student_is_compared_with_the_teacher_by_cost() -> None:
    # Served 1.40 per 1,000; the student at 360,000 an hour: 0.36 / 360 = 0.001.
    found = comparison(measured=hosted(), prices=BOTH)
    difference = found.between("student", "teacher")
    assert difference is not None
    assert difference.cost_reduction == pytest.approx(1 - 0.001 / 1.4)


def test_a_distillation_costs_its_tokens_and_hours_and_pays_for_itself(store: StoreSpec) -> None:
    hours = {
        StageName.TRAIN_STUDENT: 2.0,
        StageName.TRAIN_BASELINE: 0.5,
        StageName.SCORE_SOFT_TARGETS: 1.5,
    }
    cost = distilled(store, comparison(measured=hosted(), prices=BOTH), hours=hours)
    assert cost is not None
    assert cost.teacher == pytest.approx(5 * 2 + 0.2 * 10)
    assert cost.training_hours == pytest.approx(4.0)
    assert cost.training == pytest.approx(4 * 0.36)
    assert cost.total == pytest.approx(13.44)
    assert cost.break_even_requests == pytest.approx(13.44 / ((1.4 - 0.001) / 1000))


def test_pruning_and_the_training_before_the_last_one_cost_their_hours(store: StoreSpec) -> None:
    hours = {StageName.TRAIN_STUDENT: 2.0, StageName.PRUNE_STUDENT: 0.25}
    found = comparison(measured=hosted(), prices=BOTH)
    lineage = sealed(store, hours=hours, bill=BILL)
    learnt_twice = lineage.model_copy(update={"first": lineage.student})
    cost = distillation_cost(found, learnt_twice, BOTH, Store(store.root))
    assert cost is not None and cost.training_hours == pytest.approx(2 + 2 + 0.25)


def test_responses_of_a_local_teacher_cost_what_its_requests_do(store: StoreSpec) -> None:
    # 36,000 requests an hour at 0.36 USD: 3,000 responses take a twelfth of an hour.
    cost = distilled(store, comparison(prices=Prices(machine=MACHINE)), Prices(machine=MACHINE))
    assert cost is not None and cost.teacher == pytest.approx(0.03)


def test_without_a_price_the_hours_are_known_and_no_more(store: StoreSpec) -> None:
    cost = distilled(store, comparison(measured=hosted()), Prices())
    assert cost == DistillationCost(
        teacher=None, training_hours=2.0, training=None, currency=None, break_even_requests=None
    )
    assert cost.total is None


def test_a_student_that_costs_as_much_as_its_teacher_never_pays(store: StoreSpec) -> None:
    dear = Prices(TOKENS, MachinePrice(per_hour=5000.0, source="a bill"))
    found = comparison(measured=hosted(), prices=dear)
    cost = distilled(store, found, dear)
    assert cost is not None and cost.total and cost.break_even_requests is None
    said = findings(found.model_copy(update={"distillation_cost": cost}))
    assert any(
        f.text.endswith("It never pays for itself, as a request to the student saves nothing.")
        for f in said
    )


def test_a_training_that_is_gone_leaves_the_cost_unknown(store: StoreSpec) -> None:
    found = comparison(measured=hosted(), prices=BOTH)
    assert distillation_cost(found, lineage_of(STUDENT_REF), BOTH, Store(store.root)) is None


def test_sentences_say_what_is_saved_and_when_it_has_paid(store: StoreSpec) -> None:
    found = comparison(measured=hosted(), prices=BOTH)
    found = found.model_copy(update={"distillation_cost": distilled(store, found)})
    said = {finding.text: finding.met for finding in findings(found)}
    assert said[
        "A thousand requests cost 0.001 USD instead of 1.40 USD, 99.9 % less: target of 60 % less "
        "met, 39.9 points above it."
    ]
    assert said[
        "Queries per hour: 360,000 against 36,000, 10.0 times: target of 10 times as many users "
        "met."
    ]
    # 12.00 + 2 x 0.36 = 12.72, at 1.399 saved per 1,000.
    assert (
        "The distillation cost 12.72 USD as if nothing had been cached: 12.00 USD for the "
        "teacher's responses and 0.72 USD for 2 hours of training. It has paid for itself after "
        "9,092 requests."
    ) in said
    assert "and costs 99.9 % less: " in verdict(found)
    assert any(note.startswith("Cost of the teacher: 500 tokens read") for note in notes(found))


def test_a_missing_price_is_no_verdict_on_the_target() -> None:
    [cost] = [
        f for f in findings(comparison()) if f.text.startswith("Cost of a thousand requests: ")
    ]
    assert cost.met is None
    assert cost.text.endswith(
        "no verdict on the target of 60 % less, as a price is missing: teacher.price for a served "
        "teacher, evaluation.machine_price for what runs here."
    )
