"""Answers are compared as SQuAD does, in any script; that there is none is an answer too."""

from typing import Any

import pytest

from distillery.task_types import Answer, task_type
from distillery.task_types.qa import UNANSWERABLE, stands_in
from schemas.errors import RecipeError
from schemas.task import AnswerFormat, JsonFormat, LabelSet, RegexFormat, TaskKind, TaskSpec
from tests.fixtures_shared_data import shared_rows

QA = task_type(TaskSpec(name="t", type=TaskKind.QA))


def _f1_and_match(
    response: str | None, *references: str, truncated: bool = False
) -> tuple[float | None, float | None]:
    found = QA.score(response, references, truncated=truncated)
    assert list(found) == ["F1", "exact match", "in context"]
    return found["F1"], found["exact match"]


@pytest.mark.parametrize(
    ("response", "reference", "f1", "match"),
    [
        # case, white space and punctuation around an answer do not count
        ("Denver Broncos", "Denver Broncos", 1, 1),
        ("denver BRONCOS.", "Denver Broncos", 1, 1),
        (" Denver\n Broncos ", "Denver Broncos", 1, 1),
        ('"Denver Broncos"!', "Denver Broncos", 1, 1),
        ("two", "two.", 1, 1),
        # nor do articles, as words of their own
        ("the Denver Broncos", "Denver Broncos", 1, 1),
        ("an apple a day", "apple day", 1, 1),
        ("The Theatre", "theatre", 1, 1),
        ("Theatre", "the atre", 0, 0),
        ("then", "n", 0, 0),
        ("vitamin A", "vitamin", 1, 1),
        # punctuation inside words is deleted, not a space
        ("U.S.", "US", 1, 1),
        ("U.S.", "U S", 0, 0),
        ("O'Brien", "OBrien", 1, 1),
        ("don't", "do not", 0, 0),
        ("AT&T", "ATT", 1, 1),
        ("rock 'n' roll", "Rock n Roll", 1, 1),
        # hyphens, dashes, slashes
        ("well-known", "wellknown", 1, 1),
        ("well-known", "well known", 0, 0),
        ("1990-1995", "1990\u20131995", 1, 1),  # the dash is Unicode's, which MLQA deletes too
        ("1990-1995", "1990 to 1995", 0, 0),
        ("km/h", "kmh", 1, 1),
        # numbers are words
        ("1,000", "1000", 1, 1),
        ("1.5", "15", 1, 1),
        ("12%", "12", 1, 1),
        ("-5", "5", 1, 1),
        ("$30", "30 dollars", 2 / 3, 0),  # 1 of 1, 1 of 2
        ("10", "ten", 0, 0),
        ("3 million", "3000000", 0, 0),
        ("007", "7", 0, 0),
        # a part of the answer, or more than it
        ("in the year 1998", "1998", 1 / 2, 0),  # 1 of 3, 1 of 1
        ("Broncos", "Denver Broncos", 2 / 3, 0),
        ("Santa Clara, California", "Santa Clara", 4 / 5, 0),  # 2 of 3, 2 of 2
        ("Santa Clara", "Levi's Stadium in Santa Clara", 4 / 7, 0),  # 2 of 2, 2 of 5
        ("It was the Denver Broncos who won it", "Denver Broncos", 4 / 9, 0),  # 2 of 7, 2 of 2
        ("Carolina Panthers", "Denver Broncos", 0, 0),
        # order counts in exact match alone, and a word as often as it stands there
        ("Broncos Denver", "Denver Broncos", 1, 0),
        ("Denver Denver", "Denver Broncos", 1 / 2, 0),  # 1 of 2, 1 of 2
        ("Denver", "Denver, Denver", 2 / 3, 0),  # 1 of 1, 1 of 2
        ("of of of", "of in of", 2 / 3, 0),  # 2 of 3, 2 of 3
        # any script
        ("Krak\u00f3w", "Krakow", 0, 0),
        ("Krako\u0301w", "Krak\u00f3w", 1, 1),
        ("\u00ab\u0414\u0430\u00bb", "\u0434\u0430", 1, 1),
        ("Stra\u00dfe", "STRASSE", 1, 1),
        ("\uff11\uff19\uff19\uff18", "1998", 1, 1),
        ("\u6771\u4eac\u3002", "\u6771\u4eac", 1, 1),
        ("\u6771\u4eac\u90fd", "\u6771\u4eac", 4 / 5, 0),  # 2 of 3, 2 of 2
        ("Tokyo\u6771\u4eac", "\u6771\u4eac Tokyo", 1, 0),
        ("\uc11c\uc6b8 \uc2dc", "\uc11c\uc6b8", 2 / 3, 0),
        ("\u0e44\u0e17\u0e22", "\u0e44\u0e17", 4 / 5, 0),
        # nothing is left of these by SQuAD's rules, and yet they are answers
        ("A", "B", 0, 0),
        ("a.", "A", 1, 1),
        ("+", "-", 0, 0),
        ("?", UNANSWERABLE, 0, 0),
        # an answer where there is none, none where there is one, none twice
        ("1998", UNANSWERABLE, 0, 0),
        (UNANSWERABLE, "1998", 0, 0),
        ("", "1998", 0, 0),
        ("", UNANSWERABLE, 1, 1),
        (" \n", UNANSWERABLE, 1, 1),
        (UNANSWERABLE, UNANSWERABLE, 1, 1),
    ],
)
def test_f1_and_exact_match_are_those_of_squad(
    response: str, reference: str, f1: float, match: float
) -> None:
    assert _f1_and_match(response, reference) == pytest.approx((f1, match))


