"""A student learns what its teacher's layers pass on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from distillery.objectives.choice import choose_objective
from distillery.objectives.hidden_states import state_distance
from distillery.objectives.inner import paired_layers
from schemas.errors import RecipeError
from schemas.objectives import HiddenStates, LayerPair
from schemas.student import PretrainedStudent, PrunedStudent
from schemas.teacher import OpenAITeacher, TransformersTeacher
from tests.fixtures_models import make_tiny_model
from tests.fixtures_training import School, soft_training

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("teacher") / "tiny"))


def losses(school: School, spec: HiddenStates, **how: Any) -> list[float]:
    how = {"epochs": 1.0} | how
    facts: Any = school.teach(soft_training(objective=spec, **how)).manifest.facts
    return [entry["loss"] for entry in facts["curve"] if "loss" in entry]


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_the_distance_and_its_gradient_are_those_of_a_dense_reference(distance: Any) -> None:
    spec = HiddenStates(distance=distance)
    ours = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    theirs = torch.randn(5, 7, dtype=torch.float64)
    expected = sum(
        1 - o @ t / (o.norm() * t.norm())
        if distance == "cosine"
        else ((o - t) ** 2).sum() / (t @ t)
        for o, t in zip(ours, theirs, strict=True)
    )
    assert isinstance(expected, torch.Tensor)
    found = state_distance(spec, ours, theirs)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = [torch.autograd.grad(each, ours)[0] for each in (found, expected)]
    assert torch.allclose(gradients[0], gradients[1], atol=1e-12)
    same = theirs.clone().requires_grad_()
    equal = state_distance(spec, same, theirs)
    assert equal.item() == pytest.approx(0, abs=1e-12)
    assert float(torch.autograd.grad(equal, same)[0].abs().max()) < 1e-12


def test_how_a_step_is_carried_out_does_not_change_what_is_learnt(
    tmp_path: Path, folder: str
) -> None:
    spec = HiddenStates(projector=True)
    expected = losses(School(tmp_path / "one", folder), spec)
    ways: tuple[dict[str, Any], ...] = (
        {"micro_batch_size": 2},
        {"batching": "packed"},
        {"gradient_checkpointing": True},
    )
    for n, way in enumerate(ways):
        found = losses(School(tmp_path / str(n), folder), spec, **way)
        assert found == pytest.approx(expected, rel=1e-5), way


def test_pairs_follow_the_depth_or_what_a_student_was_pruned_from() -> None:
    teacher, spec = TransformersTeacher(model="t"), HiddenStates()

    def of_teacher(student: Any, num_student: int) -> list[int]:
        return [pair.teacher for pair in paired_layers(spec, student, teacher, num_student, 6)]

    assert of_teacher(PretrainedStudent(model="s"), 3) == [1, 3, 5]
    assert of_teacher(PrunedStudent(model="t", layers=(0, 1, 5)), 3) == [0, 1, 5]
    assert of_teacher(PrunedStudent(model="other", num_layers=3), 3) == [1, 3, 5]


def test_what_a_student_was_pruned_from_is_known_however_its_folder_is_spelt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fingerprint of the training does not depend on it either."""
    for name in ("t", "twin", "other"):
        make_tiny_model(tmp_path / name, seed=name == "other", num_layers=6)
    monkeypatch.chdir(tmp_path)
    teacher = TransformersTeacher(model="t")
    spellings = {"./t": True, f"{tmp_path}/t/": True, "twin": True, "other": False}
    for spelt, made_of in spellings.items():
        student = PrunedStudent(model=spelt, layers=(0, 1, 5))
        pairs = paired_layers(HiddenStates(), student, teacher, 3, 6)
        assert [pair.teacher for pair in pairs] == ([0, 1, 5] if made_of else [1, 3, 5])


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([(2, 1)], r"names layer 2 of the student, which has 2 layers"),
        ([(1, 4)], r"names layer 4 of the teacher, which has 4 layers"),
        ([(0, 2), (1, 1)], r"layers \[2, 1\] of the teacher, which cross or repeat"),
        ([(0, 1), (0, 2)], r"layers \[0, 0\] of the student, which cross or repeat"),
    ],
)
def test_pairs_that_cannot_be_are_refused(pairs: list[tuple[int, int]], reason: str) -> None:
    layers = tuple(LayerPair(student=s, teacher=t) for s, t in pairs)
    with pytest.raises(RecipeError, match=reason):
        paired_layers(HiddenStates(layers=layers), None, None, 2, 4)


def test_obstacles_are_told_before_anything_is_spent(folder: str, tmp_path: Path) -> None:
    wide = make_tiny_model(tmp_path / "wide", hidden_size=32)
    training = soft_training(objective=HiddenStates())
    teacher = TransformersTeacher(model=str(wide))
    with pytest.raises(RecipeError, match=r"have 16 numbers and the teacher's 32.*projector to tr"):
        choose_objective(teacher, PretrainedStudent(model=folder), training)
    served = OpenAITeacher(model="m", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(RecipeError, match="an endpoint does not show what its model computes"):
        choose_objective(served, PretrainedStudent(model=folder), training)
