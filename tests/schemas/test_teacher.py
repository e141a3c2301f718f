"""What a teacher's section refuses, and what it says that its requests cost."""

import pytest
from pydantic import TypeAdapter, ValidationError

from schemas.budget import PriceSpec
from schemas.teacher import OpenAITeacher, TeacherSpec, VLLMTeacher

PRICE = PriceSpec(prompt_per_million=2, completion_per_million=8, batch_discount=0.25)


@pytest.mark.parametrize("kind", ["transformers", "vllm"])
def test_a_teacher_that_runs_here_takes_no_batches(kind: str) -> None:
    section = {"kind": kind, "model": "here", "batch": True}
    with pytest.raises(ValidationError, match=f"batch is set, but a teacher of kind '{kind}' has"):
        TypeAdapter(TeacherSpec).validate_python(section)


def test_the_form_may_leave_a_batch_that_is_not_wanted() -> None:
    found = TypeAdapter(TeacherSpec).validate_python(
        {"kind": "transformers", "model": "here", "batch": False}
    )
    assert (found.in_batches, found.charges) == (False, None)


def test_anthropics_batches_know_no_json_without_a_schema() -> None:
    with pytest.raises(ValidationError, match="Anthropic's batches do not know"):
        OpenAITeacher(
            model="m",
            base_url="https://host/v1",
            provider="anthropic",
            batch=True,
            structured_output="json_object",
        )


def test_requests_in_batches_cost_what_the_discount_leaves() -> None:
    alone = OpenAITeacher(model="m", base_url="https://host/v1", price=PRICE)
    batched = alone.model_copy(update={"batch": True})
    assert alone.charges is not None and alone.charges.cost(1e6, 1e6) == 10
    assert batched.charges is not None and batched.charges.cost(1e6, 1e6) == 7.5
    assert batched.price == PRICE


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "neither of teacher.python and teacher.image"),
        ({"python": "python", "image": "vllm"}, "both of teacher.python and teacher.image"),
        ({"python": "p", "extra_args": ["--max_model_len=9"]}, "Set teacher.max_model_len"),
        ({"python": "p", "extra_args": ["--generation-config", "auto"]}, "the stage decides"),
    ],
)
def test_a_vllm_of_the_stage_is_in_one_place_and_has_each_setting_once(
    settings: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        VLLMTeacher(model="org/m", **settings)


def test_form_fields_of_other_kinds_are_dropped() -> None:
    written = {"kind": "vllm", "model": "m", "python": "p", "base_url": "http://h/v1", "device": ""}
    [teacher] = TypeAdapter(list[TeacherSpec]).validate_python([written])
    assert teacher == VLLMTeacher(model="m", python="p")
