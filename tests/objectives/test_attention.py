"""A student learns where its teacher looks."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from distillery.models.loading import ModelFiles
from distillery.objectives.attention import averaged_heads, divergence, queries, relations
from distillery.objectives.choice import choose_objective
from schemas.errors import RecipeError
from schemas.examples import FixedExamples
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


LABELS = torch.tensor([[-100, -100, 7, 8, 9], [-100, 5, -100, -100, -100]])
PREDICTING = [(0, 1), (0, 2), (0, 3), (1, 0)]


def _compared(theirs: torch.Tensor, ours: torch.Tensor, how: Any) -> torch.Tensor:
    at, is_there = queries(LABELS)
    return divergence(how(theirs, at), how(ours, at), is_there)


def _assert_same_gradients(found: torch.Tensor, expected: torch.Tensor, ours: torch.Tensor) -> None:
    assert found.item() > 0.1
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    one, other = (torch.autograd.grad(each, ours)[0] for each in (found, expected))
    assert torch.allclose(one, other, rtol=1e-7, atol=1e-12)


def test_relations_and_their_gradient_are_those_of_a_dense_reference() -> None:
    """Of models whose values differ in width."""
    theirs = torch.randn(2, 5, 12, dtype=torch.float64)
    ours = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)

    def looks(values: torch.Tensor, row: int, at: int, part: int) -> torch.Tensor:
        size = values.shape[-1] // 3
        own = values[row, : at + 1, part * size : (part + 1) * size]
        products: torch.Tensor = own @ own[at] / size**0.5
        return products.softmax(0)

    expected = torch.zeros((), dtype=torch.float64)
    for row, at in PREDICTING:
        for part in range(3):
            p, q = looks(theirs, row, at, part), looks(ours, row, at, part)
            expected = expected + (p * (p / q).log()).sum() / 3
    found = _compared(theirs, ours, lambda values, at: relations(values, at, 3))
    _assert_same_gradients(found, expected, ours)


def test_averaged_heads_and_their_gradient_are_those_of_a_dense_reference() -> None:
    """Of models whose numbers of heads differ."""
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    scores = [torch.randn(2, heads, 5, 5, dtype=torch.float64) for heads in (4, 2)]
    theirs, ours = (each.masked_fill(hidden, -torch.inf).softmax(-1) for each in scores)
    ours.requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for row, at in PREDICTING:
        p, q = (each[row, :, at, : at + 1].mean(0) for each in (theirs, ours))
        expected = expected + (p * (p / q).log()).sum()
    _assert_same_gradients(_compared(theirs, ours, averaged_heads), expected, ours)


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
        ({}, {}, {"examples": FixedExamples()}, r"teacher\.examples is set"),
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


def test_layers_without_values_of_their_own_are_refused_and_weights_are_compared(
    folder: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, Phi3Config

    fused = tmp_path / "phi"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(fused)
    Phi3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, pad_token_id=0,
    ).save_pretrained(fused)  # fmt: skip
    student, teacher = PretrainedStudent(model=str(fused)), TransformersTeacher(model=folder)
    training = soft_training(objective=Attention())
    with pytest.raises(RecipeError, match=r"layer of the student \(Phi3D.*no self_attn\.v_proj"):
        choose_objective(teacher, student, training)
    choose_objective(teacher, student, soft_training(objective=Attention(match="averaged_heads")))


def test_a_model_that_does_not_compute_attention_step_by_step_is_refused_beforehand(
    folder: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, FalconConfig

    fixed = tmp_path / "falcon"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(fixed)
    FalconConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2
    ).save_pretrained(fixed)
    training = soft_training(objective=Attention(match="averaged_heads"))
    models = TransformersTeacher(model=folder), PretrainedStudent(model=str(fixed))
    with pytest.raises(RecipeError, match=r"a FalconForCausalLM does not let .* as 'eager'.*relat"):
        choose_objective(*models, training)


@pytest.mark.parametrize("match", ["relations", "averaged_heads"])
def test_rows_that_no_device_could_hold_are_refused_with_the_longest_that_it_could(
    tmp_path: Path, match: Any
) -> None:
    model = str(make_tiny_model(tmp_path / "long", max_length=10**6))
    models = TransformersTeacher(model=model), PretrainedStudent(model=model)

    def choose(max_length: int) -> None:
        objective = Attention(match=match)
        choose_objective(*models, soft_training(objective=objective, max_length=max_length))

    with pytest.raises(
        RecipeError, match=r"of 100000 tokens.*take up to .* GiB: they grow"
    ) as told:
        choose(100_000)
    named = re.search(r"Set training\.max_length to (\d+) or less\.$", str(told.value))
    assert named is not None
    longest = int(named[1])
    choose(longest)
    with pytest.raises(RecipeError, match=f"of {longest + 1} tokens"):
        choose(longest + 1)


def test_a_student_that_reads_little_has_short_rows_whatever_is_allowed(folder: str) -> None:
    assert ModelFiles(folder).config().max_position_embeddings == 256
    models = TransformersTeacher(model=folder), PretrainedStudent(model=folder)
    choose_objective(*models, soft_training(objective=Attention(), max_length=100_000))
