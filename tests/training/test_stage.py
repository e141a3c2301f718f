"""A student learns from responses, goes on where it was killed, and stops when it should."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distillery.models.loading import ModelFiles
from distillery.storage.stage import Attempt
from distillery.training import training_stage
from distillery.training.curve import curve_markdown
from schemas.errors import StoreError, TrainingError, TrialPruned
from schemas.execution import StageName
from schemas.objectives import AutoObjective, SoftTargets
from schemas.student import PretrainedStudent, StudentSpec
from schemas.training import TrainingSpec
from tests.fixtures_models import CHAT_TEMPLATE, make_tiny_model
from tests.fixtures_training import (
    FAST,
    LORA,
    SCRATCH,
    Bench,
    Killed,
    Row,
    die_at,
    rows_to_learn,
    same_weights,
    turns,
)

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]


def test_training_lowers_both_losses_and_keeps_the_best_weights(bench: Bench) -> None:
    told: list[tuple[int, int, dict[str, float]]] = []
    result = bench.train(on_progress=lambda *progress: told.append(progress))
    curve: Any = result.manifest.facts["curve"]
    losses = [entry["loss"] for entry in curve if "loss" in entry]
    validation = [entry["eval_loss"] for entry in curve if "eval_loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert validation[-1] < 0.9 * validation[0]
    assert result.manifest.facts["best_validation_loss"] == min(validation)
    assert bench.loss(result, "validation") == pytest.approx(min(validation), rel=1e-4)
    assert result.manifest.counts == {
        "train_rows": 24,
        "validation_rows": 7,
        "left_out_too_long": 0,
        "left_out_not_written": 0,
        "steps": 15,
        "planned_steps": 15,
    }
    assert told[-1][:2] == (15, 15)
    assert {"loss", "eval_loss"} <= told[-1][2].keys()
    parameters = bench.load(result)[0].num_parameters()
    assert result.model("model").num_parameters == parameters
    assert bench.checkpoints() == []
    assert bench.train(training=FAST.model_copy(update={"micro_batch_size": 3})).reused


@pytest.mark.parametrize("micro", [1, 8])
def test_losses_are_the_cross_entropy_of_response_tokens_whatever_the_batches(
    bench: Bench, micro: int
) -> None:
    still = {"learning_rate": 1e-12, "batch_size": 24, "epochs": 1, "patience": None}
    training = FAST.model_copy(update=still | {"micro_batch_size": micro})
    result = bench.train(training=training)
    curve: Any = result.manifest.facts["curve"]
    assert curve[0]["loss"] == pytest.approx(bench.loss(result, "train"), rel=1e-5)
    assert curve[1]["eval_loss"] == pytest.approx(bench.loss(result, "validation"), rel=1e-5)


def test_a_pretrained_student_is_fine_tuned_and_kept_in_its_precision(
    bench: Bench, tmp_path: Path
) -> None:
    import torch

    folder = make_tiny_model(tmp_path / "tiny")
    student = PretrainedStudent(model=str(folder), dtype="bfloat16")
    training = FAST.model_copy(update={"epochs": 2.0})
    result = bench.train(student, training)
    curve: Any = result.manifest.facts["curve"]
    assert curve[-1].get("eval_loss", 9) < curve[0]["loss"]
    assert {weight.dtype for weight in bench.weights(result).values()} == {torch.bfloat16}
    (folder / "chat_template.jinja").write_text("{{ 'another' }}")
    assert bench.folder(student, training).split("/")[1] != result.manifest.fingerprint


def test_lora_is_merged_into_weights_that_answer_as_with_the_adapter(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from distillery.training import loop
    from distillery.training.adapters import write_merged

    student = PretrainedStudent(model=str(make_tiny_model(tmp_path / "tiny")), dtype="float32")
    tokens = torch.arange(20)[None]
    seen: list[Any] = []

    def spy(model: Any, *args: Any, **named: Any) -> int:
        with torch.no_grad():
            seen.append(model.eval()(tokens).logits)
        return write_merged(model, *args, **named)

    monkeypatch.setattr(loop, "write_merged", spy)
    result = bench.train(student, LORA)
    merged, _ = bench.load(result)
    base, _ = _open(student)
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, seen[0], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(base(tokens).logits, seen[0], atol=1e-3)
    assert result.model("model").num_parameters == base.num_parameters()
    changed = [n for n, w in base.state_dict().items() if not w.equal(merged.state_dict()[n])]
    assert changed
    assert all("proj" in name for name in changed)
    folder = Path(bench.store.path(result.model("model").uri))
    assert not list(folder.glob("adapter*"))


def _open(student: PretrainedStudent) -> tuple[Any, Any]:
    import torch

    from distillery.models.students import open_student

    model, chat_format = open_student(student, (), dtype=torch.float32)
    return model, chat_format.tokenizer


def test_lora_goes_on_from_its_checkpoint(bench: Bench, tmp_path: Path) -> None:
    student = PretrainedStudent(model=str(make_tiny_model(tmp_path / "tiny")), dtype="float32")
    with pytest.raises(Killed):
        bench.train(student, LORA, on_progress=die_at(5))
    result = bench.train(student, LORA)
    assert result.manifest.facts["resumed_from_step"] == 4
    assert result.manifest.counts["steps"] == 6
    untouched = Bench(tmp_path / "other", bench.rows)
    assert same_weights(bench.weights(result), untouched.weights(untouched.train(student, LORA)))


_TRAIN = """
import sys
from pathlib import Path
import torch
from tests.fixtures_training import Bench, FAST, rows_to_learn

