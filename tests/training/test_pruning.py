"""The stage prune_student: the model that it leaves in the store, and what its manifest says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from distillery.models.local import LocalModel
from distillery.models.pruning import most_important, neuron_importance, prune
from distillery.storage.stage import StageResult
from distillery.training.pruning import prune_student, pruning_stage
from schemas.errors import TrainingError
from schemas.student import PrunedStudent
from tests.fixtures_models import make_tiny_model
from tests.fixtures_training import FAST, INLINE, Bench, rows_to_learn, turns


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("model"), num_layers=4))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, rows_to_learn())


def student(folder: str, **settings: Any) -> PrunedStudent:
    return PrunedStudent(model=folder, dtype="float32", **settings)


def pruned_by(bench: Bench, spec: PrunedStudent, **named: Any) -> StageResult:
    return prune_student(bench.training_rows, spec, bench.spec, INLINE, **named)


def test_the_model_is_that_of_the_chosen_layers(bench: Bench, folder: str) -> None:
    result = pruned_by(bench, student(folder, layers=(0, 3)))
    model, tokenizer = bench.load(result)
    whole = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer("where is my card")["input_ids"]])
    assert model(ids).logits.equal(prune(whole, (0, 3))(ids).logits)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(folder).chat_template
    assert result.model("model").num_parameters == model.num_parameters()


def test_the_manifest_says_what_was_kept(bench: Bench, folder: str) -> None:
    facts = pruned_by(bench, student(folder, num_layers=2, intermediate_size=8)).manifest.facts
    assert facts["kept_layers"] == [0, 3]
    before, after = facts["before"], facts["after"]
    assert isinstance(before, dict) and isinstance(after, dict)
    assert (before["layers"], before["intermediate_size"]) == (4, 32)
    assert (after["layers"], after["intermediate_size"]) == (2, 8)
    # Two layers go whole; of the others each lost neuron has weights in three matrices.
    model = AutoModelForCausalLM.from_pretrained(folder)
    of_layer = sum(weight.numel() for weight in model.model.layers[0].parameters())
    gone = 2 * of_layer + 2 * 3 * 16 * (32 - 8)
    assert after["parameters"] == before["parameters"] - gone == model.num_parameters() - gone


def test_neurons_are_chosen_by_what_training_rows_activate(bench: Bench, folder: str) -> None:
    seen: list[tuple[int, int]] = []
    spec = student(folder, intermediate_size=12, calibration_rows=5)
    result = pruned_by(bench, spec, on_rows=lambda *done: seen.append(done))
    whole = LocalModel.load(folder, device="cpu")
    tokens = [
        whole.chat_format.row([{"role": "user", "content": f"question {n % 3}"}], row["response"])
        for n, row in enumerate(bench.rows[:5])
    ]
    rows = [row.input_ids for row in tokens]
    kept = most_important(neuron_importance(whole.model, rows, device="cpu"), 12)
    found, expected = bench.weights(result), prune(whole.model, range(4), kept).state_dict()
    assert all(found[name].equal(weight) for name, weight in expected.items())
    assert result.manifest.counts["calibration_rows"] == 5 and seen[-1] == (5, 5)
    assert result.manifest.counts["calibration_tokens"] == sum(map(len, rows))


def test_what_is_saved_stops_where_responses_end(bench: Bench, folder: str) -> None:
    spec = student(folder, layers=(0,), system_prompt="Be brief.")
    place = bench.store.path(pruned_by(bench, spec).model("model").uri)
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert GenerationConfig.from_pretrained(place).eos_token_id == tokenizer.eos_token_id
    asked = [{"role": "user", "content": "hi"}]
    assert "Be brief." in tokenizer.apply_chat_template(asked, tokenize=False)
    [answer] = LocalModel.load(place, device="cpu").answer([asked], max_new_tokens=4, batch_size=1)
    assert 0 < answer.completion_tokens <= 4


def test_training_starts_from_the_pruned_model(bench: Bench, folder: str) -> None:
    spec = student(folder, num_layers=2)
    start = pruned_by(bench, spec)
    result = bench.train(spec, FAST, start=start.model("model"))
    model, _ = bench.load(result)
    assert model.config.num_hidden_layers == 2
    assert bench.loss(result, "train") < 0.5 * bench.loss(start, "train")


def test_the_fingerprint_changes_with_what_is_read_and_with_nothing_else(
    tmp_path: Path, folder: str
) -> None:
    one, two = (Bench(tmp_path / str(n), rows_to_learn()) for n in range(2))
    other = two.training_rows.model_copy(update={"fingerprint": "f" * 64})

    def of(rows: Any = one.training_rows, **settings: Any) -> str:
        return pruning_stage(rows, student(folder, **settings)).fingerprint

    assert of(num_layers=2) == of(other, num_layers=2) == of(num_layers=2, calibration_rows=9)
    narrow = {"num_layers": 2, "intermediate_size": 8}
    assert of(**narrow) != of(other, **narrow)
    changes: list[dict[str, Any]] = [
        {"num_layers": 3},
        narrow,
        narrow | {"intermediate_size": 9},
        narrow | {"calibration_rows": 9},
        {"num_layers": 2, "system_prompt": "Be brief."},
        {"num_layers": 2, "chat_template": "plain"},
        {"num_layers": 2, "chat_template_kwargs": {"tone": "calm"}},
    ]
    assert len({of(num_layers=2), *(of(**each) for each in changes)}) == len(changes) + 1


def test_rows_that_cannot_be_written_are_passed_over_and_refused_where_none_can(
    tmp_path: Path, folder: str
) -> None:
    rows = rows_to_learn()
    rows[0]["response"] = " "
    spec = student(folder, intermediate_size=8, calibration_rows=1000)
    result = pruned_by(Bench(tmp_path / "one", rows), spec)
    assert result.manifest.counts["calibration_rows"] == 23
    empty = [row | {"response": " ", "messages": turns("why")} for row in rows]
    with pytest.raises(TrainingError, match=r"none of 31 rows can be written.*nothing to learn"):
        pruned_by(Bench(tmp_path / "none", empty), spec)


def test_a_second_run_reuses_it(bench: Bench, folder: str) -> None:
    spec = student(folder, num_layers=3)
    assert not pruned_by(bench, spec).reused
    assert pruned_by(bench, spec).reused
