"""What is frozen is held in half precision, what is trained is not; merging rounds once."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from distillery.models.hardware import available_memory
from distillery.models.local import LocalModel
from distillery.storage.stage import StageResult
from distillery.training import loop, preflight
from distillery.training.adapters import write_merged
from distillery.training.trainer import StudentTrainer
from schemas.errors import TrainingError
from schemas.student import PretrainedStudent
from schemas.training import FullMethod, LoraMethod, TrainingSpec
from tests.fixtures_models import make_tiny_model
from tests.fixtures_training import (
    LORA,
    SCRATCH,
    Bench,
    Killed,
    School,
    die_at,
    rows_to_learn,
    same_weights,
    soft_targets,
    soft_training,
    train_by,
)

pytestmark = pytest.mark.usefixtures("one_thread")

HALF_LORA = LORA.model_copy(update={"dtype": "bfloat16"})
SHORT = HALF_LORA.model_copy(update={"epochs": 1.0, "evaluations": 1})


@pytest.fixture
def student(tmp_path: Path) -> PretrainedStudent:
    return PretrainedStudent(model=str(make_tiny_model(tmp_path / "tiny")), dtype="bfloat16")


def _losses(result: StageResult) -> list[float]:
    curve: Any = result.manifest.facts["curve"]
    return [entry["loss"] for entry in curve if "loss" in entry]


@pytest.mark.parametrize(
    ("training", "frozen", "trained"),
    [
        (SHORT, {torch.bfloat16}, {torch.float32}),
        (SHORT.model_copy(update={"dtype": "float32"}), {torch.float32}, {torch.float32}),
        (SHORT.model_copy(update={"method": FullMethod()}), set(), {torch.float32}),
    ],
    ids=["lora in bfloat16", "lora in float32", "full in bfloat16"],
)
def test_only_frozen_weights_are_held_in_half_precision(
    bench: Bench,
    student: PretrainedStudent,
    monkeypatch: pytest.MonkeyPatch,
    training: TrainingSpec,
    frozen: set[torch.dtype],
    trained: set[torch.dtype],
) -> None:
    seen: dict[bool, set[torch.dtype]] = {False: set(), True: set()}
    compute_loss = StudentTrainer.compute_loss

    def spy(self: Any, model: Any, *args: Any, **named: Any) -> Any:
        for weight in model.parameters():
            seen[weight.requires_grad].add(weight.dtype)
        return compute_loss(self, model, *args, **named)

    monkeypatch.setattr(StudentTrainer, "compute_loss", spy)
    bench.train(student, training)
    assert seen == {False: frozen, True: trained}


def test_adapters_learn_the_same_bits_without_float32_copies_of_their_inputs(
    bench: Bench, student: PretrainedStudent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[torch.dtype] = set()
    cast = BaseTunerLayer._cast_input_dtype

    def spy(self: Any, x: Any, dtype: torch.dtype) -> Any:
        given = cast(self, x, dtype)
        if torch.is_autocast_enabled("cpu"):  # in training, not in the checks before it
            seen.add(given.dtype)
        return given

    monkeypatch.setattr(BaseTunerLayer, "_cast_input_dtype", spy)
    without = bench.train(student, SHORT)
    assert seen == {torch.bfloat16}

    seen.clear()
    monkeypatch.setattr(
        "peft.helpers.disable_input_dtype_casting", lambda *_, **__: contextlib.nullcontext()
    )
    other = Bench(tmp_path / "other", bench.rows)
    copied = other.train(student, SHORT)
    assert seen == {torch.float32}
    assert without.manifest.facts["curve"] == copied.manifest.facts["curve"]
    assert same_weights(bench.weights(without), other.weights(copied))


def test_a_killed_lora_in_half_precision_goes_on_with_the_very_same_losses(
    bench: Bench, student: PretrainedStudent, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        bench.train(student, HALF_LORA, on_progress=die_at(5))
    folder = Path(bench.store.path(bench.folder(student, HALF_LORA))) / "checkpoints"
    weights = load_file(folder / "checkpoint-4" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(".lora_" in name for name in weights)
    assert not list(folder.glob("*/model*.safetensors"))
    result = bench.train(student, HALF_LORA)
    assert result.manifest.facts["resumed_from_step"] == 4
    other = Bench(tmp_path / "other", bench.rows)
    untouched = other.train(student, HALF_LORA)
    assert result.manifest.facts["curve"] == untouched.manifest.facts["curve"]
    assert same_weights(bench.weights(result), other.weights(untouched))


def test_the_best_of_a_lora_in_half_precision_is_kept(tmp_path: Path) -> None:
    misled = Bench(tmp_path / "store", rows_to_learn(misleading=True))
    student = PretrainedStudent(model=str(make_tiny_model(tmp_path / "tiny")), dtype="float32")
    # So high a rate at last that what was learnt is lost again.
    high = {"learning_rate": 0.5, "warmup_fraction": 0.9, "schedule": "constant"}
    long = {"epochs": 10.0, "evaluations": 10, "patience": None}
    training = HALF_LORA.model_copy(update=high | long)
    result = misled.train(student, training)
    curve: Any = result.manifest.facts["curve"]
    validation = [entry["eval_loss"] for entry in curve if "eval_loss" in entry]
    assert min(validation) < 0.98 * validation[-1]
    assert misled.loss(result, "validation") == pytest.approx(min(validation), rel=2e-3)


def _merged(base: Any, adapters: dict[str, Any], name: str) -> Any:
    """Return a weight of ``base`` with its adapter, by hand in float32."""
    start = f"base_model.model.{name.removesuffix('.weight')}"
    down, up = (adapters.get(f"{start}.lora_{side}.default.weight") for side in "AB")
    if down is None or up is None:
        return base[name]
    assert isinstance(LORA.method, LoraMethod)
    return base[name] + (up @ down) * (LORA.method.alpha / LORA.method.r)


def test_merged_weights_are_rounded_once(
    bench: Bench, student: PretrainedStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters: dict[str, Any] = {}

    def spy(model: Any, *args: Any, **named: Any) -> int:
        weights = model.state_dict()
        adapters.update({name: w.clone() for name, w in weights.items() if ".lora_" in name})
        return write_merged(model, *args, **named)

    monkeypatch.setattr(loop, "write_merged", spy)
    kept = bench.weights(bench.train(student, HALF_LORA))
    read = load_file(Path(student.model) / "model.safetensors")
    base = {name: weight.bfloat16().float() for name, weight in read.items()}
    assert len(adapters) == 2 * 2 * 7  # A and B at seven layers of each of two blocks
    for name in base:
        assert kept[name].equal(_merged(base, adapters, name).bfloat16()), name
    # Both rounded before they are added, as they are where the sum is made in bfloat16.
    none = dict.fromkeys(base, torch.zeros(()))
    early = {
        name: base[name].bfloat16() + _merged(none, adapters, name).bfloat16() for name in base
    }
    assert any(not kept[name].equal(early[name]) for name in base)


def test_an_adapter_on_a_weight_that_two_layers_share_is_refused(bench: Bench) -> None:
    tied = SCRATCH.model_copy(update={"tie_embeddings": True})
    for modules in (("lm_head",), ("embed_tokens", "q_proj")):
        training = SHORT.model_copy(update={"method": LoraMethod(target_modules=modules)})
        with pytest.raises(TrainingError, match=r"target_modules .*share one weight"):
            bench.train(tied, training)


@pytest.mark.parametrize(
    "way",
    [{"gradient_checkpointing": True}, {"batching": "packed"}, {"micro_batch_size": 2}],
    ids=lambda way: next(iter(way)),
)
def test_a_new_student_with_tied_embeddings_learns_alike_however_a_step_is_carried_out(
    tmp_path: Path, way: dict[str, Any]
) -> None:
    tied = SCRATCH.model_copy(update={"tie_embeddings": True})
    plain = Bench(tmp_path / "plain", rows_to_learn()).train(tied, SHORT)
    other = Bench(tmp_path / "other", rows_to_learn()).train(tied, SHORT.model_copy(update=way))
    assert _losses(other) == pytest.approx(_losses(plain), rel=2e-3)


class _Rows(list[dict[str, Any]]):
    """Rows of a data set, as far as lengths are asked for."""

    def __getitem__(self, key: Any) -> Any:
        return torch.tensor([row["length"] for row in self]) if key == "length" else self.row(key)

    def row(self, at: int) -> dict[str, Any]:
        return super().__getitem__(at)


class _Blind:
    """A model that counts positions on, whatever it is told."""

    def __init__(self, model: Any) -> None:
        self._model, self.training = model, False
        self.parameters, self.eval, self.train = model.parameters, model.eval, model.train

    def __call__(self, *, position_ids: Any = None, **named: Any) -> Any:
        return self._model(**named)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_rows_are_kept_apart_in_half_precision(dtype: torch.dtype) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=8,
        num_attention_heads=4, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config).to(dtype)
    ids = [torch.randint(0, 100, (length,)) for length in (37, 50)]
    rows = _Rows({"input_ids": each, "length": len(each)} for each in ids)
    preflight.check_packing(model, rows)
    with pytest.raises(TrainingError, match="does not keep rows apart"):
        preflight.check_packing(_Blind(model), rows)


@pytest.fixture
def school(tmp_path: Path) -> School:
    return School(tmp_path / "store", str(make_tiny_model(tmp_path / "teacher")))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What happens, in order, to the memory and to the teacher of a training."""
    from transformers import PreTrainedModel

    told: list[str] = []
    load, move, check = LocalModel.load, PreTrainedModel.to, available_memory
    teachers: list[Any] = []

    def spy_load(*args: Any, **named: Any) -> LocalModel:
        loaded = load(*args, **named)
        told.append(f"loaded on {named['device']}")
        teachers.append(loaded.model)
        return loaded

    def spy_move(self: Any, *args: Any, **named: Any) -> Any:
        if any(self is teacher for teacher in teachers):
            told.append("moved")
        return move(self, *args, **named)

    def spy_check(device: Any) -> int:
        told.append("checked")
        return check(device)

    monkeypatch.setattr(LocalModel, "load", spy_load)
    monkeypatch.setattr(PreTrainedModel, "to", spy_move)
    monkeypatch.setattr(preflight, "available_memory", spy_check)
    yield told