torch.set_num_threads(1)

def tell(step, steps, figures):
    print(step, flush=True)
    if step >= 8:
        sys.stdin.read()  # until it is killed

Bench(Path(sys.argv[1]), rows_to_learn()).train(on_progress=tell)
"""


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_with_the_very_same_weights(
    bench: Bench, tmp_path: Path
) -> None:
    other = bench.folder(training=FAST.model_copy(update={"seed": 1}))
    bench.store.write_bytes(f"{other}/checkpoints/checkpoint-9/model.safetensors", b"theirs")
    bench.store.write_bytes(f"{other}/checkpoints/checkpoint-9.json", b'{"complete": true}')
    process = subprocess.Popen(
        [sys.executable, "-c", _TRAIN, bench.spec.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process:
        assert process.stdout is not None
        steps = [int(line) for line in iter(lambda: process.stdout.readline(), "8\n")]  # type: ignore[union-attr]
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert max(steps) == 7
    assert bench.checkpoints() == ["checkpoint-3", "checkpoint-6"]

    result = bench.train()
    assert result.manifest.facts["resumed_from_step"] == 6
    assert result.manifest.counts["steps"] == result.manifest.counts["planned_steps"] == 15
    curve: Any = result.manifest.facts["curve"]
    assert sorted(entry["step"] for entry in curve if "loss" in entry) == [*range(1, 16)]
    assert bench.checkpoints() == []
    untouched = Bench(tmp_path / "other", bench.rows)
    expected = untouched.train()
    assert curve == expected.manifest.facts["curve"]
    assert same_weights(bench.weights(result), untouched.weights(expected))
    assert bench.store.list_folders(f"{other}/checkpoints") == ["checkpoint-9"]


def test_a_checkpoint_that_was_not_uploaded_whole_is_not_used(bench: Bench) -> None:
    short = FAST.model_copy(update={"epochs": 1})
    with pytest.raises(Killed):
        bench.train(training=short, on_progress=die_at(3))
    bench.store.delete(f"{bench.folder(training=short)}/checkpoints/checkpoint-2.json")
    result = bench.train(training=short)
    assert result.manifest.facts["resumed_from_step"] == 1
    assert result.manifest.counts["steps"] == 3


def test_a_checkpoint_of_another_recipe_is_refused_by_name(bench: Bench) -> None:
    short = FAST.model_copy(update={"epochs": 1})
    other = short.model_copy(update={"seed": 1})
    with pytest.raises(Killed):
        bench.train(training=other, on_progress=die_at(3))
    theirs = Path(bench.store.path(bench.folder(training=other)))
    bench.store.upload(bench.folder(training=short), theirs)
    with pytest.raises(
        TrainingError, match=r"was made by the training '\w+, not by this one, '\w+"
    ):
        bench.train(training=short)


def _losses_in_event_files(folder: Path) -> dict[int, float]:
    """Return the training loss by step, as TensorBoard reads it from its files."""
    from tensorboardX.proto.event_pb2 import Event

    losses: dict[int, float] = {}
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:  # length, checksum of it, event, checksum of that
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            found = [v.simple_value for v in event.summary.value if v.tag == "loss"]
            if found:
                losses[event.step] = found[0]
            data = data[16 + size :]
    return losses


def test_the_curve_is_kept_for_tensorboard_over_all_attempts(bench: Bench) -> None:
    with pytest.raises(Killed):
        bench.train(on_progress=die_at(8))
    result = bench.train()
    kept = Path(bench.store.path(result.report("tensorboard").uri))
    curve: Any = result.manifest.facts["curve"]
    expected = {entry["step"]: entry["loss"] for entry in curve if "loss" in entry}
    assert len(list(kept.iterdir())) == 2
    assert _losses_in_event_files(kept) == pytest.approx(expected)


def test_trying_two_steps_leaves_the_weights_as_they_are(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial is left out of one of two trainings, which end alike to the bit."""
    from distillery.training import loop

    short = FAST.model_copy(update={"epochs": 1})
    tried = bench.weights(bench.train(training=short))
    monkeypatch.setattr(loop, "run_trial", lambda _: {})
    untried = Bench(Path(bench.spec.root) / "other", bench.rows)
    assert same_weights(tried, untried.weights(untried.train(training=short)))


