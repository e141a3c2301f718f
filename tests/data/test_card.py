"""A data card states hand-computed figures, and how they differ from the last set's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distillery.data.answer_classes import class_of
from distillery.data.card import make_card
from distillery.data.card_page import card_html, card_markdown
from distillery.data.divergence import by_chance, divergence
from distillery.data.journey import funnel_rows, priced
from distillery.storage.store import Store
from distillery.task_types import task_type
from schemas.budget import PriceSpec
from schemas.card import DataCard
from schemas.frames import TrainingFrame, arrow_schema
from schemas.funnel import FunnelStep
from schemas.refs import DatasetRef
from schemas.task import AnswerFormat, JsonFormat, LabelSet, TaskKind, TaskSpec

LABELS = LabelSet(labels=("yes", "no", "maybe"))


def _kept(folder: Path, pairs: list[tuple[str, str]], fingerprint: str = "f") -> DatasetRef:
    schema = arrow_schema(TrainingFrame)
    rows = [
        {
            "prompt_id": f"p{n}",
            "split": "validation" if n == 0 else "train",
            "messages": json.dumps([{"role": "user", "content": prompt}]),
            "response": response,
        }
        for n, (prompt, response) in enumerate(pairs)
    ]
    uri = f"filter_responses/{fingerprint}/a/kept"
    with Store(str(folder)).row_writer(uri, schema) as writer:
        writer.write(pa.RecordBatch.from_pylist(rows, schema))
    return writer.ref(fingerprint)


def _card(
    folder: Path,
    pairs: list[tuple[str, str]],
    *,
    last: DataCard | None = None,
    answer_format: AnswerFormat | None = None,
    **named: Any,
) -> DataCard:
    kind = TaskKind.CLASSIFICATION if answer_format else TaskKind.SUMMARIZATION
    task = task_type(TaskSpec(name="t", type=kind, answer_format=answer_format))
    kept = _kept(folder, pairs, str(len(pairs)))
    return make_card(kept, task, (), (30, 20), last, Store(str(folder)), **named)


def test_rows_lengths_and_distinct_runs_are_counted(tmp_path: Path) -> None:
    card = _card(tmp_path, [("a b a b", "one"), ("a b c", "two words")])
    assert card.rows == {"train": 1, "validation": 1}
    assert (card.prompt_tokens, card.completion_tokens) == (30, 20)
    # a b a b a b c: 3 of 7 words; ab ba ab, ab bc: 3 of 5; aba bab, abc: 3 of 3.
    assert card.prompts.distinct == {"1": 3 / 7, "2": 3 / 5, "3": 1.0}
    assert card.responses.chars["shortest"] == 3
    assert card.responses.chars["longest"] == 9
    assert card.responses.chars["50%"] == 6
    assert (card.compared_with, card.drift) == (None, ())


def test_rows_that_nearly_repeat_an_earlier_one_are_a_share(tmp_path: Path) -> None:
    same = " ".join(f"word{n}" for n in range(60))
    pairs = [(same, "x"), (same + " end", "y"), ("something else that is said here", "z")]
    card = _card(tmp_path, [*pairs, ("a fourth text about a fourth matter", "w")])
    assert card.prompts.near_duplicates == 0.25


def test_languages_are_told_of_prompts_and_of_open_responses(tmp_path: Path) -> None:
    german = "Der Hund lief gestern durch den Wald und kam nicht zurück."
    english = "The dog ran through the forest yesterday and did not come back."
    card = _card(tmp_path, [(german, english), (german, english)])
    assert card.prompts.languages == {"de": 1.0}
    assert card.responses.languages == {"en": 1.0}


def test_labels_without_a_row_count_0_and_have_no_ratio(tmp_path: Path) -> None:
    card = _card(tmp_path, [("a", "yes"), ("b", "yes"), ("c", "no")], answer_format=LABELS)
    assert card.labels == {"label": {"yes": 2, "no": 1, "maybe": 0}}
    assert card.imbalance == {"label": None}
    two = LabelSet(labels=("yes", "no"))
    card = _card(tmp_path / "b", [("a", "yes"), ("b", "yes"), ("c", "no")], answer_format=two)
    assert card.imbalance == {"label": 2.0}


def test_closed_properties_of_json_answers_are_counted_each(tmp_path: Path) -> None:
    schema: Any = {
        "properties": {"a/b": {"enum": ["x", 1]}, "urgent": {"type": "boolean"}, "note": {}}
    }
    pairs = [("a", '{"a/b": "x", "urgent": true}'), ("b", '{"a/b": 1, "urgent": true}')]
    card = _card(tmp_path, pairs, answer_format=JsonFormat(json_schema=schema))
    assert card.labels == {"a/b": {"1": 1, "x": 1}, "urgent": {"true": 2, "false": 0}}


def test_embeddings_spread_is_the_mean_cosine_distance_of_two_rows(tmp_path: Path) -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])  # cosines 0, -1, 0
    pairs = [("a", "x"), ("b", "y"), ("c", "z")]
    card = _card(tmp_path, pairs, embed=lambda texts: vectors[: len(texts)])
    assert card.prompts.embedding_spread == pytest.approx(4 / 3)
    assert _card(tmp_path / "b", pairs).prompts.embedding_spread is None


def test_drift_is_nothing_against_itself_and_all_against_other_labels(tmp_path: Path) -> None:
    first = _card(tmp_path, [("a b c", "yes"), ("d e f", "yes")], answer_format=LABELS)
    again = _card(tmp_path, [("a b c", "yes"), ("d e f", "yes")], answer_format=LABELS, last=first)
    assert again.compared_with == first.training_set
    assert {shift.divergence for shift in again.drift} == {0.0}
    other = _card(
        tmp_path / "b", [("x y z", "no"), ("u v w", "no")], answer_format=LABELS, last=first
    )
    found = {shift.figure: shift.divergence for shift in other.drift}
    assert (found["answers: label"], found["words of prompts"]) == (1.0, 1.0)
    assert found["length of prompts"] == 0.0


def test_a_figure_that_one_set_lacks_has_no_divergence(tmp_path: Path) -> None:
    first = _card(tmp_path, [("a", "yes"), ("b", "no")], answer_format=LABELS)
    open_answers = _card(tmp_path / "b", [("a", "yes"), ("b", "no")], last=first)
    found = {shift.figure: shift.divergence for shift in open_answers.drift}
    assert found["answers: label"] is None


def test_divergence_is_what_its_definition_says() -> None:
    # m = (3/4, 1/4): (1 log2 4/3 + (1/2 log2 2/3 + 1/2 log2 2)) / 2
    assert divergence({"a": 2}, {"a": 1, "b": 1}) == pytest.approx(0.311278)
    rng = np.random.default_rng(0)

    def sample(size: int) -> dict[str, int]:
        return {str(n): int(k) for n, k in enumerate(rng.multinomial(size, [0.05] * 20))}

    found = [divergence(sample(300), sample(700)) for _ in range(200)]
    assert np.mean(found) == pytest.approx(by_chance(sample(300), sample(700)), rel=0.1)


def test_pages_escape_what_comes_from_data(tmp_path: Path) -> None:
    labels = LabelSet(labels=("<b>x</b>", "a|b"))
    card = _card(tmp_path, [("q", "<b>x</b>"), ("r", "a|b")], answer_format=labels)
    page = card_html(card)
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "<b>x" not in page
    assert "| a\\|b | 1 | 50.0 % |" in card_markdown(card)
    assert DataCard.model_validate_json(card.model_dump_json()) == card


def test_a_class_is_read_from_an_answer_in_any_dress() -> None:
    task = task_type(TaskSpec(name="t", type=TaskKind.CLASSIFICATION, answer_format=LABELS))
    assert [class_of(text, "label", task) for text in ("yes", "**No**.", "never")] == [
        "yes",
        "no",
        None,
    ]


def test_what_dropped_responses_cost_goes_by_the_price_of_their_teacher() -> None:
    step = FunnelStep(
        name="refusal",
        num_rows=10,
        dropped={"refusal": 3},
        dropped_tokens={"big": (1_000_000, 500_000), "small": (1_000_000, 0)},
    )
    kept = FunnelStep(name="kept", num_rows=7)
    big = PriceSpec(prompt_per_million=2, completion_per_million=10, currency="EUR")
    small = PriceSpec(prompt_per_million=1, completion_per_million=1, currency="EUR")
    found = priced([step, kept], {"big": big, "small": small}.get)
    assert (found[0].dropped_cost, found[0].currency) == (2 + 5 + 1, "EUR")
    assert funnel_rows(found) == [
        {
            "step": "refusal",
            "rows": "10",
            "dropped": "3",
            "because": "refusal 3",
            "their tokens": "2,500,000",
            "their cost": "8.00 EUR",
        },
        {
            "step": "kept",
            "rows": "7",
            "dropped": "",
            "because": "",
            "their tokens": "",
            "their cost": "",
        },
    ]
    assert priced([step], {"big": big}.get)[0].dropped_cost is None  # small has no price
    dollars = small.model_copy(update={"currency": "USD"})
    assert priced([step], {"big": big, "small": dollars}.get)[0].dropped_cost is None
