from pathlib import Path
from typing import Any

import yaml

from distillery.evaluation.cards import data_card, model_card
from distillery.evaluation.lineage import Origins
from schemas.comparison import Comparison
from tests.fixtures_comparison import TASK
from tests.fixtures_report import ORIGINS, manifest, rich_comparison


def metadata(card: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return loaded


def grown_from(model: str) -> Comparison:
    found = rich_comparison()
    rows = (
        row.model_copy(update={"model": model}) if row.name == "baseline" else row
        for row in found.contestants
    )
    return found.model_copy(update={"contestants": tuple(rows)})


def test_model_card_has_the_metadata_of_a_hub_model() -> None:
    found = metadata(model_card(grown_from("someone/small"), ORIGINS, TASK))
    assert found["base_model"] == "someone/small"
    assert found["license"] == "unknown"
    assert found["tags"] == ["distillation", "distillery", "classification"]
    assert found["metrics"] == ["accuracy", "macro F1"]
    [entry] = found["model-index"]
    values = {m["type"]: m["value"] for r in entry["results"] for m in r["metrics"]}
    assert values["accuracy"] == 0.9


def test_model_card_states_what_is_known_and_what_is_not() -> None:
    card = model_card(grown_from("someone/small"), ORIGINS, TASK)
    assert "- Objective: hard_targets: as the recipe says" in card
    assert "- Made from: `someone/small`, licence: not known" in card
    assert "- Made at: 2026-11-26 03:30 UTC" in card
    assert "- Objective: not known" in model_card(rich_comparison(), Origins(), TASK)


def test_a_folder_is_no_base_model_of_the_hub_but_its_licence_counts(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n")
    card = model_card(grown_from(str(tmp_path)), ORIGINS, TASK)
    assert "base_model" not in metadata(card)
    assert metadata(card)["license"] == "gemma" and str(tmp_path) in card


def test_a_student_made_from_scratch_has_no_base() -> None:
    trained = Origins({**ORIGINS.manifests, "train_baseline": manifest("train_baseline")})
    card = model_card(grown_from("someone/small"), trained, TASK)
    assert "base_model" not in metadata(card)
    assert "- Made from: random weights: it was trained from scratch" in card


def test_a_pruned_student_is_made_from_the_model_that_was_pruned() -> None:
    sizes = {"layers": 18, "intermediate_size": 64, "parameters": 268_000_000}
    smaller = {"layers": 2, "intermediate_size": 32, "parameters": 177_000_000}
    facts = {"model": "someone/large", "kept_layers": [0, 17], "before": sizes, "after": smaller}
    pruned = Origins({**ORIGINS.manifests, "prune_student": manifest("prune_student", facts=facts)})
    card = model_card(grown_from("prune_student/f/a/model"), pruned, TASK)
    assert metadata(card)["base_model"] == "someone/large"
    assert "- Made from: `someone/large`, licence: not known" in card
    assert (
        "- Pruned: someone/large pruned to 2 of its 18 layers (0, 17) and 32 of the 64 neurons of "
        "each feed-forward block: 177 M of 268 M parameters"
    ) in card
    assert "Pruned" not in model_card(grown_from("someone/small"), ORIGINS, TASK)


def test_data_card_names_files_ways_out_and_the_teacher() -> None:
    card = data_card(rich_comparison(), ORIGINS, TASK)
    assert metadata(card)["license"] == "unknown"
    assert f"- train: 4,000 rows; fingerprint `{'a' * 64}`" in card
    assert "  - dropped, found_in_test: 150" in card
    assert "- test, no_reference: 2" in card
    assert "- Asked with: max_new_tokens 16" in card
    gone = data_card(rich_comparison(), Origins(), TASK)
    assert "Files: not known" in gone and "- Asked with: not known" in gone
