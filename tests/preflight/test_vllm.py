"""What is known of a vLLM of the stage's own before anything is spent."""

import re
from pathlib import Path

import pytest

from distillery.preflight.models import check_models
from distillery.preflight.vllm import check_length, check_room, check_served_here
from schemas.data import DataSpec
from schemas.errors import RecipeError
from schemas.execution import ExecutionSpec
from schemas.task import TaskSpec
from schemas.teacher import VLLMTeacher
from tests.fixtures_vllm import StubPython, stub_python

__all__ = ["stub_python"]

TASK = TaskSpec(name="questions", type="classification")
DEMO = "recipes/demo/teacher"


def demo(stub_python: StubPython, **settings: object) -> VLLMTeacher:
    shown = {"model": DEMO, "revision": None, "max_new_tokens": 16, **settings}
    return stub_python.teacher(**shown)  # type: ignore[arg-type]


def test_a_machine_that_has_all_of_it_passes(stub_python: StubPython) -> None:
    check_served_here(demo(stub_python))
    assert stub_python.servers == []


def test_an_interpreter_without_vllm_is_refused_where_stages_run_in_this_process(
    stub_python: StubPython,
) -> None:
    teacher = demo(stub_python, has_vllm=False)
    [line] = check_models(None, teacher, TASK, DataSpec(), ExecutionSpec(mode="inline"))
    assert re.search(r"teacher\.python .* has no vLLM", line)
    assert check_models(None, teacher, TASK, DataSpec(), ExecutionSpec(mode="deployment")) == []


def test_a_response_has_to_leave_room_for_a_prompt(stub_python: StubPython) -> None:
    with pytest.raises(RecipeError, match=r"max_new_tokens=128 leaves no room .* 128 tokens"):
        check_served_here(demo(stub_python, max_new_tokens=128))


def test_an_image_needs_docker(stub_python: StubPython, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RecipeError, match="there is no command docker"):
        check_served_here(VLLMTeacher(model=DEMO, max_new_tokens=16, image="vllm/vllm-openai"))


def test_weights_without_room_are_refused_with_both_sizes(
    stub_python: StubPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distillery.preflight.vllm.available_memory", lambda device: 2 * 2**20)
    weights = Path(DEMO, "model.safetensors").stat().st_size / 2**20
    with pytest.raises(RecipeError, match=rf"{weights:.2f} MiB.*gives vLLM 2\.00 MiB"):
        check_room(demo(stub_python))
    check_room(demo(stub_python, tensor_parallel_size=8))


def test_a_prompt_has_to_leave_room_for_its_response(stub_python: StubPython) -> None:
    teacher = demo(stub_python, max_model_len=100, max_new_tokens=20)
    check_length(teacher, 80)
    with pytest.raises(RecipeError, match=r"81 tokens.*teacher\.max_model_len=100"):
        check_length(teacher, 81)