def test_memory_that_would_not_do_is_refused_before_the_first_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distillery.training import preflight

    monkeypatch.setattr(preflight, "available_memory", lambda _: 100_000)
    told: list[int] = []
    with pytest.raises(TrainingError, match=r"KiB"):
        bench.train(on_progress=lambda step, *_: told.append(step))
    assert told == []


def test_half_precision_holds_no_more_logits_than_a_chunk(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer changes what a model hands out; the loss still gets states, not logits."""
    from distillery.objectives import losses
    from distillery.objectives.losses import response_losses

    widths: list[int] = []

    def spy(hidden: Any, *args: Any, **named: Any) -> Any:
        widths.append(hidden.shape[-1])
        return response_losses(hidden, *args, **named)

    monkeypatch.setattr(losses, "response_losses", spy)
    wide = SCRATCH.model_copy(update={"hidden_size": 256})
    short = FAST.model_copy(update={"epochs": 1, "dtype": "bfloat16", "device": "auto"})
    bench.train(wide, short)
    assert set(widths) == {256}


def test_weights_that_are_not_finite_are_found_before_training(
    bench: Bench, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_tiny_model(tmp_path / "tiny")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    student = PretrainedStudent(model=str(folder), dtype="float32")
    with pytest.raises(TrainingError, match=r"not finite before anything is learnt, with rows \d"):
        bench.train(student)


def test_rows_beyond_the_context_of_a_pretrained_student_are_left_out(
    bench: Bench, tmp_path: Path
) -> None:
    folder = make_tiny_model(tmp_path / "tiny", max_length=40)
    student = PretrainedStudent(model=str(folder), dtype="float32")
    result = bench.train(student, FAST.model_copy(update={"epochs": 1}))
    left_out = result.manifest.counts["left_out_too_long"]
    assert 0 < left_out < len(bench.rows)


def test_an_objective_that_is_not_decided_is_refused(bench: Bench) -> None:
    for objective, message in (
        (AutoObjective(), r"is 'auto', which the flow distill-student decides"),
        (SoftTargets(), r"no soft targets are given\. Give those of score_soft"),
        (SoftTargets(source="online"), r"a teacher beside the student, but no teacher is given"),
    ):
        with pytest.raises(TrainingError, match=message):
            bench.train(training=FAST.model_copy(update={"objective": objective}))


def _fail_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the upload of the next trained model fail."""
    add_model = Attempt.add_model

    def fail(self: Attempt, *args: Any, **named: Any) -> Any:
        monkeypatch.setattr(Attempt, "add_model", add_model)
        raise StoreError("no space left")

    monkeypatch.setattr(Attempt, "add_model", fail)


# 3 rows in batches of 2: the last step falls into the middle of a pass over the rows.
ODD = FAST.model_copy(update={"batch_size": 16, "epochs": 2.5, "evaluations": 2})
LONG = FAST.model_copy(update={"learning_rate": 2e-2, "epochs": 40, "evaluations": 20})


@pytest.mark.parametrize("training", [ODD, LONG], ids=["all steps", "stopped early"])
def test_a_training_that_was_over_is_not_trained_again_when_its_upload_failed(
    misled: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: TrainingSpec
) -> None:
    bench = misled
    _fail_once(monkeypatch)
    steps: list[int] = []
    with pytest.raises(StoreError):
        bench.train(training=training, on_progress=lambda step, *_: steps.append(step))
    told: list[int] = []
    result = bench.train(training=training, on_progress=lambda step, *_: told.append(step))
    assert told == []
    assert result.manifest.counts["steps"] == max(steps)
    untouched = Bench(tmp_path / "other", bench.rows)
    expected = untouched.train(training=training)
    assert result.manifest.counts == expected.manifest.counts
    assert result.manifest.facts["curve"] == expected.manifest.facts["curve"]
    assert same_weights(bench.weights(result), untouched.weights(expected))


def test_training_stops_when_the_validation_loss_stays_worse_for_long_enough(
    misled: Bench,
) -> None:
    bench = misled
    result = bench.train(training=LONG)
    counts, facts = result.manifest.counts, result.manifest.facts
    assert counts["steps"] < counts["planned_steps"] == 120
    curve: Any = facts["curve"]
    validation = [entry["eval_loss"] for entry in curve if "eval_loss" in entry]
    assert LONG.patience == 3
    assert min(validation) == validation[-4]
    assert bench.loss(result, "validation") == pytest.approx(min(validation), rel=1e-4)


@pytest.mark.slow
def test_patience_counts_over_attempts(misled: Bench, tmp_path: Path) -> None:
    bench = misled
    untouched = Bench(tmp_path / "other", bench.rows)
    stops_at = untouched.train(training=LONG).manifest.counts["steps"]
    with pytest.raises(Killed):
        bench.train(training=LONG, on_progress=die_at(stops_at - 1))
    result = bench.train(training=LONG)
    assert int(str(result.manifest.facts["resumed_from_step"])) > 0
    assert result.manifest.counts["steps"] == stops_at


def test_without_validation_rows_all_steps_are_taken(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rows_to_learn(num_validation=0))
    result = bench.train(training=LONG.model_copy(update={"epochs": 1, "learning_rate": 1e-3}))
    assert result.manifest.counts["steps"] == 3
    assert result.manifest.facts["best_validation_loss"] is None


FAST_ONCE = FAST.model_copy(update={"epochs": 1.0})
THOUGHTFUL = FAST.model_copy(update={"learn_reasoning": True, "epochs": 1.0})


def test_thoughts_are_learnt_before_the_response(tmp_path: Path) -> None:
    rows = [
        row | {"reasoning": "Was it sent?" if n % 2 else None}
        for n, row in enumerate(rows_to_learn())
    ]
    bench = Bench(tmp_path, rows)
    plain, thoughtful = (bench.train(training=t) for t in (FAST_ONCE, THOUGHTFUL))
    assert thoughtful.manifest.counts["rows_with_thoughts"] == 15
    assert "rows_with_thoughts" not in plain.manifest.counts
    assert thoughtful.manifest.fingerprint != plain.manifest.fingerprint


def test_thoughts_that_nobody_had_are_refused(bench: Bench) -> None:
    with pytest.raises(TrainingError) as caught:
        bench.train(training=THOUGHTFUL)
    assert "no row of the split 'train' has thoughts of the teacher" in str(caught.value)


def test_thoughts_too_long_to_learn_are_not_taken_for_none(tmp_path: Path) -> None:
    rows = [row | {"reasoning": "Was it sent? " * 200} for row in rows_to_learn()]
    with pytest.raises(TrainingError, match=r"no training row is left: \d+ of \d+ rows are longer"):
        Bench(tmp_path, rows).train(training=THOUGHTFUL)


def test_the_date_that_the_template_writes_is_in_the_manifest(bench: Bench, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "tiny")
    clock = "{{ strftime_now('%d %b %Y') }}"
    (folder / "chat_template.jinja").write_text(clock + CHAT_TEMPLATE)
    result = bench.train(PretrainedStudent(model=str(folder), dtype="float32"), FAST_ONCE)
    assert result.manifest.facts["template_date"] == "2026-01-15"
    tokenizer = bench.load(result)[1]
    written = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert written == "15 Jan 2026<|user|>Hi<|end|>"


def test_a_row_that_the_student_cannot_write_is_left_out_and_more_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_to_learn()
    rows[3]["response"] = "stop at <|end|> here"
    result = Bench(tmp_path / "one", rows).train(training=FAST.model_copy(update={"epochs": 1}))
    assert result.manifest.counts["left_out_not_written"] == 1
    assert result.manifest.counts["train_rows"] == 23
    facts: Any = result.manifest.facts["not_written"]
    assert list(facts) == ["3"] and "'<|end|>', a special token" in facts["3"]
    assert "1 rows cannot be learnt and are left out, first 3: the response" in caplog.text
    rows[5]["response"] = "or at <|end|>"
    with pytest.raises(TrainingError, match=r"2 of 31 rows cannot be learnt, first '3': the resp"):
        Bench(tmp_path / "two", rows).train()


def test_rows_that_are_too_long_are_left_out_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_to_learn()
    rows[3]["messages"] = turns("very " * 200 + "long")
    rows[-1]["response"] = "and " * 200 + "on"
    bench = Bench(tmp_path, rows)
    result = bench.train(training=FAST.model_copy(update={"epochs": 1, "max_length": 512}))
    counts = result.manifest.counts
    assert (counts["train_rows"], counts["validation_rows"]) == (23, 6)
    assert counts["left_out_too_long"] == 2
    assert result.manifest.facts["left_out_first_ids"] == ["3", "30"]
    assert "2 rows are longer than training.max_length=64 tokens and left out" in caplog.text


def test_a_set_of_which_no_row_fits_is_refused(bench: Bench) -> None:
    with pytest.raises(TrainingError, match=r"31 of 31 rows are longer than .*=16 tokens\. Raise"):
        long = SCRATCH.model_copy(update={"vocab_size": 300})
        Bench(Path(bench.spec.root) / "inner", _long_rows()).train(
            long, FAST.model_copy(update={"max_length": 16})
        )


def _long_rows() -> list[Row]:
    return [row | {"response": f"{row['response']} {'x1 ' * 20}"} for row in rows_to_learn()]


def test_a_gpu_is_refused_where_there_is_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    training = FAST.model_copy(update={"device": "cuda"})
    with pytest.raises(TrainingError, match=r"no usable GPU\. Set training\.device to 'auto', or"):
        bench.train(training=training)
    assert bench.store.find("train_student", bench.folder().split("/")[1]) is None


@pytest.mark.parametrize("validated", [True, False])
def test_a_loss_that_is_not_finite_ends_training_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, validated: bool
) -> None:
    """The first step of a warm-up has a rate of 0, so its checkpoint is good."""
    bench = Bench(tmp_path, rows_to_learn(num_validation=7 if validated else 0))
    training = FAST.model_copy(
        update={"learning_rate": 1e30, "warmup_fraction": 0.9, "evaluations": 15}
    )
    with pytest.raises(TrainingError, match=r"not finite, in the batch of rows .*rate \(now"):
        bench.train(training=training)
    kept = bench.checkpoints(training=training)
    assert kept
    from safetensors.torch import load_file

    folder = Path(bench.store.path(f"{bench.folder(training=training)}/checkpoints"))
    good = load_file(folder / kept[0] / "model.safetensors")
    assert all(bool(weight.isfinite().all()) for weight in good.values())


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_schedule_warms_up(bench: Bench, schedule: str) -> None:
    training = FAST.model_copy(
        update={"schedule": schedule, "warmup_fraction": 0.2, "epochs": 10 / 3, "patience": None}
    )
    curve: Any = bench.train(training=training).manifest.facts["curve"]
    rates = [entry["learning_rate"] for entry in curve if "learning_rate" in entry]
    assert len(rates) == 10
    assert rates[0] < rates[1] < rates[2]
    assert rates[2] == pytest.approx(1e-2, rel=0.2)
    assert rates[-1] == pytest.approx(1e-2) if schedule == "constant" else rates[-1] < 3e-3


