"""What an objective learns with the student: averaged, clipped, kept, resumed and thrown away."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from distillery.objectives.base import Batch, Loss
from distillery.objectives.choice import OBJECTIVES
from distillery.objectives.hard_targets import HardTargetObjective
from distillery.training.extra import Extra
from schemas.training import TrainingSpec
from tests.fixtures_training import (
    FAST,
    LORA,
    Bench,
    Killed,
    die_at,
    rows_to_learn,
    same_weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")


class Beside(HardTargetObjective):
    """Learns a factor of the loss; and keeps how often it was asked for one."""

    made: ClassVar[list["Beside"]] = []

    def attach(self, model: Any) -> None:
        self.beside = torch.nn.Linear(4, 4)
        self.at_first = self.away()
        self.num_losses = 0
        self.made.append(self)

    def extra(self) -> torch.nn.Module:
        return self.beside

    def away(self) -> torch.Tensor:
        states = torch.linspace(0, 1, 4)
        found: torch.Tensor = self.beside(states) - states
        return found.square().mean()

    def save_state(self, folder: Path) -> None:
        (folder / "num_losses").write_text(str(self.num_losses))

    def load_state(self, folder: Path) -> None:
        self.num_losses = int((folder / "num_losses").read_text())

    def loss(self, model: Any, student: Any, batch: Batch) -> Loss:
        self.num_losses += torch.is_grad_enabled()
        found = super().loss(model, student, batch)
        return Loss({"labels": found.sums["labels"] * (1 + self.away())}, found.parts)


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "hard_targets", Beside)
    monkeypatch.setattr(Beside, "made", [])


@pytest.mark.parametrize("training", [FAST, LORA])
def test_what_is_learnt_beside_the_student_goes_on_after_a_kill_to_the_bit(
    bench: Bench, tmp_path: Path, training: TrainingSpec
) -> None:
    with pytest.raises(Killed):
        bench.train(training=training, on_progress=die_at(4))
    result = bench.train(training=training)
    assert result.manifest.facts["resumed_from_step"] in (2, 3)
    other = Bench(tmp_path / "other", rows_to_learn())
    untouched = other.train(training=training)
    assert result.manifest.facts["curve"] == untouched.manifest.facts["curve"]
    assert same_weights(bench.weights(result), other.weights(untouched))
    _, resumed, whole = Beside.made
    assert same_weights(resumed.beside.state_dict(), whole.beside.state_dict())
    assert resumed.num_losses == whole.num_losses


def test_it_is_learnt_but_is_no_part_of_the_model(bench: Bench) -> None:
    result = bench.train()
    [objective] = Beside.made
    assert objective.away() < 0.9 * objective.at_first
    assert not any("beside" in name for name in bench.weights(result))
    assert not any(
        "extra" in path.name
        for path in Path(bench.store.path(result.model("model").uri)).rglob("*")
    )


def test_its_gradients_count_in_the_norm_that_is_clipped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[tuple[float, float]] = []
    step = Extra.step

    def spy(extra: Extra, student: torch.optim.Optimizer, *rest: Any) -> None:
        weights = [weight for group in student.param_groups for weight in group["params"]]
        gradients = [weight.grad for weight in (*weights, *extra.parameters)]
        norms.append((total_norm(gradients), total_norm(gradients[-2:])))
        step(extra, student, *rest)

    monkeypatch.setattr(Extra, "step", spy)
    bench.train(training=FAST.model_copy(update={"max_grad_norm": 1e-3, "epochs": 1.0}))
    assert len(norms) == 5  # two of them of the trial
    for whole, own in norms:
        assert whole == pytest.approx(1e-3, rel=1e-2)
        assert own > 1e-5


def total_norm(gradients: list[torch.Tensor]) -> float:
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())
