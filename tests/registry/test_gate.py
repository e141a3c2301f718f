"""What the gate asks for, and that each condition by itself keeps a student back."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distillery.registry.conditions import Trial
from distillery.registry.gate import check_forms, check_gate
from schemas.comparison import (
    Comparison,
    ContestantFigures,
    Cost,
    Difference,
    Interval,
    SliceFigures,
)
from schemas.gate import GateSpec, LimitCondition, QualityCondition
from schemas.promotion import GateCheck
from schemas.refs import ModelRef
from tests.fixtures_comparison import (
    CHAMPION_REF,
    SCORES,
    comparison,
    measurement,
    measurements,
)

NAN = float("nan")
FORM = "onnx int4"
# 400 rows, 160 of them with the most frequent reference
REFERENCES = ["yes"] * 160 + ["no"] * 120 + ["maybe"] * 120

Change = Callable[[Comparison], Comparison]


def right(share: int, num_rows: int = 400) -> list[float]:
    return [1.0] * share + [0.0] * (num_rows - share)


RIVALS = {"teacher": right(360), "baseline": right(200), "champion": right(330)}


def checks(
    scores: Mapping[str, Sequence[float]],
    gate: GateSpec = GateSpec(),  # noqa: B008
    references: Sequence[str] = REFERENCES,
    champion: ModelRef | None = None,
    *,
    is_lost: bool = False,
) -> list[GateCheck]:
    found = comparison(scores, references=references)
    return list(check_gate(Trial(found, champion, is_lost=is_lost), gate))


def failed(found: Sequence[GateCheck]) -> list[tuple[str, str]]:
    return [(check.condition, check.sentence) for check in found if not check.passed]


# -- every condition at once, and each by itself ---------------------------------------------------

LIMITS = {
    "latency_p50_s": 0.01,
    "latency_p95_s": 0.02,
    "latency_p99_s": 0.03,
    "first_token_p50_s": 0.005,
    "memory_bytes": 2.0**16,
    "peak_memory_bytes": 3000.0,
    "disk_bytes": 2000.0,
    "cost_per_1000": 0.02,
}
"""What the student has; of the teacher it is ten times as much, of the champion just as much."""

NAMED = ("latency_p50_s", "memory_bytes", "cost_per_1000")
"""Those whose ratio to the teacher's has a field of the gate."""

RATIOS = [
    (name, other)
    for name in LIMITS
    for other in ("teacher", "baseline", "champion")
    if (name, other) not in [(name, "teacher") for name in NAMED]
]

CONDITIONS: list[dict[str, Any]] = [
    {"metric": "Macro f1", "at_least": 0.6},
    {"against": "teacher", "at_least": -0.05},
    {"slice": "label=refund", "at_least": 0.5},
    {"slice": "label=refund", "against": "teacher", "at_least": -0.2},
    {"slice": "label=refund", "against": "champion", "at_least": -0.2},
    *({"kind": "limit", "figure": name, "at_most": most} for name, most in LIMITS.items()),
    *({"kind": "limit", "figure": n, "against": o, "at_most": 1.0} for n, o in RATIOS),
]

FULL = GateSpec.model_validate(
    {
        "max_latency_ratio": 0.11,
        "max_memory_ratio": 0.11,
        "max_cost_ratio": 0.11,
        "regressions_against": ["teacher", "champion"],
        "conditions": [{"kind": "quality"} | condition for condition in CONDITIONS],
    }
)


def interval(low: float | None, high: float | None = None, estimate: float = 0.5) -> Interval:
    return Interval(estimate=estimate, low=low, high=high, num_rows=40)


def with_limits(row: ContestantFigures, times: float) -> ContestantFigures:
    """Return a contestant with `LIMITS`, so many times as much."""
    values = {name: most * times for name, most in LIMITS.items()}
    speed = {name: values.pop(name) for name in list(values) if name.endswith("_s")}
    cost = Cost(per_1000=values.pop("cost_per_1000"), currency="EUR", source="a test")
    performance = row.performance.model_copy(update=speed)
    return row.model_copy(update={**values, "cost": cost, "performance": performance})