@pytest.mark.parametrize(
    "response",
    [
        # an introduction
        "Answer: 42 BC",
        "answer = 42 BC",
        "Answer\uff1a42 BC",
        "The answer is 42 BC.",
        "The answer is: 42 BC",
        "Final answer: 42 BC",
        "The correct answer is 42 BC",
        "My short answer:\n42 BC",
        "**Answer:** 42 BC",
        "**Answer**: 42 BC",
        "**Answer: 42 BC**",
        "The answer is **42 BC**.",
        # dress
        "**42 BC**",
        "*42 BC*",
        "`42 BC`",
        "```\n42 BC\n```",
        '"42 BC."',
        "(42 BC)",
        "<think>Caesar died in 44.</think>\n\n42 BC",
        "42\u00a0BC",
        "\ufeff42 BC\u200b",
    ],
)
def test_introduction_and_dress_are_no_part_of_an_answer(response: str) -> None:
    assert _f1_and_match(response, "42 BC") == (1.0, 1.0)


@pytest.mark.parametrize(
    "response",
    [
        "It is 42 BC",
        "Answer 42 BC",
        "Answers: 42 BC",
        "Date: 42 BC",
        "42 BC is the answer",
        "In 42 BC",
        "42 BC or 44 BC",
        "42 BC, I think",
        "Question: When? Answer: 42 BC",
        "42 BC\n\nThe text says so.",
        "The answer is that it was 42 BC",
        "I would answer: 42 BC",
        "42 AD",
        "42",
        "43 BC",
        "not 42 BC",
    ],
)
def test_what_is_said_besides_counts(response: str) -> None:
    f1, match = _f1_and_match(response, "42 BC")
    assert match == 0
    assert f1 is not None and 0 < f1 < 1


@pytest.mark.parametrize(
    "response",
    [
        "unanswerable",
        "Unanswerable.",
        "**UNANSWERABLE**",
        "<think>Hm.</think>unanswerable",
        "Answer: unanswerable",
        "The answer is: no answer",
        "No answer",
        "There is no answer.",
        "There is no answer to this question in the text.",
        "not answerable",
        "The question is unanswerable.",
        "This question is not answerable from the given passage.",
        "The question cannot be answered.",
        "The question cannot be answered from the context.",
        "This can't be answered based on the provided text.",
        "It can not be answered",
        "Not in the context.",
        "The answer is not in the passage.",
        "The answer is not given in the text.",
        "Not mentioned in the document.",
        "The context does not say.",
        "The passage doesn't contain the answer.",
        "The text does not provide an answer.",
        "CANNOTANSWER",
        "",
        "<think>I cannot find it.</think>",
    ],
)
def test_usual_ways_of_saying_that_there_is_no_answer_are_one_answer(response: str) -> None:
    assert _f1_and_match(response, UNANSWERABLE) == (1.0, 1.0)
    assert _f1_and_match(response, "42 BC") == (0.0, 0.0)


