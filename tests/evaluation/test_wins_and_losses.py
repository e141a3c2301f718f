import json

import pytest

from distillery.evaluation import wins_and_losses
from distillery.evaluation.wins_and_losses import differing_rows
from distillery.storage.store import Store
from schemas.comparison import DifferingRow
from schemas.execution import StoreSpec
from tests.fixtures_comparison import answer_frame, prompt_frame, seal_prompts

NAN = float("nan")
SCORES = {
    "teacher": [1.0, 0.0, 1.0, NAN, 1.0],
    "champion": [1.0, 1.0, 1.0, 1.0, NAN],
    "student": [1.0, 1.0, 0.0, 0.0, NAN],
}


def differing(
    store: StoreSpec, scores: dict[str, list[float]] = SCORES
) -> tuple[list[DifferingRow], int]:
    num_rows = len(scores["student"])
    answers = {name: answer_frame(values, ["yes"] * num_rows) for name, values in scores.items()}
    prompts = seal_prompts(store, prompt_frame(num_rows))
    return differing_rows(answers, "accuracy", prompts, Store(store.root))


def test_rows_on_which_teacher_or_champion_differ_are_found(store: StoreSpec) -> None:
    rows, num_differing = differing(store)
    assert [(row.prompt_id, row.lead) for row in rows] == [
        ("test-001", 1.0),
        ("test-002", -1.0),
        ("test-003", -1.0),
    ]
    assert num_differing == 3
    assert rows[2].scores == {"teacher": None, "champion": 1.0, "student": 0.0}
    assert rows[0].responses == {"teacher": "<b>no</b>", "champion": "yes", "student": "yes"}
    assert rows[1].references == ("yes",) and "alert(2)" in rows[1].prompt


def test_a_loss_to_one_counts_more_than_a_win_over_the_other(store: StoreSpec) -> None:
    scores = {"teacher": [1.0], "champion": [0.0], "student": [0.5]}
    [row], _ = differing(store, scores)
    assert row.lead == -0.5


def test_of_too_many_those_are_kept_that_differ_most(
    store: StoreSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wins_and_losses, "_MOST_ROWS", 2)
    scores = {"teacher": [1.0, 1.0, 0.0], "student": [0.9, 0.0, 0.8]}
    rows, num_differing = differing(store, scores)
    assert ([row.prompt_id for row in rows], num_differing) == (["test-001", "test-002"], 3)


def test_long_texts_are_cut(store: StoreSpec) -> None:
    frame = prompt_frame(1)
    frame["messages"] = json.dumps([{"role": "user", "content": "x" * 5000}])
    prompts = seal_prompts(store, frame)
    answers = {"teacher": answer_frame([1.0], ["yes"]), "student": answer_frame([0.0], ["yes"])}
    [row], _ = differing_rows(answers, "accuracy", prompts, Store(store.root))
    assert row.prompt.endswith("x … (5,000 characters)") and len(row.prompt) < 4100