@functools.cache
def passing() -> Comparison:
    """Return a comparison in which the student and its form meet all that `FULL` asks for."""
    student = right(355)
    found = comparison({**RIVALS, "student": student}, references=REFERENCES)
    rows = {row.name: row for row in found.contestants}
    rows = {n: with_limits(row, 10 if n == "teacher" else 1) for n, row in rows.items()}
    rows["student"] = rows["student"].model_copy(
        update={"metrics": {**rows["student"].metrics, "macro F1": interval(0.7, 0.8)}}
    )
    rows[FORM] = rows["student"].model_copy(update={"name": FORM})
    pairs = [pair for pair in found.differences if pair.metric == found.metric]
    pairs += [pair.model_copy(update={"name": FORM}) for pair in pairs if pair.name == "student"]
    quality: dict[str, Interval | None] = dict.fromkeys(rows, interval(0.6, 0.9))
    part = SliceFigures(
        column="label",
        value="refund",
        num_rows=40,
        quality=quality,
        differences=tuple(
            Difference(
                name=who, against=other, metric=found.metric, difference=interval(-0.1, 0.1, 0.0)
            )
            for who in ("student", FORM)
            for other in ("teacher", "champion")
        ),
        regressions=(),
    )
    others = [part.model_copy(update={"value": name}) for name in ("lost", "broken", "late")]
    return found.model_copy(
        update={
            "contestants": tuple(rows.values()),
            "differences": tuple(pairs),
            "slices": (part, *others),
        }
    )


def full_checks(found: Comparison, candidate: str = "student") -> list[GateCheck]:
    return list(check_gate(Trial(found, CHAMPION_REF, forms=(FORM,), candidate=candidate), FULL))


def pair(against: str, candidate: str = "student", **changed: Interval | None) -> Change:
    """Change figures of the candidate against another."""

    def change(found: Comparison) -> Comparison:
        changes = [
            d.model_copy(update=changed) if (d.name, d.against) == (candidate, against) else d
            for d in found.differences
        ]
        return found.model_copy(update={"differences": tuple(changes)})

    return change


def contestant(name: str, **changed: Any) -> Change:
    """Change figures of a contestant; those of its speed too."""

    def changed_row(row: ContestantFigures) -> ContestantFigures:
        speed = {
            n: value for n, value in changed.items() if n in type(row.performance).model_fields
        }
        rest = {n: value for n, value in changed.items() if n not in speed}
        performance = row.performance.model_copy(update=speed)
        return row.model_copy(update={"performance": performance, **rest})

    def change(found: Comparison) -> Comparison:
        rows = [changed_row(row) if row.name == name else row for row in found.contestants]
        return found.model_copy(update={"contestants": tuple(rows)})

    return change


def metric(name: str, changed: Interval | None) -> Change:
    """Change a metric of the student."""

    def change(found: Comparison) -> Comparison:
        student = found.contestant("student")
        assert student
        return contestant("student", metrics={**student.metrics, name: changed})(found)

    return change


def part(**changed: Any) -> Change:
    """Change the first slice."""

    def change(found: Comparison) -> Comparison:
        first = found.slices[0].model_copy(update=changed)
        return found.model_copy(update={"slices": (first, *found.slices[1:])})

    return change


def slice_pair(against: str, low: float | None) -> Change:
    def change(found: Comparison) -> Comparison:
        pairs = [
            d.model_copy(update={"difference": interval(low, 0.3, 0.0)})
            if (d.name, d.against) == ("student", against)
            else d
            for d in found.slices[0].differences
        ]
        return part(differences=tuple(pairs))(found)

    return change


WORSE: dict[str, Any] = {"difference": interval(-0.4, -0.1, -0.2), "adjusted_p_value": 0.01}


def in_slices(against: str, candidate: str = "student", **changed: Any) -> Change:
    """Change figures of the candidate against another in all slices that no condition names."""

    def change(found: Comparison) -> Comparison:
        slices = [
            one.model_copy(
                update={
                    "differences": tuple(
                        d.model_copy(update=changed)
                        if (d.name, d.against) == (candidate, against)
                        else d
                        for d in one.differences
                    )
                }
            )
            for one in found.slices[1:]
        ]
        return found.model_copy(update={"slices": (found.slices[0], *slices)})

    return change


def everybody(name: str, factor: float) -> Change:
    """Change one figure of all, so that no ratio changes."""

    def change(found: Comparison) -> Comparison:
        for row in found.contestants:
            times = 10 if row.name == "teacher" else 1
            found = of_another(name, 1 / (factor * times), row.name)(found)
        return found

    return change


def of_another(name: str, factor: float, other: str) -> Change:
    """Change one figure of a contestant so that the student's is ``factor`` times as much."""
    value = LIMITS[name] / factor
    if name == "cost_per_1000":
        return contestant(other, cost=Cost(per_1000=value, currency="EUR", source="a test"))
    return contestant(other, **{name: value})