def test_the_same_training_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    short = FAST.model_copy(update={"epochs": 1, "evaluations": 1})
    made = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        bench = Bench(tmp_path / name, rows_to_learn())
        made.append(bench.weights(bench.train(training=short.model_copy(update={"seed": seed}))))
    assert same_weights(made[0], made[1])
    assert not same_weights(made[0], made[2])


def test_prompts_matter_only_where_a_tokenizer_is_trained_on_them(
    bench: Bench, tmp_path: Path
) -> None:
    def fingerprint(student: StudentSpec, prompts: str) -> str:
        ref = bench.prompts.model_copy(update={"fingerprint": prompts})
        name = StageName.TRAIN_STUDENT
        return training_stage(name, bench.training_rows, ref, student, FAST).fingerprint

    folder = str(make_tiny_model(tmp_path / "tiny"))
    given_tokenizer = SCRATCH.model_copy(update={"tokenizer": folder})
    assert fingerprint(SCRATCH, "1") != fingerprint(SCRATCH, "2")
    for student in (PretrainedStudent(model=folder), given_tokenizer):
        assert fingerprint(student, "1") == fingerprint(student, "2")


def test_a_student_is_trained_behind_its_instructions_and_keeps_them(
    bench: Bench, tmp_path: Path
) -> None:
    folder, one_step = str(make_tiny_model(tmp_path / "tiny")), {"epochs": 1.0, "batch_size": 24}
    still = FAST.model_copy(update=one_step | {"learning_rate": 1e-12, "max_length": 128})
    plain = PretrainedStudent(model=folder, dtype="float32")
    instructed = plain.model_copy(update={"system_prompt": "Answer with one word."})
    assert bench.folder(plain, still) != bench.folder(instructed, still)
    scratch = SCRATCH.model_copy(update={"system_prompt": "Answer with one word."})
    assert bench.folder(SCRATCH, still) != bench.folder(scratch, still)
    result = bench.train(instructed, still)
    saved = ModelFiles(bench.store.path(result.model("model").uri)).chat_format()
    ids = saved.prompt_ids([{"role": "user", "content": "Hi"}])
    assert saved.tokenizer.decode(ids).startswith("<|system|>Answer with one word.<|end|><|user|>")
    curve: Any = result.manifest.facts["curve"]
    assert curve[0]["loss"] == pytest.approx(bench.loss(result, "train"), rel=1e-5)


