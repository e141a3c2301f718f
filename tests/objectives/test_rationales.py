"""Thoughts are asked of teachers that may have some, and behind the last user turn."""

from pathlib import Path
from typing import Any

import pytest

from distillery.objectives.choice import choose_objective
from distillery.objectives.rationales import asking
from schemas.errors import RecipeError
from schemas.objectives import Rationales
from schemas.student import FromScratchStudent
from schemas.teacher import OpenAITeacher, TeacherSpec, TransformersTeacher
from schemas.training import TrainingSpec
from tests.fixtures_models import CHAT_TEMPLATE, make_tiny_model

RATIONALES = TrainingSpec(objective=Rationales())
STUDENT = FromScratchStudent(
    num_layers=1, hidden_size=16, intermediate_size=32, num_heads=2, vocab_size=320
)
THINKS = CHAT_TEMPLATE.replace(
    "<|assistant|>{% endif %}",
    "<|assistant|>{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def chosen(teacher: TeacherSpec) -> str:
    return choose_objective(teacher, STUDENT, RATIONALES).because


def test_a_local_teacher_needs_a_template_with_thoughts_that_are_on(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"'rationales', but the chat template .* no place for"):
        chosen(TransformersTeacher(model=str(folder)))
    (folder / "chat_template.jinja").write_text(THINKS, encoding="utf-8")
    teacher = TransformersTeacher(model=str(folder))
    assert chosen(teacher) == "rationales: as the recipe says"
    off = teacher.model_copy(update={"chat_template_kwargs": {"enable_thinking": False}})
    with pytest.raises(RecipeError, match=r"ends the thoughts before the response begins .*kwargs"):
        chosen(off)


@pytest.mark.parametrize(
    ("body", "switch"),
    [
        ({"chat_template_kwargs": {"enable_thinking": False}}, "_kwargs.enable_thinking: False"),
        ({"thinking": {"type": "disabled"}}, "thinking.type: 'disabled'"),
        ({"reasoning": {"exclude": True}}, "reasoning.exclude: True"),
        ({"reasoning_effort": "none"}, "reasoning_effort: 'none'"),
        ({"think": False}, "think: False"),
        ({"reasoning_effort": "high", "thinking": {"type": "enabled"}}, None),
        ({"chat_template_kwargs": {"enable_thinking": True}, "type": "x", "top_k": 0}, None),
        ({}, None),
    ],
)
def test_an_endpoint_that_is_told_not_to_think_is_refused(
    body: dict[str, Any], switch: str | None
) -> None:
    teacher = OpenAITeacher(model="m", base_url="http://127.0.0.1:1/v1", extra_body=body)
    if switch is None:
        assert chosen(teacher) == "rationales: as the recipe says"
        return
    with pytest.raises(RecipeError) as caught:
        chosen(teacher)
    assert "switches thoughts off (" in str(caught.value) and f"{switch})" in str(caught.value)


def test_the_instruction_stands_behind_the_last_user_turn() -> None:
    turns: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "where?"},
    ]
    assert asking(turns, "Why?") == [*turns[:3], {"role": "user", "content": "where?\n\nWhy?"}]
    assert turns[3]["content"] == "where?"


def test_thoughts_before_the_response_and_as_a_task_of_their_own_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="rationales are a task of their own"):
        TrainingSpec(objective=Rationales(), learn_reasoning=True)
