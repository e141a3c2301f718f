"""Whether another tokenizer's probabilities can be had and aligned is known before they cost."""

import json
from pathlib import Path
from typing import Any

import pytest

from distillery.objectives.choice import choose_objective
from schemas.errors import RecipeError, TeacherError
from schemas.objectives import CrossTokenizer
from schemas.student import FromScratchStudent, PretrainedStudent
from schemas.teacher import OpenAITeacher, TransformersTeacher
from tests.fixtures_models import make_tiny_model
from tests.fixtures_training import soft_training
from tests.stub_vllm import StubVllm, save_tokenizer

NEW = FromScratchStudent(
    num_layers=1, hidden_size=16, intermediate_size=32, num_heads=2, vocab_size=320
)
NOBODY = OpenAITeacher(model="big", base_url="http://127.0.0.1:9/v1", max_attempts=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("teacher") / "tiny"))


@pytest.fixture(scope="module")
def of_server(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tokenizer(tmp_path_factory.mktemp("served") / "tokenizer"))


def choose(teacher: Any, student: Any = NEW, **settings: Any) -> None:
    objective = CrossTokenizer(**({"k": 8} | settings))
    choose_objective(teacher, student, soft_training(objective=objective))


def test_a_student_with_any_tokenizer_is_taken(folder: str, of_server: str) -> None:
    teacher = TransformersTeacher(model=folder)
    for student in (NEW, PretrainedStudent(model=folder)):
        choose(teacher, student)
    with StubVllm() as server:
        choose(server.spec(), PretrainedStudent(model=folder), tokenizer=of_server)


@pytest.mark.parametrize(
    ("k", "student", "whose"),
    [
        (400, NEW, r"k=400 is more than the 300 tokens of the teacher's vocabulary"),
        (
            200,
            NEW.model_copy(update={"vocab_size": 180}),
            r"k=200 .* the 180 tokens of the student's",
        ),
    ],
)
def test_more_ranks_than_tokens_are_refused(folder: str, k: int, student: Any, whose: str) -> None:
    with pytest.raises(RecipeError, match=whose):
        choose(TransformersTeacher(model=folder), student, k=k)


def test_a_tokenizer_is_named_for_a_served_teacher_and_for_no_other(
    folder: str, of_server: str
) -> None:
    with pytest.raises(
        RecipeError, match=r"tokenizer names .* but teacher\.kind is 'transformers'"
    ):
        choose(TransformersTeacher(model=folder), tokenizer=of_server)
    with pytest.raises(RecipeError, match=r"does not say which bytes its tokens stand for\. Name"):
        choose(NOBODY)
    with pytest.raises(
        RecipeError, match=r"no pinned revision.*tokenizer_revision to a commit hash"
    ):
        choose(NOBODY, tokenizer="someone/model")


def test_a_tokenizer_that_is_not_the_servers_is_refused(folder: str) -> None:
    with StubVllm() as server, pytest.raises(RecipeError, match="say something else in the token"):
        choose(server.spec(), tokenizer=folder)


def test_a_tokenizer_that_changes_what_it_reads_is_refused(folder: str, tmp_path: Path) -> None:
    lossy = make_tiny_model(tmp_path / "lossy")
    file = lossy / "tokenizer.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    spec["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(spec), encoding="utf-8")
    for teacher, student in ((lossy, folder), (folder, lossy)):
        with pytest.raises(
            RecipeError, match=r"turns the response 'Forty-two: .*into 'forty-two: "
        ):
            choose(TransformersTeacher(model=str(teacher)), PretrainedStudent(model=str(student)))


def test_a_server_that_does_not_answer_is_named_with_what_to_do(of_server: str) -> None:
    with pytest.raises(TeacherError) as told:
        choose(NOBODY, tokenizer=of_server)
    assert str(told.value).startswith("endpoint 'http://127.0.0.1:9/v1/")
    assert "gave no answer to a short test in 1 attempts" in str(told.value)
    assert str(told.value).endswith("Start the server, or correct teacher.base_url.")
    assert "prompt_id" not in str(told.value)