def test_the_curve_is_shown_with_its_best_step() -> None:
    facts = {
        "curve": [
            {"step": 1.0, "loss": 3.0},
            {"step": 2.0, "eval_loss": 2.0},
            {"step": 3.0, "loss": 1.0},
            {"step": 4.0, "eval_loss": 2.5},
        ]
    }
    lines = curve_markdown(facts).split("\n")
    assert lines[0].startswith("![training curve](data:image/png;base64,iVBOR")
    assert lines[2] == "Best validation loss 2.0000 at step 2."
    assert lines[-2:] == ["| 2 | 2.0000 |", "| 4 | 2.5000 |"]


def test_the_curve_of_soft_targets_tells_both_parts() -> None:
    parts = {"eval_loss": 2.0, "eval_hard_loss": 3.0, "eval_soft_loss": 1.0}
    lines = curve_markdown({"curve": [{"step": 2.0} | parts]}).split("\n")
    assert lines[-3] == "| step | validation loss | hard loss | soft loss |"
    assert lines[-1] == "| 2 | 2.0000 | 3.0000 | 1.0000 |"


def test_a_training_that_is_given_up_is_not_sealed_and_leaves_no_checkpoint(bench: Bench) -> None:
    def give_up(step: int, _steps: int, _figures: dict[str, float]) -> None:
        if step >= 8:
            assert bench.checkpoints() != []
            raise TrialPruned("worse than others")

    with pytest.raises(TrialPruned, match="worse than others"):
        bench.train(on_progress=give_up)
    folder = Path(bench.store.path(bench.folder()))
    assert [file for file in folder.rglob("*") if file.is_file()] == []
