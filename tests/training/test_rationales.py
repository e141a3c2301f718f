"""A student learns to answer, and, asked for it, what the teacher thought."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distillery.models.chat_format import IGNORED, ChatFormat
from distillery.storage.stage import StageResult
from schemas.errors import TrainingError
from schemas.objectives import Rationales
from schemas.training import TrainingSpec
from tests.fixtures_training import FAST, Bench, Killed, Row, die_at, rows_to_learn, same_weights

pytestmark = pytest.mark.usefixtures("one_thread")

INSTRUCTION = "Explain."
THOUGHTS = ("Was it sent?", "It was, so it must be on its way.")
LEARNT = FAST.model_copy(
    update={
        "objective": Rationales(instruction=INSTRUCTION, rationale_weight=0.5),
        "epochs": 2.0,
        "evaluations": 3,
    }
)


def thoughtful_rows() -> list[Row]:
    """Return rows of which every third has no thoughts."""
    return [
        row | {"reasoning": None if n % 3 == 1 else THOUGHTS[n % 2]}
        for n, row in enumerate(rows_to_learn())
    ]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "store", thoughtful_rows())


def curve(result: StageResult, what: str = "loss") -> list[float]:
    found: Any = result.manifest.facts["curve"]
    return [entry[what] for entry in found if what in entry]


def changed(**settings: Any) -> TrainingSpec:
    return LEARNT.model_copy(update=settings)


def by_hand(bench: Bench, result: StageResult, split: str) -> tuple[float, float]:
    """Return the cross-entropy of responses, and of thoughts after the instruction, per token."""
    model, tokenizer = bench.load(result)
    nats: dict[bool, list[float]] = {False: [], True: []}
    for row in bench.rows:
        if row["split"] != split:
            continue
        [turn] = json.loads(row["messages"])
        asked = {"role": "user", "content": f"{turn['content']}\n\n{INSTRUCTION}"}
        pairs = [(False, turn, row["response"]), (True, asked, row["reasoning"])]
        for is_thought, question, written in pairs:
            if written is None:
                continue
            tokens = ChatFormat(tokenizer).row([question], written)
            with torch.no_grad():
                log_q = model(torch.tensor([tokens.input_ids])).logits[0].log_softmax(-1)
            nats[is_thought] += [
                -float(log_q[at - 1, label])
                for at, label in enumerate(tokens.labels)
                if label != IGNORED
            ]
    answers, thoughts = (sum(found) / len(found) for found in nats.values())
    return answers, thoughts


@pytest.mark.parametrize("batching", ["padded", "packed"])
def test_thoughts_are_a_second_task_with_a_mean_of_their_own(bench: Bench, batching: str) -> None:
    result = bench.train(training=changed(learning_rate=1e-12, batching=batching))
    answers, thoughts = by_hand(bench, result, "validation")
    assert abs(answers - thoughts) > 1e-3
    entry: dict[str, float] = {
        name: curve(result, f"eval_{name}")[-1] for name in ("loss", "hard_loss", "rationale_loss")
    }
    assert entry["hard_loss"] == pytest.approx(answers, rel=1e-5)
    assert entry["rationale_loss"] == pytest.approx(thoughts, rel=1e-5)
    assert entry["loss"] == pytest.approx(answers + 0.5 * thoughts, rel=1e-5)
    names = ("loss", "hard_loss", "rationale_loss")
    parts = zip(*(curve(result, name) for name in names), strict=True)
    # Logged losses are means over steps, parts means over tokens.
    assert all(loss == pytest.approx(hard + 0.5 * soft, rel=0.02) for loss, hard, soft in parts)
    assert result.manifest.counts["rationales"] == 21


def test_both_tasks_are_learnt(bench: Bench) -> None:
    result = bench.train(training=changed(epochs=30.0, patience=None))
    for name in ("hard_loss", "rationale_loss"):
        assert curve(result, name)[-1] < 0.3 * curve(result, name)[0]


def test_how_a_step_is_carried_out_does_not_change_what_is_learnt(
    bench: Bench, tmp_path: Path
) -> None:
    """With one row per forward pass some passes have no thoughts."""
    expected = bench.train(training=LEARNT)
    ways: list[dict[str, Any]] = [
        {"micro_batch_size": 1},
        {"micro_batch_size": 2, "batching": "packed"},
        {"gradient_checkpointing": True},
    ]
    for n, way in enumerate(ways):
        other = Bench(tmp_path / str(n), thoughtful_rows())
        found = other.train(training=changed(**way))
        assert found.manifest.fingerprint == expected.manifest.fingerprint
        assert curve(found) == pytest.approx(curve(expected), rel=1e-5), way
        assert curve(found, "eval_loss") == pytest.approx(curve(expected, "eval_loss"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_two_processes_learn_what_one_learns_with_thoughts_in_one_of_them(
    bench: Bench, tmp_path: Path, parallelism: str
) -> None:
    training = changed(micro_batch_size=1, epochs=1.0)
    expected = bench.train(training=training)
    other = Bench(tmp_path / "two", thoughtful_rows())
    two = training.model_copy(update={"num_processes": 2, "parallelism": parallelism})
    found = other.train(training=two)
    assert curve(found) == pytest.approx(curve(expected), rel=1e-4)
    assert curve(found, "rationale_loss") == pytest.approx(
        curve(expected, "rationale_loss"), rel=1e-4
    )
    assert found.manifest.counts == expected.manifest.counts


def test_a_killed_training_goes_on_with_the_very_same_losses(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        bench.train(training=LEARNT, on_progress=die_at(5))
    result = bench.train(training=LEARNT)
    assert result.manifest.facts["resumed_from_step"] == 4
    other = Bench(tmp_path / "other", thoughtful_rows())
    untouched = other.train(training=LEARNT)
    assert result.manifest.facts["curve"] == untouched.manifest.facts["curve"]
    assert same_weights(bench.weights(result), other.weights(untouched))


def test_thoughts_that_are_too_long_are_left_out_and_their_rows_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = thoughtful_rows()
    rows[3]["reasoning"] = "Was it sent? " * 200
    rows[6]["reasoning"] = "so <|end|> it is"
    counts = Bench(tmp_path, rows).train(training=changed(epochs=1.0)).manifest.counts
    assert (counts["train_rows"], counts["left_out_too_long"]) == (24, 0)
    assert counts["rationales"] == 19
    assert (counts["rationales_too_long"], counts["rationales_not_written"]) == (1, 1)
    assert "thoughts of 1 rows are longer than training.max_length=64 tokens" in caplog.text
    assert "thoughts of 1 rows cannot be learnt and are left out, first 6: " in caplog.text


def test_too_few_rows_with_thoughts_are_refused_with_their_number(tmp_path: Path) -> None:
    rows = [
        row | {"reasoning": "Sent?" if row["prompt_id"] == "1" else None} for row in rows_to_learn()
    ]
    with pytest.raises(
        TrainingError, match=r"^1 of 24 training rows have thoughts .*fraction=0\.1"
    ):
        Bench(tmp_path, rows).train(training=LEARNT)


def test_the_second_sequences_are_counted_in_the_memory(bench: Bench, tmp_path: Path) -> None:
    once: dict[str, Any] = {"epochs": 1.0}
    plain = bench.train(training=changed(**once).with_hard_targets())
    found = bench.train(training=changed(**once))
    sizes: list[int] = []
    for made in (plain, found):
        preflight: Any = made.manifest.facts["preflight"]
        sizes.append(preflight["memory_estimate_bytes"]["activations"])
    assert sizes[1] >= 2 * sizes[0]