ONLINE = soft_training(objective=soft_targets(source="online"), epochs=1, evaluations=1)


def test_a_teacher_goes_to_the_device_once_it_is_known_to_fit(
    school: School, events: list[str]
) -> None:
    school.teach(ONLINE)
    assert events == ["loaded on cpu", "checked", "moved"]


def test_a_teacher_that_does_not_fit_is_never_moved_to_the_device(
    school: School, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = vars(preflight)["available_memory"]
    monkeypatch.setattr(preflight, "available_memory", lambda device: check(device) and 100_000)
    with pytest.raises(TrainingError, match=r"teacher|KiB"):
        school.teach(ONLINE)
    assert events == ["loaded on cpu", "checked"]


@pytest.mark.slow
def test_split_weights_learn_in_half_precision_what_whole_ones_learn_and_go_on_after_a_kill(
    bench: Bench, student: PretrainedStudent, tmp_path: Path
) -> None:
    """Sums of gradients over processes in bfloat16 would move the losses by some 1e-4."""
    whole = HALF_LORA.model_copy(update={"num_processes": 2, "micro_batch_size": 2})
    split = whole.model_copy(update={"parallelism": "fsdp2"})
    other = Bench(tmp_path / "other", bench.rows)
    expected = other.train(student, whole)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        train_by("train_to_step_4", patch)
        bench.train(student, split, on_progress=die_at(4))
    result = bench.train(student, split)
    assert result.manifest.facts["resumed_from_step"] == 2
    assert _losses(result) == pytest.approx(_losses(expected), rel=1e-5)
    assert result.model("model").num_parameters == expected.model("model").num_parameters
    for name, weight in bench.weights(result).items():
        assert weight.float().numpy() == pytest.approx(
            other.weights(expected)[name].float().numpy(), rel=0.01, abs=1e-3
        )
