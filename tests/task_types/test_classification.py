"""A classification is right or wrong, by the one equality that filters and votes have too."""

import pytest

from distillery.task_types import TASK_TYPES, Metric, task_type
from schemas.errors import RecipeError
from schemas.task import AnswerFormat, JsonFormat, LabelSet, RegexFormat, TaskKind, TaskSpec

LABELS = LabelSet(labels=("refund", "repair"))
ANY_JSON = JsonFormat(json_schema={})


def _accuracy(
    answer_format: AnswerFormat | None,
    response: str | None,
    reference: str,
    truncated: bool = False,
) -> float | None:
    task = TaskSpec(name="t", type=TaskKind.CLASSIFICATION, answer_format=answer_format)
    scores = task_type(task).score(response, reference, truncated=truncated)
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


def test_models_are_compared_by_accuracy_the_higher_the_better() -> None:
    task = TaskSpec(name="t", type=TaskKind.CLASSIFICATION)
    assert task_type(task).primary == Metric("accuracy", higher_is_better=True)


def test_naming_the_majority_label_has_a_low_macro_f1() -> None:
    references = ["a"] * 95 + ["b"] * 5
    task = TaskSpec(name="t", type=TaskKind.CLASSIFICATION, answer_format=LABELS)
    macro_f1 = task_type(task).of_the_set["macro_f1"]
    assert macro_f1(["a"] * 100, references) == pytest.approx((2 * 95 / 195 + 0) / 2)
    assert macro_f1(references, references) == 1.0
    assert macro_f1([None] * 100, references) == 0.0
    assert macro_f1([], []) is None
    as_json = task.model_copy(update={"answer_format": JsonFormat(json_schema={})})
    assert task_type(as_json).of_the_set == {}


@pytest.mark.parametrize("kind", [kind for kind in TaskKind if kind not in TASK_TYPES])
def test_a_kind_without_metrics_can_be_read_but_not_scored(kind: TaskKind) -> None:
    task = TaskSpec(name="t", type=kind, answer_format=LABELS)
    with pytest.raises(RecipeError, match=f"task.type='{kind}' is not yet supported"):
        task_type(task)
    unscored = task_type(task, scored=False)
    assert unscored.violation("Refund.") is None
    with pytest.raises(NotImplementedError, match="has no metrics"):
        unscored.score("refund", "refund")
