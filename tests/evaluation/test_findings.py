from distillery.evaluation.findings import findings, interval_text, notes
from distillery.evaluation.verdict import verdict
from schemas.comparison import Interval, JudgedPair, Judgement
from tests.fixtures_comparison import SCORES, comparison


def test_sentences_say_which_target_is_missed_and_by_how_much() -> None:
    retention, latency, memory, _, users, gain, *_ = findings(comparison())
    assert retention.met and "2.7 points above" in retention.text
    assert latency.met and "5.0 points above" in latency.text
    assert memory.met is False and "1.2 points short of" in memory.text
    assert users.met and users.text.endswith("10.0 times: target of 10 times as many users met.")
    assert "the interval is above 0" in gain.text


def test_sentences_compare_with_champion_and_most_frequent_answer() -> None:
    said = " ".join(finding.text for finding in findings(comparison()))
    assert "champion" not in said
    assert (
        "the most frequent answer, 'yes', reaches 40.0 % accuracy; against it the teacher" in said
    )
    found = comparison({**SCORES, "champion": SCORES["teacher"]})
    said = " ".join(finding.text for finding in findings(found))
    assert "Student minus champion: -5.0 points [" in said


def test_a_prompt_that_does_as_well_as_the_training_is_told() -> None:
    def said(untrained: list[float]) -> str:
        found = findings(comparison({**SCORES, "in-context student": untrained}))
        return next(finding.text for finding in found if "untrained" in finding.text)

    assert said([1.0] * 18 + [0.0] * 2) == (
        "Student minus itself untrained, with the teacher's prompt: +0.0 points [-16.8, 16.8]: the "
        "interval is not above 0, so the training is not shown to be worth more than the prompt at "
        "1,204 prompt tokens instead of 17."
    )
    assert said([1.0] * 4 + [0.0] * 16).endswith(
        "the interval is above 0, so the training is worth more than the prompt."
    )
    nothing = {**SCORES, "student": [0.0] * 20, "in-context student": [0.0] * 20}
    assert any(
        f.text.endswith("not above 0, and neither scores at all.")
        for f in findings(comparison(nothing))
    )
    assert not any("untrained" in finding.text for finding in findings(comparison()))


def test_verdict_says_what_is_kept_and_saved_and_which_target_is_missed() -> None:
    found = comparison()
    kept = found.between("student", "teacher")
    assert kept and kept.ratio
    assert verdict(found) == (
        f"The student keeps {interval_text(kept.ratio)} of the teacher's accuracy, answers in "
        "90.0 % less time and needs 93.8 % less memory: it misses the target for memory (95 % "
        "less), though the interval of the accuracy kept reaches below 92 %; there is no figure "
        "for cost."
    )


def test_verdict_is_plain_where_every_target_is_met() -> None:
    found = comparison({**SCORES, "student": SCORES["teacher"]})
    kept = found.between("student", "teacher")
    assert kept is not None
    ratio = Interval(estimate=1.0, low=0.95, high=1.05, num_rows=400)
    saved = {"memory_reduction": 0.96, "cost_reduction": 0.7}
    better = kept.model_copy(update=saved | {"ratio": ratio})
    found = found.model_copy(update={"differences": (better,)})
    assert verdict(found).endswith(
        "answers in 90.0 % less time, needs 96.0 % less memory and costs 70.0 % less: every "
        "target is met."
    )


def said_of(judgement: Judgement) -> str:
    found = comparison().model_copy(update={"judgement": judgement})
    return " ".join(finding.text for finding in findings(found))


def test_a_judge_whom_nobody_has_checked_is_called_that() -> None:
    pair = JudgedPair(
        against="teacher",
        wins=10,
        ties=20,
        losses=20,
        unscored=0,
        win_rate=Interval(estimate=0.4, low=0.3, high=0.5, num_rows=50),
    )
    judgement = Judgement(model="arbiter", rubric="Be true.", pairs=(pair,), order_decided=0.12)
    assert said_of(judgement).endswith(
        "The judge, arbiter, prefers the student to the teacher in 40.0 % [30.0, 50.0] of the "
        "rows, ties counting half. The order of the two responses changed its verdict on 12.0 % of "
        "the pairs, which count as ties. Nobody has checked this judge against people."
    )
    agreement = Interval(estimate=0.75, low=0.7, high=0.8, num_rows=100)
    checked = judgement.model_copy(update={"agreement": agreement})
    assert said_of(checked).endswith(
        "It agrees with people on 75.0 % [70.0, 80.0] of 100 rows. Its verdicts follow theirs no "
        "more than chance would, so they say nothing."
    )
    corrected = Interval(estimate=0.3, low=0.1, high=0.5, num_rows=150)
    pairs = (pair.model_copy(update={"corrected": corrected}),)
    said = said_of(checked.model_copy(update={"pairs": pairs}))
    assert "ties counting half; people would in 30.0 % [10.0, 50.0]." in said
    assert said.endswith("It agrees with people on 75.0 % [70.0, 80.0] of 100 rows.")


def test_what_cannot_be_seen_is_said_in_points_and_clusters() -> None:
    loss = comparison().detectable_loss
    assert loss is not None
    sentence = f"a loss of under {loss * 100:.1f} points to the teacher cannot be seen."
    said = [finding.text for finding in findings(comparison())]
    assert f"With 20 rows {sentence}" in said
    found = comparison(clusters=[f"customer {row % 10}" for row in range(20)])
    assert found.detectable_loss is not None
    said = [finding.text for finding in findings(found)]
    assert any(text.startswith("With 20 rows in 10 clusters a loss of under") for text in said)
    assert "paired bootstrap over 20 rows in 10 clusters, 95 % intervals." in notes(found)[0]
    few = comparison(clusters=[f"customer {row % 9}" for row in range(20)])
    assert few.detectable_loss is None
    assert not any("cannot be seen" in finding.text for finding in findings(few))


def test_a_gap_that_is_undefined_is_said_to_be_and_why() -> None:
    def gap(**changed: list[float]) -> str:
        scores = {**SCORES, **changed}
        found = comparison({name: values for name, values in scores.items() if values})
        said = [finding.text for finding in findings(found)]
        return next(text for text in said if text.startswith("Gap recovered"))

    assert gap(baseline=SCORES["teacher"]).startswith(
        "Gap recovered: undefined, as the teacher is not better than the baseline; student minus"
    )
    assert gap(baseline=[]).startswith("Gap recovered: undefined, as there is no scored baseline;")
    assert gap(baseline=[1.0] * 17 + [0.0] * 3).startswith(
        "Gap recovered between baseline and teacher: 50.0 %, without an interval, as a test set "
        "like this one may show no gap at all;"
    )