def listed(number: int) -> str:
    field = "at_most" if isinstance(FULL.conditions[number], LimitCondition) else "at_least"
    return f"conditions[{number}].{field}"


LOW = "lower end of the interval of "
CASES: dict[str, tuple[Change, str]] = {
    "min_retention": (
        pair("teacher", ratio=interval(0.91)),
        LOW + "student / teacher 0.91 is 0.01 below gate.min_retention=0.92",
    ),
    "min_gain": (
        pair("baseline", difference=interval(-0.01)),
        LOW + "student minus baseline -0.01 is 0.01 below gate.min_gain=0",
    ),
    "min_lead_over_majority": (
        pair("most frequent answer", "teacher", difference=interval(-0.02)),
        LOW + "teacher minus the most frequent answer 'yes' -0.02 is 0.02 below "
        "gate.min_lead_over_majority=0",
    ),
    "max_loss_to_champion": (
        pair("champion", difference=interval(-0.01)),
        "upper end of the interval of champion minus student 0.01 is 0.01 above "
        "gate.max_loss_to_champion=0",
    ),
    "max_unscored_fraction": (
        contestant("baseline", num_unscored=24),
        "share of unscored rows 0.06 is 0.01 above gate.max_unscored_fraction=0.05",
    ),
    "max_latency_ratio": (
        of_another("latency_p50_s", 0.2, "teacher"),
        "p50 latency of student relative to the teacher's 0.2 is 0.09 above "
        "gate.max_latency_ratio=0.11",
    ),
    "max_memory_ratio": (
        of_another("memory_bytes", 0.2, "teacher"),
        "memory of student relative to the teacher's 0.2 is 0.09 above gate.max_memory_ratio=0.11",
    ),
    "max_cost_ratio": (
        of_another("cost_per_1000", 0.2, "teacher"),
        "cost per 1,000 requests of student relative to the teacher's 0.2 is 0.09 above "
        "gate.max_cost_ratio=0.11",
    ),
    "regressions_against": (
        in_slices("champion", **WORSE),
        "number of the 4 slices in which student is worse than champion (label=lost, label=broken, "
        "label=late) 3 is 3 above gate.regressions_against=0",
    ),
    listed(0): (
        metric("macro F1", interval(0.59)),
        LOW + "the student's macro F1 0.59 is 0.01 below gate.conditions[0].at_least=0.6",
    ),
    listed(1): (
        pair("teacher", difference=interval(-0.05)),
        LOW + "student minus teacher -0.05 is exactly gate.conditions[1].at_least=-0.05, not "
        "above it",
    ),
    listed(2): (
        part(quality={"student": interval(0.4)}),
        LOW + "the student's accuracy on label=refund 0.4 is 0.1 below "
        "gate.conditions[2].at_least=0.5",
    ),
    listed(3): (
        slice_pair("teacher", -0.25),
        LOW + "student minus teacher on label=refund -0.25 is 0.05 below "
        "gate.conditions[3].at_least=-0.2",
    ),
    listed(4): (
        slice_pair("champion", -0.25),
        LOW + "student minus champion on label=refund -0.25 is 0.05 below "
        "gate.conditions[4].at_least=-0.2",
    ),
}
NAMES = {
    "latency_p50_s": "p50 latency",
    "latency_p95_s": "p95 latency",
    "latency_p99_s": "p99 latency",
    "first_token_p50_s": "time to first token",
    "memory_bytes": "memory",
    "peak_memory_bytes": "peak memory",
    "disk_bytes": "size on disk",
    "cost_per_1000": "cost per 1,000 requests",
}
for number, (figure, what) in enumerate(NAMES.items(), 5):
    more = LIMITS[figure]
    CASES[listed(number)] = (
        everybody(figure, 2),
        f"{what} of student {2 * more:.4g} is {more:.4g} above gate.{listed(number)}={more:g}",
    )
for number, (figure, other) in enumerate(RATIOS, 5 + len(NAMES)):
    CASES[listed(number)] = (
        of_another(figure, 1.25, other),
        f"{NAMES[figure]} of student relative to the {other}'s 1.25 is 0.25 above "
        f"gate.{listed(number)}=1",
    )


def test_a_student_that_meets_every_condition_passes() -> None:
    found = full_checks(passing())
    assert failed(found) == []
    asked = {check.condition for check in found}
    # Where every row is scored, that is not said.
    assert asked == set(CASES) - {"max_unscored_fraction"}


