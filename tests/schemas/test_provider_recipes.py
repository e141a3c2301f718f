"""The recipes of providers: complete, without a key or a number that ages."""

import re
from pathlib import Path

import pytest

from distillery.data.chat import Message
from distillery.preflight.recipe import check_recipe
from distillery.teacher.http.chat_api import request_json
from distillery.teacher.protocol import ResponseSchema, Sampling, make_request, teacher_identity
from schemas.errors import RecipeError
from schemas.recipe import GenerationRecipe, load_recipe
from schemas.teacher import OpenAITeacher

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(ROOT.glob("recipes/providers/*.yaml"))
LOCAL = ("vllm", "ollama", "llama-cpp")

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def _recipe(path: Path) -> GenerationRecipe:
    return load_recipe(path, [], GenerationRecipe)


def _teacher(path: Path) -> OpenAITeacher:
    teacher = _recipe(path).teacher
    assert isinstance(teacher, OpenAITeacher)
    return teacher


def test_there_is_one_for_each_provider_that_the_docs_name() -> None:
    named = {"vllm", "azure-ai-foundry", "openai", "deepseek", "anthropic", "ollama", "llama-cpp"}
    assert {path.stem for path in RECIPES} == named
    page = (ROOT / "docs/teachers.md").read_text(encoding="utf-8")
    assert all(f"recipes/providers/{name}.yaml" in page for name in named)


@each_recipe
def test_it_runs_once_its_variable_is_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, teacher = _recipe(path), _teacher(path)
    sections = (recipe.task, recipe.data, teacher, None, None, recipe.store, recipe.execution)
    if teacher.api_key_env:
        monkeypatch.delenv(teacher.api_key_env, raising=False)
        with pytest.raises(RecipeError, match=teacher.api_key_env):
            check_recipe(*sections)
        monkeypatch.setenv(teacher.api_key_env, "a-key")
    check_recipe(*sections)


@each_recipe
def test_it_says_which_variable_to_export_and_where_its_facts_are_from(path: Path) -> None:
    text, teacher = path.read_text(encoding="utf-8"), _teacher(path)
    if teacher.api_key_env:
        assert f"export {teacher.api_key_env}=" in text
    assert re.search(r"^# Sources?: https://", text, re.MULTILINE)
    assert f"distillery generate recipes/providers/{path.name} --plan" in text


@each_recipe
def test_it_holds_no_price_as_prices_change(path: Path) -> None:
    text, teacher = path.read_text(encoding="utf-8"), _teacher(path)
    assert teacher.price is None and teacher.budget.max_cost is None
    if path.stem not in LOCAL:
        assert re.search(
            r"^  # price: \{prompt_per_million: , completion_per_million: ", text, re.M
        )


@each_recipe
def test_its_request_is_what_the_provider_knows(path: Path) -> None:
    recipe, teacher = _recipe(path), _teacher(path)
    schema = ResponseSchema.of(teacher, recipe.task)
    assert schema is not None
    message = Message(role="user", content="Where is my parcel?")
    identity, sampling = teacher_identity(teacher), Sampling.of(teacher)
    request = make_request(identity, [message], sampling, response_schema=schema)
    body = request_json(teacher, request, request.messages)
    limit = "max_completion_tokens" if path.stem in ("openai", "azure-ai-foundry") else "max_tokens"
    assert body[limit] == 64
    kind = {"deepseek": "json_object", "anthropic": None}.get(path.stem, "json_schema")
    assert body.get("response_format", {}).get("type") == kind
    # An endpoint that is asked for JSON wants to read of it in the prompt, too.
    assert "JSON" in (recipe.data.system_prompt or "")


def test_null_in_extra_body_leaves_a_field_out() -> None:
    """Models without a temperature refuse the field itself."""
    teacher = OpenAITeacher(
        model="m", base_url="http://host/v1", extra_body={"temperature": None, "effort": "low"}
    )
    identity, sampling = teacher_identity(teacher), Sampling.of(teacher)
    request = make_request(identity, [{"role": "user", "content": "?"}], sampling)
    body = request_json(teacher, request, request.messages)
    assert "temperature" not in body and body["effort"] == "low"
