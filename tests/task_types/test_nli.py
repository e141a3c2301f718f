"""A pair of sentences has one of three labels, or two, in whatever usual spelling."""

import csv
from collections import Counter
from typing import Any

import numpy as np
import pytest

from distillery.task_types import Answer, ScoredRow, TaskType, task_type
from schemas.errors import RecipeError
from schemas.task import AnswerFormat, JsonFormat, LabelSet, RegexFormat, TaskKind, TaskSpec
from tests.fixtures_shared_data import shared_file

TWO_WAY = ("entailment", "not_entailment")


def _kind(*labels: str) -> TaskType:
    answer_format = LabelSet(labels=labels) if labels else None
    return task_type(TaskSpec(name="t", type=TaskKind.NLI, answer_format=answer_format))


def _label(response: str, *labels: str) -> str | None:
    answer = _kind(*labels).parse(response)
    return answer.text if answer else None


@pytest.mark.parametrize(
    ("response", "label"),
    [
        # dress
        ("entailment", "entailment"),
        (" Neutral.\n", "neutral"),
        ("**CONTRADICTION**", "contradiction"),
        ('"neutral"', "neutral"),
        ("```\nentailment\n```", "entailment"),
        ("<think>Two men are people.</think>entailment", "entailment"),
        ("Label: contradiction", "contradiction"),
        ("The answer is: neutral.", "neutral"),
        ("**Relationship:** entailment", "entailment"),
        # forms of the word
        ("entails", "entailment"),
        ("Entailed", "entailment"),
        ("entail", "entailment"),
        ("contradicts", "contradiction"),
        ("Contradictory.", "contradiction"),
        ("contradicted", "contradiction"),
        ("contradict", "contradiction"),
        # initials
        ("E", "entailment"),
        ("n", "neutral"),
        ("(C)", "contradiction"),
        # words of a sentence about the question, or a label among others
        ("yes", None),
        ("true", None),
        ("neither", None),
        ("unknown", None),
        ("entailment or neutral", None),
        ("neutral/contradiction", None),
        ("not contradiction", None),
        ("not neutral", None),
        ("entailment?", None),
        ("probably entailment", None),
        ("The premise entails the hypothesis.", None),
        ("entailment, since two men are people", None),
        # one of two labels, but not which
        ("not entailment", None),
        ("non-entailment", None),
        # other words and numbers
        ("entailments", None),
        ("contra", None),
        ("neutrality", None),
        ("e n", None),
        ("0", None),
        ("2", None),
        ("", None),
        ("<think>entailment", None),
    ],
)
def test_usual_spellings_are_read_and_nothing_else(response: str, label: str | None) -> None:
    assert _label(response) == label


@pytest.mark.parametrize(
    ("response", "label"),
    [
        *((text, "entailment") for text in ("entailment", "Entails.", "e", "ENTAILED")),
        *((text, "not_entailment") for text in ("not_entailment", "not entailment")),
        *((text, "not_entailment") for text in ("Not-Entailment.", "NON_ENTAILMENT")),
        *((text, "not_entailment") for text in ("non\u2011entailment", "nonentailment")),
        *(
            (text, "not_entailment")
            for text in ("no entailment", "not entailed", "`not_entailment`")
        ),
        *((text, "not_entailment") for text in ("does not entail", "Doesn't entail.")),
        *(
            (text, "not_entailment")
            for text in ("neutral", "Contradiction", "contradicts", "n", "C")
        ),
        *((text, None) for text in ("not", "no", "yes", "false", "not not entailment", "1")),
        *((text, None) for text in ("not contradiction", "not neutral", "entailment not", "ne")),
    ],
)
def test_in_two_way_sets_whatever_is_not_entailment_is_one_label(
    response: str, label: str | None
) -> None:
    assert _label(response, *TWO_WAY) == label


def test_the_recipes_own_spelling_is_what_a_student_learns() -> None:
    labels = ("Entailment", "Neutral", "Contradicts")
    assert [_label(text, *labels) for text in ("e", "neutral", "contradiction")] == list(labels)
    assert _label("not_entailment", "non-entailment", "entails") == "non-entailment"
    found = _kind(*labels).read("maybe")
    assert not isinstance(found, Answer)
    assert found[1] == "'maybe' is none of Entailment, Neutral, Contradicts"


@pytest.mark.parametrize(
    ("value", "two_way", "three_way"),
    [
        *((value, "entailment", "entailment") for value in (0, "0", 0.0, "0.0", "entailment")),
        *((value, "not_entailment", "neutral") for value in (1, "1", 1.0, "neutral", " N ")),
        *((value, "not_entailment", "contradiction") for value in (2, "2", 2.0, "Contradicts")),
        ("not_entailment", "not_entailment", None),
    ],
)
def test_a_reference_is_a_label_or_its_number(
    value: Any, two_way: str, three_way: str | None
) -> None:
    for kind, label in ((_kind(*TWO_WAY), two_way), (_kind(), three_way)):
        (text,) = kind.references(value)
        answer = kind.parse(text)
        assert (answer and answer.text) == label


