from distillery.evaluation.findings import findings
from tests.fixtures_comparison import SCORES, comparison


def test_sentences_say_which_target_is_missed_and_by_how_much() -> None:
    retention, latency, memory, gain, *_ = findings(comparison())
    assert retention.met and "2.7 points above" in retention.text
    assert latency.met and "5.0 points above" in latency.text
    assert memory.met is False and "1.2 points short of" in memory.text
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
