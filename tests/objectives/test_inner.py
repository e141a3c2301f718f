"""What teacher and student compute within can be compared, or is refused beforehand."""

from pathlib import Path
from typing import Any

import pytest

from distillery.objectives.choice import choose_objective
from schemas.errors import RecipeError
from schemas.objectives import Attention, HiddenStates
from schemas.student import FromScratchStudent, PretrainedStudent, StudentSpec
from schemas.teacher import TransformersTeacher
from schemas.training import TrainingSpec
from tests.fixtures_models import make_tiny_model
from tests.fixtures_training import soft_training

NEW = FromScratchStudent(num_layers=1, hidden_size=16, intermediate_size=32, num_heads=2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TransformersTeacher:
    folder = make_tiny_model(tmp_path_factory.mktemp("teacher") / "tiny", max_length=4096)
    return TransformersTeacher(model=str(folder))


@pytest.fixture(
    params=[HiddenStates(), Attention(), Attention(match="averaged_heads")],
    ids=["hidden states", "relations", "averaged heads"],
)
def training(request: pytest.FixtureRequest) -> TrainingSpec:
    return soft_training(objective=request.param)


def _with_tokenizer(folder: Path, change: Any) -> StudentSpec:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(folder))
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return PretrainedStudent(model=str(folder))


def test_another_vocabulary_is_refused(
    teacher: TransformersTeacher, training: TrainingSpec, tmp_path: Path
) -> None:
    student = _with_tokenizer(tmp_path / "other", lambda tokenizer: tokenizer.add_tokens(["zebra"]))
    with pytest.raises(RecipeError, match=r"differs from the teacher's.*first at 'zebra'.*Choose"):
        choose_objective(teacher, student, training)


def test_responses_that_are_written_otherwise_are_refused(
    teacher: TransformersTeacher, training: TrainingSpec, tmp_path: Path
) -> None:
    def with_dot(tokenizer: Any) -> None:
        tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", " .<|end|>")

    student = _with_tokenizer(tmp_path / "other", with_dot)
    with pytest.raises(
        RecipeError, match=r"turns the response 'Forty-two\.' into 'Forty-two\. \.'"
    ):
        choose_objective(teacher, student, training)


def test_prompts_that_are_written_otherwise_are_refused_where_attention_is_compared(
    teacher: TransformersTeacher, training: TrainingSpec, tmp_path: Path
) -> None:
    def with_mark(tokenizer: Any) -> None:
        tokenizer.chat_template = "<|system|>" + tokenizer.chat_template

    student = _with_tokenizer(tmp_path / "other", with_mark)
    if isinstance(training.objective, HiddenStates):
        choose_objective(teacher, student, training)
        return
    with pytest.raises(RecipeError, match=r"the teacher reads a prompt as '<\|user.*Give both the"):
        choose_objective(teacher, student, training)


def test_a_student_whose_tokens_are_not_known_is_refused(
    teacher: TransformersTeacher, training: TrainingSpec
) -> None:
    with pytest.raises(RecipeError, match=r"gets a new tokenizer.*Set student\.tokenizer to the f"):
        choose_objective(teacher, NEW, training)
    deep = NEW.model_copy(update={"tokenizer": teacher.model, "num_layers": 3})
    with pytest.raises(RecipeError, match=r"has 3 layers, the teacher 2.*Name pairs in"):
        choose_objective(teacher, deep, training)


def test_a_new_student_with_the_teachers_tokenizer_is_taken(
    teacher: TransformersTeacher, training: TrainingSpec
) -> None:
    shared = NEW.model_copy(update={"tokenizer": teacher.model, "num_heads": 2})
    chosen = choose_objective(teacher, shared, training)
    assert chosen.because == f"{training.objective.kind}: as the recipe says"
