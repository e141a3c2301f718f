import pytest
from statsmodels.stats.multitest import multipletests

from distillery.evaluation.differences import pairs
from schemas.comparison import MAJORITY, Comparison, Cost, Difference
from schemas.contestants import STUDENT, TEACHER
from tests.fixtures_comparison import SCORES, comparison


def between(found: Comparison, name: str, against: str, metric: str | None = None) -> Difference:
    pair = found.between(name, against, metric)
    assert pair is not None
    return pair


def test_an_exported_form_is_held_against_what_it_is_made_of_and_may_replace() -> None:
    everybody = ["teacher", "baseline", "champion", "in-context student", "student", "gguf q8_0"]
    found = pairs(everybody, ["gguf q8_0"])
    assert len(found) == len(set(found))
    assert [against for name, against in found if name == "gguf q8_0"] == [
        "teacher",
        "baseline",
        "champion",
        "student",
    ]
    assert [against for name, against in found if name == "student"] == [
        "teacher",
        "baseline",
        "champion",
        "in-context student",
    ]
    assert not any(against == "gguf q8_0" for _, against in found)


def test_an_exported_form_takes_part_in_a_comparison() -> None:
    form = [1.0] * 16 + [0.0] * 4
    found = comparison({**SCORES, "onnx int4": form})
    lost = between(found, "onnx int4", "student")
    assert lost.difference and lost.difference.estimate == pytest.approx(-0.1)
    assert lost.memory_reduction == pytest.approx(0.75)
    assert found.between("student", "onnx int4") is None
    assert found.between("onnx int4", MAJORITY) is not None


def test_every_metric_is_compared_and_savings_stand_by_the_primary_one() -> None:
    found = comparison()
    primary, other = (between(found, STUDENT, TEACHER, m) for m in ("accuracy", "macro F1"))
    assert between(found, STUDENT, TEACHER) == primary
    values = [row.metrics["macro F1"] for row in found.contestants if row.name != "baseline"]
    assert values[0] and values[1] and other.difference and other.ratio
    assert other.difference.estimate == pytest.approx(values[1].estimate - values[0].estimate)
    assert other.ratio.estimate == pytest.approx(values[1].estimate / values[0].estimate)
    assert primary.latency_reduction == pytest.approx(0.9) and other.latency_reduction is None
    assert found.between(STUDENT, TEACHER, "BLEU") is None


def test_p_values_are_corrected_for_the_metrics_of_a_pair() -> None:
    found = comparison()
    pair = [between(found, "baseline", TEACHER, m) for m in ("accuracy", "macro F1")]
    assert pair[0].p_value == pytest.approx(2 / 2**7)  # seven rows lost, none won
    theirs = multipletests([p.p_value for p in pair], method="holm")[1]
    assert [p.adjusted_p_value for p in pair] == pytest.approx(theirs.tolist())


def test_rows_of_a_customer_are_no_independent_evidence_of_a_difference() -> None:
    alone, together = (
        between(comparison(clusters=clusters), "baseline", TEACHER)
        for clusters in (None, [f"customer {row // 2}" for row in range(20)])
    )
    assert alone.p_value and together.p_value and alone.p_value < together.p_value
    assert comparison().num_clusters == 20
    assert comparison(clusters=["one"] * 10 + ["two"] * 10).num_clusters == 2


def test_costs_in_two_currencies_are_not_compared() -> None:
    from distillery.evaluation.differences import savings

    row = comparison().contestants[0]
    dear, cheap, euros = (
        row.model_copy(update={"cost": Cost(per_1000=price, currency=currency, source="a bill")})
        for price, currency in ((2.0, "USD"), (0.5, "USD"), (0.5, "EUR"))
    )
    assert savings(cheap, dear)["cost_reduction"] == pytest.approx(0.75)
    assert savings(euros, dear)["cost_reduction"] is None
    assert savings(cheap, row)["cost_reduction"] is None