@pytest.mark.parametrize("condition", CASES)
def test_each_condition_alone_closes_the_gate(condition: str) -> None:
    change, sentence = CASES[condition]
    assert failed(full_checks(change(passing()))) == [(condition, sentence)]


def test_every_field_of_the_gate_that_asks_for_something_was_seen_to_close_it() -> None:
    others = {"conditions", "approval_timeout_s", "alias"}
    assert set(GateSpec.model_fields) - others <= set(CASES)
    assert {listed(number) for number in range(len(CONDITIONS))} <= set(CASES)


@pytest.mark.parametrize("low", [None, NAN, float("-inf")])
@pytest.mark.parametrize("against", ["teacher", "baseline", "champion"])
def test_an_undecidable_figure_closes_the_gate(against: str, low: float | None) -> None:
    unknown = Interval.model_construct(estimate=0.5, low=low, high=1.0, num_rows=40)
    found = failed(full_checks(pair(against, difference=unknown, ratio=unknown)(passing())))
    assert found and all("could not be computed" in sentence for _, sentence in found)
    assert ("400" in found[0][1] or "40 rows give no interval" in found[0][1]) == (low is None)


@pytest.mark.parametrize(
    ("change", "condition", "why"),
    [
        (metric("macro F1", None), listed(0), "no row of the student is scored"),
        (part(quality={}), listed(2), "no row of the student is scored"),
        (slice_pair("teacher", None), listed(3), "40 rows give no interval of it"),
        (
            contestant("teacher", num_unscored=201),
            "min_retention",
            "the teacher is unscored on 201 of 400 rows, too few for a meaningful ratio",
        ),
        (
            contestant("teacher", cost=Cost(per_1000=1, currency="USD", source="a list")),
            "max_cost_ratio",
            "one is in EUR, the other in USD",
        ),
        (
            contestant("teacher", cost=None),
            "max_cost_ratio",
            "requests of the teacher is not known",
        ),
        (
            contestant("teacher", disk_bytes=0),
            listed(5 + len(NAMES) + RATIOS.index(("disk_bytes", "teacher"))),
            "the teacher's is 0",
        ),
        (
            contestant("student", first_token_p50_s=None),
            listed(8),
            "the time to first token of the student is not known",
        ),
    ],
)
def test_a_missing_figure_closes_the_gate_with_its_reason(
    change: Change, condition: str, why: str
) -> None:
    sentences = dict(failed(full_checks(change(passing()))))
    assert sentences[condition].endswith(why)


def condition_on(**asked: Any) -> str:
    """Return why a gate with this one condition fails, and "" where it does not."""
    gate = GateSpec.model_validate({"conditions": [{"kind": "quality"} | asked]})
    found = dict(failed(list(check_gate(Trial(passing(), CHAMPION_REF), gate))))
    return found.get("conditions[0].at_least", "")


def test_an_unknown_metric_or_slice_closes_the_gate_and_names_the_nearest() -> None:
    assert condition_on(metric="macro F2", at_least=0.1).endswith(
        "no metric has that name. Did you mean 'macro F1'? Known: accuracy, macro F1"
    )
    assert condition_on(slice="label=refunds", at_least=0.1).endswith(
        "the test rows have no slice 'label=refunds' of evaluation.min_slice_rows rows or more. "
        "Did you mean 'label=refund'?"
    )


def test_a_condition_that_every_student_meets_is_refused() -> None:
    with pytest.raises(ValidationError, match="at_least is 0, which every student reaches"):
        QualityCondition(metric="accuracy")


def test_conditions_against_the_champion_are_not_asked_while_there_is_none() -> None:
    found = list(check_gate(Trial(passing(), None), FULL))
    assert failed(found) == []
    about_it = {"max_loss_to_champion", listed(4)}
    about_it |= {
        listed(n) for n, (_, other) in enumerate(RATIOS, 5 + len(NAMES)) if other == "champion"
    }
    left = {check.condition for check in found}
    assert left == set(CASES) - {"max_unscored_fraction"} - about_it


# -- exported forms --------------------------------------------------------------------------------


def test_an_exported_form_is_held_to_the_conditions_of_the_student() -> None:
    trial = Trial(passing(), CHAMPION_REF, forms=(FORM,))
    (form,) = check_forms(trial, FULL).values()
    student = list(check_gate(trial, FULL))
    assert [check.condition for check in form] == [check.condition for check in student]
    assert failed(form) == []
    assert form[0].sentence.startswith(f"lower end of the interval of {FORM} / teacher 0.9")