@pytest.mark.parametrize(
    "response",
    [
        # answers to other questions
        "none",
        "nobody",
        "nothing",
        "unknown",
        "no",
        "not",
        "zero",
        "null",
        "N/A",
        "-",
        # a model that does not know, or declines
        "I don't know.",
        "I cannot answer.",
        "I'm sorry, but I can't help with that.",
        # an answer after all, or a word of the phrase in another sense
        "unanswerable questions",
        "no answer was received from the king",
        "The letter cannot be answered",
        "cannot be answered by the king",
        "not in the mood",
        "The context does not say that he won",
        "The text does not mention Paris",
        "not in Paris",
        "No. Answer: 42 BC",
        "Unanswerable, but probably 42 BC",
        "answerable",
    ],
)
def test_other_words_of_denial_are_answers(response: str) -> None:
    assert _f1_and_match(response, UNANSWERABLE) == (0.0, 0.0)
    assert _f1_and_match(response, response) == (1.0, 1.0)


def test_the_best_reference_counts_for_each_metric() -> None:
    assert _f1_and_match("Denver Broncos", "Broncos", "the Denver Broncos") == (1.0, 1.0)
    assert _f1_and_match("the team of Denver", "Denver", "Denver team of") == (1.0, 0.0)
    assert _f1_and_match("Denver", "Carolina", "Denver Broncos") == pytest.approx((2 / 3, 0.0))


def test_what_was_not_obtained_or_has_no_reference_is_unscored() -> None:
    assert _f1_and_match(None, "1998") == (None, None)
    assert _f1_and_match("1998") == (None, None)


def test_a_response_that_was_cut_is_scored_as_it_is_unless_nothing_was_said() -> None:
    assert _f1_and_match("1998", "1998", truncated=True) == (1.0, 1.0)
    assert _f1_and_match("1998 and", "1998", truncated=True) == pytest.approx((2 / 3, 0.0))
    assert _f1_and_match("<think>The context", UNANSWERABLE, truncated=True) == (0.0, 0.0)
    assert _f1_and_match("", UNANSWERABLE, truncated=True) == (0.0, 0.0)


PROMPT = (
    "Context: The U.S. \u2013 unlike Rollo's six-year war \u2013 lost 1,435 men.\n\nQuestion: Who?"
)


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("U.S.", 1.0),
        ("the US", 1.0),
        ("Rollo", 1.0),
        ("six", 1.0),
        ("six-year WAR", 1.0),
        ("1435 men.", 1.0),
        ("The answer is: Rollo's", 1.0),
        ("roll", 0.0),
        ("year six", 0.0),
        ("Rollo war", 0.0),
        ("The war was lost", 0.0),
        ("143", 0.0),
        ("unanswerable", None),
        ("", None),
    ],
)
def test_answers_that_do_not_stand_in_the_prompt_are_counted(
    response: str, found: float | None
) -> None:
    assert QA.score(response, ["x"], prompt=PROMPT)["in context"] == found
    assert QA.score(response, ["x"])["in context"] is None


def test_words_of_scripts_without_spaces_stand_in_a_prompt_letter_by_letter() -> None:
    assert stands_in("\u6771\u4eac", "\u65e5\u672c\u306e\u6771\u4eac\u3067\u3059\u3002")
    assert not stands_in("\u4eac\u6771", "\u65e5\u672c\u306e\u6771\u4eac\u3067\u3059\u3002")


