"""A classification is right or wrong, by the one equality that filters and votes have too."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from distillery.task_types import ScoredRow, task_type
from schemas.comparison import Interval
from schemas.evaluation import EvaluationSpec
from schemas.task import AnswerFormat, JsonFormat, LabelSet, RegexFormat, TaskKind, TaskSpec
from tests.fixtures_statistics import set_interval

LABELS = LabelSet(labels=("refund", "repair"))
ANY_JSON = JsonFormat(json_schema={})


def _accuracy(
    answer_format: AnswerFormat | None,
    response: str | None,
    reference: str,
    truncated: bool = False,
) -> float | None:
    task = TaskSpec(name="t", type=TaskKind.CLASSIFICATION, answer_format=answer_format)
    scores = task_type(task).score(response, [reference], truncated=truncated)
    assert list(scores) == ["accuracy"]
    return scores["accuracy"]


@pytest.mark.parametrize(
    ("response", "reference", "score"),
    [
        ('{"a": 1, "b": 2}', '{"b":2,"a":1}', 1.0),
        ('```json\n{"a": 1}\n```', '{"a": 1}', 1.0),
        ('{"a": 1}', '{"a": 2}', 0.0),
        ('{"a": 1', '{"a": 1}', 0.0),
        ("", '{"a": 1}', 0.0),
        ("1.0", "1", 1.0),
        ("true", "1", 0.0),
        ('{"a": [true, false]}', '{"a": [1, 0]}', 0.0),
        ("[1, 2]", "[2, 1]", 0.0),
        ("[" * 100_000, "[]", 0.0),
    ],
)
def test_json_answers_are_compared_by_value(response: str, reference: str, score: float) -> None:
    assert _accuracy(ANY_JSON, response, reference) == score


@pytest.mark.parametrize("response", [" Refund.\n", "'REFUND'.", "<think>hm</think>\n\nrefund"])
def test_dress_of_a_label_does_not_matter(response: str) -> None:
    assert _accuracy(LABELS, response, "refund") == 1.0


@pytest.mark.parametrize("response", ["repair", "refund please", "", ".", "<think>refund"])
def test_other_labels_more_words_and_no_answer_are_wrong(response: str) -> None:
    assert _accuracy(LABELS, response, "refund") == 0.0


def test_labels_that_differ_in_case_alone_are_kept_apart() -> None:
    labels = LabelSet(labels=("c", "C"))
    assert _accuracy(labels, "C", "c") == 0.0
    assert _accuracy(labels, "c ", "c") == 1.0


def test_text_of_a_regular_expression_is_compared_as_it_is() -> None:
    assert _accuracy(RegexFormat(pattern="[a-zA-Z]+"), " ab\n", "ab") == 1.0
    assert _accuracy(RegexFormat(pattern="[a-zA-Z]+"), "AB", "ab") == 0.0


def test_free_text_is_compared_without_dress_and_case() -> None:
    assert _accuracy(None, '"Card  arrival".', "card arrival") == 1.0
    assert _accuracy(None, "card", "card arrival") == 0.0


def test_a_truncated_response_is_wrong_even_where_its_text_is_right() -> None:
    assert _accuracy(LABELS, "refund", "refund", truncated=True) == 0.0


def test_what_was_not_obtained_or_has_no_right_answer_is_unscored() -> None:
    assert _accuracy(LABELS, None, "refund") is None
    assert _accuracy(LABELS, "refund", "reimbursement") is None


def test_one_of_several_references_is_enough() -> None:
    kind = task_type(TaskSpec(name="t", type=TaskKind.CLASSIFICATION, answer_format=LABELS))
    assert kind.score("Refund.", ["repair", "refund"]) == {"accuracy": 1.0}
    assert kind.score("Refund.", ["repair", "exchange"]) == {"accuracy": 0.0}


def _macro_f1(responses: Sequence[str], references: Sequence[str]) -> Interval | None:
    task = TaskSpec(name="t", type=TaskKind.CLASSIFICATION, answer_format=LABELS)
    pairs = zip(responses, references, strict=True)
    rows = [ScoredRow(response, (reference,)) for response, reference in pairs]
    metric = task_type(task).of_the_set["macro F1"]
    return set_interval(metric, rows, EvaluationSpec(bootstrap_samples=500))


def test_naming_the_majority_label_has_a_low_macro_f1() -> None:
    references = ["refund"] * 95 + ["repair"] * 5
    found = _macro_f1(["Refund."] * 100, references)
    assert found and found.estimate == pytest.approx((2 * 95 / 195 + 0) / 2)
    found = _macro_f1(references, references)
    assert found and (found.estimate, found.low, found.high) == (1.0, None, None)
    found = _macro_f1(["maybe"] * 100, references)
    assert found and found.estimate == 0.0
    assert _macro_f1([], []) is None


def test_interval_of_macro_f1_is_that_of_resampled_rows() -> None:
    draw = np.random.default_rng(5)
    references = np.array(["refund", "repair"])[(draw.random(200) < 0.2).astype(int)]
    right = draw.random(200) < 0.8
    responses = np.where(right, references, np.where(references == "refund", "repair", "refund"))

    def by_hand(rows: NDArray[np.int64]) -> float:
        f1 = []
        for label in ("refund", "repair"):
            asked, given = references[rows] == label, responses[rows] == label
            f1.append(2 * (asked & given).sum() / (asked.sum() + given.sum()))
        return float(np.mean(f1))

    found = _macro_f1(responses.tolist(), references.tolist())
    resampled = [by_hand(draw.integers(0, 200, 200)) for _ in range(2000)]
    assert found and found.low is not None and found.high is not None
    assert found.estimate == pytest.approx(by_hand(np.arange(200)))
    ends = np.quantile(resampled, [0.025, 0.975])
    assert [found.low, found.high] == pytest.approx(list(ends), abs=0.015)


def test_whole_json_objects_have_neither_macro_f1_nor_labels() -> None:
    kind = task_type(TaskSpec(name="t", type=TaskKind.CLASSIFICATION, answer_format=ANY_JSON))
    assert (dict(kind.of_the_set), kind.has_labels) == ({}, False)


def test_a_teacher_is_told_the_labels() -> None:
    kind = task_type(TaskSpec(name="t", type=TaskKind.CLASSIFICATION, answer_format=LABELS))
    assert kind.instructions().endswith(":\nrefund\nrepair")
