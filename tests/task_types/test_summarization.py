"""A summary is scored by what it has in common with the best of its references."""

from typing import Any

import pytest

from distillery.task_types import task_type
from schemas.task import TaskKind, TaskSpec

KIND = task_type(TaskSpec(name="t", type=TaskKind.SUMMARIZATION))
CAT = "the cat sat on the mat"


# Worked out by hand: ROUGE-N = 2 * common / (all of both), ROUGE-L likewise with the longest
# common subsequence.
@pytest.mark.parametrize(
    ("summary", "references", "rouge_l", "rouge_1", "rouge_2"),
    [
        (CAT, [CAT], 1, 1, 1),
        ("The cat sat on the mat.", [CAT], 1, 1, 1),
        ("THE CAT SAT ON THE MAT", [CAT], 1, 1, 1),
        ("the cat, sat; on -- the mat!", [CAT], 1, 1, 1),
        ("the-cat sat on the_mat", [CAT], 1, 1, 1),
        ("the\ncat\n\nsat on the mat\n", [CAT], 1, 1, 1),
        ("<think>hm</think>The cat sat on the mat.", [CAT], 1, 1, 1),
        ("<think>the cat sat on the mat</think>", [CAT], 0, 0, 0),
        ("", [CAT], 0, 0, 0),
        (" \n", [CAT], 0, 0, 0),
        ("a dog ran", [CAT], 0, 0, 0),
        ("thecatsatonthemat", [CAT], 0, 0, 0),
        ("the cat sat on the mat today", [CAT], 12 / 13, 12 / 13, 10 / 11),
        ("cat sat on mat", [CAT], 8 / 10, 8 / 10, 4 / 8),
        ("the mat sat on the cat", [CAT], 8 / 12, 1, 8 / 10),
        ("mat the on sat cat the", [CAT], 6 / 12, 1, 0),
        ("the the the the", [CAT], 4 / 10, 4 / 10, 0),
        ("the cats sat on the mats", [CAT], 8 / 12, 8 / 12, 4 / 10),
        ("the cat", [CAT], 4 / 8, 4 / 8, 2 / 6),
        ("mat", [CAT], 2 / 7, 2 / 7, 0),
        ("a dog ran", ["the cat sat", "a dog ran off"], 6 / 7, 6 / 7, 4 / 5),
        # Each metric takes the reference that suits it best: the second, the first, the second.
        ("the cat sat", ["cat the sat down", "cat sat"], 4 / 5, 6 / 7, 2 / 3),
        ("3.5 % of 1,000", ["3.5% of 1,000"], 1, 1, 1),
        ("3.6% of 1,000", ["3.5% of 1,000"], 8 / 10, 8 / 10, 4 / 8),
        ("don't stop", ["dont stop"], 2 / 5, 2 / 5, 0),
        ("café noir", ["cafe\u0301 noir"], 1, 1, 1),
        ("cafe noir", ["café noir"], 2 / 4, 2 / 4, 0),
        ("кот сидел", ["Кот сидел тут."], 4 / 5, 4 / 5, 2 / 3),
        ("猫坐在垫子上。", ["猫坐在椅子上"], 10 / 12, 10 / 12, 6 / 10),
        ("बिल्ली बैठी है।", ["बिल्ली बैठी थी।"], 4 / 6, 4 / 6, 2 / 4),
        ("القط جلس.", ["القط، جلس"], 1, 1, 1),
        ("고양이가 앉았다", ["고양이는 앉았다"], 2 / 4, 2 / 4, 0),
        ("Yes.", ["yes"], 1, 1, None),
        ("👍", ["👍"], 1, 1, None),
        ("no", ["yes"], 0, 0, None),
    ],
)
def test_rouge_by_hand(
    summary: str, references: list[str], rouge_l: float, rouge_1: float, rouge_2: float | None
) -> None:
    expected = {"ROUGE-L": rouge_l, "ROUGE-1": rouge_1, "ROUGE-2": rouge_2}
    assert KIND.score(summary, references) == pytest.approx(expected)


def test_rouge_l_decides_and_the_metrics_of_a_set_come_last() -> None:
    assert KIND.primary == "ROUGE-L"
    assert [*KIND.metrics, *KIND.of_the_set] == [
        "ROUGE-L", "ROUGE-1", "ROUGE-2", "BLEU", "chrF", "length ratio",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("One text.", "One text."),
        (["One sentence. ", "Another.\n"], "One sentence. Another."),
        ('["One sentence.", "Another."]', "One sentence. Another."),
        ([], ""),
        (None, ""),
        ({"body": "x"}, {"body": "x"}),
    ],
)
def test_a_document_may_be_a_list_of_sentences(document: Any, expected: Any) -> None:
    assert KIND.shown("document", document) == expected
    assert KIND.shown("title", document) == document


def test_a_model_learns_the_first_reference() -> None:
    assert KIND.target(KIND.references(["short", "shorter"])) == "short"
