"""What a model in a loop writes is dropped; labels, code, lists and worked solutions are kept."""

import pytest

from distillery.filters.base import Drop
from distillery.filters.repetition import Repetition
from distillery.task_types import task_type
from schemas.filters import RepetitionFilter
from schemas.task import AnswerFormat, JsonFormat, LabelSet
from tests.fixtures_filters import response_row, task_with

CITIES = [
    "Paris",
    "Rome",
    "Oslo",
    "Kyiv",
    "Bern",
    "Riga",
    "Graz",
    "Linz",
    "Bonn",
    "Jena",
    "Kiel",
    "Ulm",
]


def _drop(response: str, answer_format: AnswerFormat | None = None, **named: int) -> Drop | None:
    chosen = Repetition(RepetitionFilter(**named))
    return chosen.row(response_row(response), task_type(task_with(answer_format)))


@pytest.mark.parametrize(
    ("response", "detail", "score"),
    [
        (
            "Thank you for writing to us about your order.\n" * 8,
            "88% of the lines are lines that came before, above 30%: "
            "'Thank you for writing to us about your order.'",
            0.875,
        ),
        (
            "".join(f"{n}. Buy milk and bread.\n" for n in range(20)),
            "95% of the lines are lines that came before, above 30%: 'Buy milk and bread.'",
            0.95,
        ),
        (
            "and so the answer is " * 12,
            "100% of the characters are in runs of 5 words that stand 5 times or more, above 15%: "
            "'and so the answer is'",
            1.0,
        ),
        (
            "今天天气很好。" * 12,
            "100% of the characters are in runs of 5 words that stand 5 times or more, above 15%: "
            "'今 天 天 气 很'",
            1.0,
        ),
    ],
    ids=["lines", "items of a list", "words", "a script without spaces"],
)
def test_what_stands_again_and_again_is_dropped_with_its_share(
    response: str, detail: str, score: float
) -> None:
    found = _drop(response)
    assert found is not None
    assert (found.reason, found.detail, found.score) == ("repetition", detail, score)


def test_thoughts_may_go_round_in_circles() -> None:
    assert _drop("<think>" + "let me see again now " * 20 + "</think>Paris.") is None


@pytest.mark.parametrize(
    "response",
    [
        "good " * 49,
        "\n".join(f"- {city}: a city of {len(city) * 37} thousand people" for city in CITIES),
        "| city | letters |\n|---|---|\n" + "\n".join(f"| {c} | {len(c)} |" for c in CITIES * 3),
        "Here it is:\n```c\n" + "if (x) {\n    return None;\n}\n" * 20 + "```\nIt loops.",
        "def f(x):\n    return x\n" * 30,
        # A worked solution of GSM8K's kind: steps are alike.
        "The number of words that Carl can type per hour is 50 * 60 = 3000 words.\n"
        "The number of words that Carl can type in 4 hours is 3000 * 4 = 12000 words.\n"
        "The number of words that Carl can type in 7 days is 12000 * 7 = 84000 words.\n"
        "So he can type 84000 words.",
    ],
    ids=["fewer than 50 words", "list", "table", "fenced code", "bare code", "steps"],
)
def test_what_repeats_for_good_reason_is_kept(response: str) -> None:
    assert _drop(response) is None


@pytest.mark.parametrize(
    "answer_format",
    [LabelSet(labels=("yes", "no")), JsonFormat(json_schema={"type": "array"})],
    ids=["labels", "json"],
)
def test_answers_in_a_format_are_left_to_the_format(answer_format: AnswerFormat) -> None:
    assert _drop('{"city": "Rome", "is": "a city"}, ' * 30, answer_format) is None


def test_bounds_of_the_recipe_count() -> None:
    twice = "so it goes on and on " * 10
    assert _drop(twice) is not None
    assert _drop(twice, min_repeats=11) is None
    assert _drop(twice, min_words=61) is None