def test_a_form_that_lost_quality_fails_and_the_student_does_not() -> None:
    lost = pair("teacher", FORM, ratio=interval(0.8))
    found = contestant(FORM, num_unscored=400)(lost(passing()))
    trial = Trial(found, CHAMPION_REF, forms=(FORM,))
    assert failed(list(check_gate(trial, FULL))) == []
    assert [condition for condition, _ in failed(check_forms(trial, FULL)[FORM])] == [
        "min_retention",
        "max_unscored_fraction",
    ]


def test_a_form_that_is_worse_in_one_slice_fails_and_the_student_does_not() -> None:
    worse = passing()
    for other in ("teacher", "champion"):
        worse = in_slices(other, FORM, **WORSE)(worse)
    first, _, *rest = passing().slices
    found = passing().model_copy(update={"slices": (first, worse.slices[1], *rest)})
    trial = Trial(found, CHAMPION_REF, forms=(FORM,))
    assert failed(list(check_gate(trial, FULL))) == []
    assert [sentence for _, sentence in failed(check_forms(trial, FULL)[FORM])] == [
        f"number of the 4 slices in which {FORM} is worse than {other} (label=lost) 1 is 1 above "
        "gate.regressions_against=0"
        for other in ("teacher", "champion")
    ]


def test_a_slice_in_which_nothing_is_scored_closes_the_gate() -> None:
    blind = in_slices("champion", difference=None)(passing())
    [(condition, sentence)] = failed(full_checks(blind))
    assert condition == "regressions_against" and "student is worse than champion" in sentence


# -- on scores -------------------------------------------------------------------------------------


def test_default_gate_asks_for_retention_gain_and_a_lead_over_the_most_frequent_answer() -> None:
    found = list(check_gate(Trial(comparison()), GateSpec(min_retention=0.7)))
    assert [(check.condition, check.passed) for check in found] == [
        ("min_retention", True),
        ("min_gain", True),
        ("min_lead_over_majority", True),
        ("min_lead_over_majority", True),
    ]


def test_an_estimate_above_the_bound_is_not_enough() -> None:
    """18 of 20 against 19 of 20 are 94.7 %, and as well 84 %."""
    ((condition, sentence),) = failed(list(check_gate(Trial(comparison()), GateSpec())))
    ratio = comparison().between("student", "teacher")
    assert ratio and ratio.ratio and ratio.ratio.estimate > 0.92
    assert condition == "min_retention"
    assert sentence.startswith("lower end of the interval of student / teacher 0.8")


def test_low_retention_alone_closes_the_gate() -> None:
    found = checks({"teacher": right(360), "baseline": right(168), "student": right(300)})
    ((condition, sentence),) = failed(found)
    assert condition == "min_retention" and "below gate.min_retention=0.92" in sentence


def test_no_gain_over_the_baseline_alone_closes_the_gate() -> None:
    found = checks({"teacher": right(360), "baseline": right(356), "student": right(356)})
    ((condition, sentence),) = failed(found)
    assert condition == "min_gain"
    # That they agree on all of 400 rows leaves room for 0.9 % on which they do not.
    assert sentence.endswith("-0.00918 is 0.00918 below gate.min_gain=0")


def test_a_teacher_no_better_than_the_most_frequent_answer_closes_the_gate() -> None:
    found = checks({"teacher": right(8), "baseline": right(0), "student": right(200)})
    ((condition, sentence),) = failed(found)
    assert condition == "min_lead_over_majority"
    assert sentence.startswith(
        "lower end of the interval of teacher minus the most frequent answer 'yes' -0.4"
    )


def test_a_student_that_always_gives_the_most_frequent_answer_closes_the_gate() -> None:
    found = checks(
        {"teacher": right(397), "baseline": right(200), "student": right(380)},
        references=["fine"] * 380 + ["broken"] * 20,
    )
    ((condition, sentence),) = failed(found)
    assert condition == "min_lead_over_majority"
    assert sentence.endswith("-0.00918 is 0.00918 below gate.min_lead_over_majority=0")