@pytest.mark.parametrize("value", [-1, "-1", -1.0, "-", " - "])
def test_a_pair_without_a_gold_label_says_so(value: Any) -> None:
    with pytest.raises(ValueError, match="the pair has no gold label"):
        _kind().references(value)


@pytest.mark.parametrize("value", [3, "17", 3.0])
def test_a_number_without_a_label_is_named_with_those_that_have_one(value: Any) -> None:
    with pytest.raises(ValueError, match="none of 0 entailment, 1 neutral, 2 contradiction; give"):
        _kind().references(value)


@pytest.mark.parametrize("value", [True, 0.5, -2, "1e0", "yes", [1]])
def test_what_is_neither_label_nor_number_is_no_reference(value: Any) -> None:
    (text,) = _kind().references(value)
    violation = _kind().violation(text)
    assert violation and violation[1].endswith("is none of entailment, neutral, contradiction")


@pytest.mark.parametrize("value", [None, "", " "])
def test_an_empty_cell_holds_no_reference(value: Any) -> None:
    assert _kind().references(value) == ()


def test_the_prompt_names_premise_and_hypothesis_and_no_label() -> None:
    values = {"premise": "A {man} eats.", "hypothesis": "Someone eats."}
    assert _kind().prompt(values) == "Premise: A {man} eats.\nHypothesis: Someone eats."
    for missing in ({"premise": "A"}, {"premise": "A", "hypothesis": " "}, {"hypothesis": "A"}, {}):
        assert _kind().prompt(missing) == ""


def test_a_teacher_is_told_the_question_and_the_labels() -> None:
    three, two = _kind().instructions(), _kind(*TWO_WAY).instructions()
    assert "entail the hypothesis, contradict it, or neither?" in three
    assert three.endswith(":\nentailment\nneutral\ncontradiction")
    assert "entail the hypothesis?" in two
    assert two.endswith(":\nentailment\nnot_entailment")


def test_a_response_is_right_wrong_or_unscored() -> None:
    kind = _kind()
    assert kind.score("contradicts", ["contradiction"]) == {"accuracy": 1.0}
    assert kind.score("neutral", ["contradiction"]) == {"accuracy": 0.0}
    assert kind.score("no idea", ["contradiction"]) == {"accuracy": 0.0}
    assert kind.score("contradiction", ["contradiction"], truncated=True) == {"accuracy": 0.0}
    assert kind.score(None, ["contradiction"]) == {"accuracy": None}


def test_macro_f1_counts_labels_whatever_their_spelling() -> None:
    kind = _kind()
    pairs = [
        ("e", "entailment"),
        ("Entails", "entailment"),
        ("n", "contradiction"),
        ("?", "neutral"),
    ]
    rows = [ScoredRow(response, (reference,)) for response, reference in pairs]
    metric = kind.of_the_set["macro F1"]
    sums = np.asarray(metric.statistics(rows).sum(axis=0), dtype=np.float64)
    assert metric.value(sums[None]) == pytest.approx([1 / 3])
    assert kind.has_labels


@pytest.mark.parametrize(
    "labels",
    [
        ("yes", "no"),
        ("entailment", "neutral"),
        ("entailment", "contradiction"),
        ("entailment", "entails", "neutral"),
        ("entailment", "neutral", "contradiction", "not_entailment"),
        ("entailment", "neutral", "contradiction", "other"),
        ("refund", "repair", "exchange"),
    ],
)
def test_other_labels_are_refused_with_what_is_possible(labels: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as caught:
        _kind(*labels).check()
    assert str(caught.value) == (
        f"task.answer_format.labels {list(labels)!r} are not those of task.type 'nli'. Name "
        "entailment, neutral, contradiction or entailment, not_entailment, in any usual spelling, "
        "or choose task.type 'classification'."
    )


@pytest.mark.parametrize(
    "labels",
    [(), TWO_WAY, ("C", "E", "N"), ("Not Entailment", "Entailment"), ("no entailment", "entails")],
)
def test_any_spelling_of_the_labels_is_accepted(labels: tuple[str, ...]) -> None:
    _kind(*labels).check()


@pytest.mark.parametrize(
    "answer_format", [JsonFormat(json_schema={}), RegexFormat(pattern="[enc]")]
)
def test_an_answer_format_that_is_no_list_of_labels_is_refused(answer_format: AnswerFormat) -> None:
    task = TaskSpec(name="t", type=TaskKind.NLI, answer_format=answer_format)
    with pytest.raises(
        RecipeError, match=r"which task\.type 'nli' cannot use.*Give it kind 'labels'"
    ):
        task_type(task).check()


def test_every_label_of_counterfactual_snli_is_mapped() -> None:
    kind, found = _kind(), Counter[str]()
    for name in ("train", "test"):
        with shared_file(f"nli-counterfactual/{name}.tsv").open(
            encoding="utf-8", newline=""
        ) as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                (reference,) = kind.references(row["gold_label"])
                assert kind.score(row["gold_label"], [reference]) == {"accuracy": 1.0}
                found[reference] += 1
    assert found == {"entailment": 3228, "neutral": 3282, "contradiction": 3320}