@pytest.mark.parametrize(
    ("value", "references"),
    [
        ("308", ("308",)),
        (["308", "three hundred"], ("308", "three hundred")),
        ({"text": ["308"], "answer_start": [34]}, ("308",)),
        ({"text": "308"}, ("308",)),
        ('["308", "310"]', ("308", "310")),
        ('{"text": ["308"], "answer_start": [34]}', ("308",)),
        (' {"text": []}', (UNANSWERABLE,)),
        (["", "308"], ("308",)),
        ("[sic]", ("[sic]",)),
        ("{308}", ("{308}",)),
        (None, (UNANSWERABLE,)),
        ("", (UNANSWERABLE,)),
        (" ", (UNANSWERABLE,)),
        ([], (UNANSWERABLE,)),
        ("[]", (UNANSWERABLE,)),
        ([""], (UNANSWERABLE,)),
        ({"text": [], "answer_start": []}, (UNANSWERABLE,)),
        ({"text": None}, (UNANSWERABLE,)),
    ],
)
def test_references_come_in_every_usual_layout(value: Any, references: tuple[str, ...]) -> None:
    assert QA.references(value) == references


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (["308", 7], "text 1 of the list is 7, not a text"),
        ([None], "text 0 of the list is None, not a text"),
        ([["308"]], "not a text"),
        ({"text": [308]}, "text 0 of the list is 308, not a text"),
        (308, "308 is int, not a text or a list of texts"),
        (True, "True is bool"),
        ({"answer": "308"}, """'{"answer": "308"}' is an object without 'text'"""),
        ('{"text": ["308"', "is not JSON"),
        ("{'text': array(['308'], dtype=object)}", "is not JSON: write the column as JSON text"),
    ],
)
def test_references_of_another_kind_say_what_they_are(value: Any, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        QA.references(value)
    assert why in str(caught.value)


def test_a_student_learns_the_bare_answer_and_one_way_to_say_that_there_is_none() -> None:
    assert QA.read(" **Answer:** U.S.\n") == Answer("U.S.", "us")
    assert QA.read("There is no answer.") == Answer(UNANSWERABLE, "")
    assert QA.target(QA.references({"text": ["Denver Broncos", "Broncos"]})) == "Denver Broncos"
    assert QA.target(QA.references(None)) == UNANSWERABLE
    empty = QA.violation("<think>Hm.</think>")
    assert empty and empty[1] == "nothing follows the thoughts"


def test_two_answers_are_the_same_when_they_match_exactly() -> None:
    def same(response: str, other: str) -> bool:
        answers = QA.parse(response), QA.parse(other)
        assert answers[0] and answers[1]
        return QA.same(answers[0], answers[1])

    assert same("The U.S.", "Answer: us")
    assert same("No answer.", "unanswerable")
    assert not same("Denver", "Denver Broncos")


def test_the_context_stands_before_the_question() -> None:
    asked = {"question": "Who won {it}?", "context": "Denver won."}
    assert QA.prompt(asked) == "Context: Denver won.\n\nQuestion: Who won {it}?"
    assert QA.prompt({"question": "Who won?"}) == "Who won?"
    assert QA.prompt({"question": "Who won?", "context": " "}) == "Who won?"
    assert QA.prompt({"context": "Denver won.", "question": None}) == ""


def test_a_teacher_is_told_what_to_write_where_there_is_no_answer() -> None:
    assert f"write {UNANSWERABLE}." in QA.instructions()


@pytest.mark.parametrize(
    "answer_format",
    [LabelSet(labels=("a", "b")), RegexFormat(pattern="a"), JsonFormat(json_schema={})],
)
def test_an_answer_format_is_refused(answer_format: AnswerFormat) -> None:
    task = TaskSpec(name="t", type=TaskKind.QA, answer_format=answer_format)
    with pytest.raises(RecipeError, match=r"which task\.type 'qa' cannot use.*Remove it"):
        task_type(task).check()


def test_every_reference_of_xquad_is_right_and_stands_in_its_context() -> None:
    num_rows, elsewhere = 0, []
    for row in shared_rows("qa-xquad-en/train.jsonl") + shared_rows("qa-xquad-en/test.jsonl"):
        references = QA.references(row["answers"])
        found = QA.score(references[0], references, prompt=QA.prompt(row))
        assert (found["F1"], found["exact match"]) == (1.0, 1.0), references
        num_rows += 1
        if not found["in context"]:
            elsewhere.append(references[0])
    assert num_rows == 870 + 320
    assert elsewhere == ["7,000,000 square kilometres (2,70"]  # ends within a number
