"""A student learns where its teacher looks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from distillery.objectives.attention import relations
from distillery.objectives.choice import choose_objective
from schemas.errors import RecipeError
from schemas.objectives import Attention
from schemas.student import PretrainedStudent
from schemas.teacher import TransformersTeacher
from tests.fixtures_models import make_tiny_model
from tests.fixtures_training import School, soft_training

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("teacher") / "tiny"))


def test_relations_are_those_of_each_token_with_its_past() -> None:
    values = torch.randn(1, 5, 6, dtype=torch.float64)
    found = relations(values, torch.tensor([[1, 4]]), 2).exp()
    for part in range(2):
        own = values[0, :, 3 * part : 3 * part + 3]
        for place, at in enumerate((1, 4)):
            expected = (own[: at + 1] @ own[at] / 3**0.5).softmax(-1)
            assert torch.allclose(found[0, part, place, : at + 1], expected)
            assert float(found[0, part, place, at + 1 :].sum()) == 0


@pytest.mark.parametrize("match", ["relations", "averaged_heads"])
def test_how_a_step_is_carried_out_does_not_change_what_is_learnt(
    tmp_path: Path, folder: str, match: Any
) -> None:
    def losses(name: str, **way: Any) -> list[float]:
        spec = Attention(match=match, relation_heads=2)
        school = School(tmp_path / name, folder)
        result = school.teach(soft_training(objective=spec, epochs=1.0, **way))
        assert "attn" not in (
            Path(school.store.path(result.model("model").uri)) / "config.json"
        ).read_text(encoding="utf-8")
        curve: Any = result.manifest.facts["curve"]
        return [entry["loss"] for entry in curve if "loss" in entry]

    expected = losses("one")
    assert losses("micro", micro_batch_size=1) == pytest.approx(expected, rel=1e-5)
    assert losses("anew", gradient_checkpointing=True) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "way", "teacher", "reason"),
    [
        ({"relation_heads": 3}, {}, {}, r"values have 8 numbers, .*relation_heads=3 parts"),
        ({}, {"batching": "packed"}, {}, r"Set training\.batching to padded"),
        ({}, {}, {"system_prompt": "Be brief."}, r"teacher\.system_prompt is set"),
    ],
)
def test_obstacles_are_told_before_anything_is_spent(
    folder: str, settings: Any, way: Any, teacher: Any, reason: str
) -> None:
    training = soft_training(objective=Attention(**settings), **way)
    with pytest.raises(RecipeError, match=reason):
        choose_objective(
            TransformersTeacher(model=folder, **teacher), PretrainedStudent(model=folder), training
        )