@pytest.mark.parametrize(
    ("share", "measured"),
    [  # that they agree on all 400 rows leaves room for 0.9 %; five rows won are no evidence yet
        (330, "0.00918 is 0.00918 above gate.max_loss_to_champion=0"),
        (331, "0 is exactly gate.max_loss_to_champion=0, not below it"),
        (335, "0 is exactly gate.max_loss_to_champion=0, not below it"),
    ],
)
def test_a_student_not_shown_to_be_better_than_the_champion_does_not_replace_it(
    share: int, measured: str
) -> None:
    found = checks(
        {**RIVALS, "student": right(share)}, GateSpec(min_retention=0.8), champion=CHAMPION_REF
    )
    ((condition, sentence),) = failed(found)
    assert condition == "max_loss_to_champion"
    assert sentence == f"upper end of the interval of champion minus student {measured}"


def test_a_student_better_than_the_champion_may_replace_it() -> None:
    found = checks({**RIVALS, "student": right(355)}, champion=CHAMPION_REF)
    assert failed(found) == []
    assert "max_loss_to_champion" in [check.condition for check in found]


@pytest.mark.parametrize("most", [0.01, None])
def test_a_tie_may_be_allowed_by_a_margin(most: float | None) -> None:
    gate = GateSpec(max_loss_to_champion=most, min_retention=0.8)
    assert failed(checks({**RIVALS, "student": right(330)}, gate, champion=CHAMPION_REF)) == []


def test_a_champion_whose_files_are_gone_closes_the_gate() -> None:
    scores = {"teacher": right(360), "baseline": right(200), "student": right(355)}
    assert failed(checks(scores, champion=CHAMPION_REF, is_lost=True)) == [
        (
            "max_loss_to_champion",
            "upper end of the interval of champion minus student could not be computed, so "
            "gate.max_loss_to_champion=0 fails: the champion "
            f"{CHAMPION_REF.uri!r} is gone from the store. Restore its files, or set gate.alias to "
            "another name",
        )
    ]


def test_a_champion_promoted_meanwhile_closes_the_gate() -> None:
    # Another attempt at the same training may have other weights.
    other = CHAMPION_REF.model_copy(update={"uri": CHAMPION_REF.uri.replace("/a/", "/b/")})
    ((condition, sentence),) = failed(checks({**RIVALS, "student": right(355)}, champion=other))
    assert condition == "max_loss_to_champion"
    assert sentence.endswith("was promoted while this run was under way. Run again")


def test_an_unscored_champion_closes_the_gate() -> None:
    found = checks(
        {**RIVALS, "champion": [NAN] * 400, "student": right(355)}, champion=CHAMPION_REF
    )
    assert [condition for condition, _ in failed(found)] == [
        "max_loss_to_champion",
        "max_unscored_fraction",
    ]


def test_a_verdict_on_few_scored_rows_closes_the_gate() -> None:
    teacher = [NAN if number % 10 == 9 else score for number, score in enumerate(right(360))]
    found = checks({"teacher": teacher, "baseline": right(200), "student": right(355)})
    assert failed(found) == [
        (
            "max_unscored_fraction",
            "share of unscored rows 0.1 is 0.05 above gate.max_unscored_fraction=0.05",
        )
    ]


def test_retention_of_exactly_the_bound_is_enough() -> None:
    assert failed(full_checks(pair("teacher", ratio=interval(0.92 - 1e-16))(passing()))) == []


@given(st.floats(0, 2), st.floats(-1, 1))
def test_gate_passes_only_what_is_above_both_bounds(retention: float, gain: float) -> None:
    changed = pair("teacher", ratio=interval(retention, 2.0))(passing())
    found = full_checks(pair("baseline", difference=interval(gain, 1.0))(changed))
    passed = all(check.passed for check in found)
    assert passed == (round(retention, 9) >= 0.92 and round(gain, 9) > 0)


def test_conditions_that_are_not_asked_for_are_not_checked() -> None:
    gate = GateSpec(min_gain=None, min_lead_over_majority=None)
    found = check_gate(Trial(comparison()), gate)
    assert [check.condition for check in found] == ["min_retention"]


def test_ratio_of_an_unknown_size_fails() -> None:
    hosted = comparison(measured=measurements(teacher=measurement(0, None, 0.1)))
    *_, last = check_gate(Trial(hosted), GateSpec(max_memory_ratio=1.0))
    assert (last.condition, last.passed) == ("max_memory_ratio", False)
    assert last.sentence.endswith("the memory of the teacher is not known")


def test_no_baseline_fails_closed() -> None:
    scores = {name: values for name, values in SCORES.items() if name != "baseline"}
    gate = GateSpec(min_retention=0.7)
    ((condition, sentence),) = failed(list(check_gate(Trial(comparison(scores)), gate)))
    assert condition == "min_gain"
    assert sentence.endswith("fails: no baseline took part in the comparison")
