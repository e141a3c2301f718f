"""A recipe is refused with all its errors at once, each with its place and what to do."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from schemas.base import Branch
from schemas.errors import RecipeError
from schemas.recipe import (
    GenerationRecipe,
    Recipe,
    TeacherTrainingRecipe,
    load_recipe,
    validate_recipe,
)
from schemas.sweep import SweepRecipe
from schemas.task import TaskKind
from schemas.teacher import OpenAITeacher
from schemas.training import LoraMethod, TrainingSpec
from tests.fixtures_recipe import SHORTEST, changed

ROOT = Path(__file__).resolve().parents[2]


def _refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        validate_recipe(raw, Recipe, source="r.yaml")
    return str(caught.value)


def _only_error(raw: dict[str, Any]) -> str:
    """Return the one error in words, without the frame around it."""
    first, line, last = _refusal(raw).split("\n")
    assert first == "recipe 'r.yaml' has 1 error:"
    assert last.startswith("Correct them; ")
    return line.strip()


def test_a_good_recipe_is_taken_with_the_defaults() -> None:
    recipe = validate_recipe(SHORTEST, Recipe, source="r.yaml")
    assert recipe.training == TrainingSpec()
    assert list(recipe.parameters()) == list(Recipe.model_fields)


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (
            "training.learning_rat",
            1,
            "training.learning_rat: there is no key 'learning_rat' here. Did you mean "
            "'learning_rate'? Known keys: ",
        ),
        ("stor", {}, "stor: there is no key 'stor' here. Did you mean 'store'? Known keys: "),
        (
            "teacher.modle",
            "m",
            "teacher.modle: there is no key 'modle' here. Did you mean 'model'? Known keys: ",
        ),
        (
            "filters.responses",
            [{"kind": "truncated"}, {"kind": "refusl"}],
            "filters.responses.1: there is no kind 'refusl'. Did you mean 'refusal'? Known: tru",
        ),
        (
            "filters.responses",
            [{"min_chars": 3}],
            "filters.responses.0: has no kind. Add 'kind:' with one of truncated, ",
        ),
        (
            "filters.responses",
            ["truncated"],
            "filters.responses.0: is 'truncated', but has to be a section. ",
        ),
        ("training.method", "lora", "training.method: is 'lora', but has to be a section. Write "),
        ("training.method", {"kind": "lora", "r": 0}, "training.method.r: is 0, but has to be gr"),
        ("training.epochs", "three", "training.epochs: is 'three', but has to be a number."),
        ("training.epochs", -1, "training.epochs: is -1, but has to be greater than 0."),
        ("training.seed", 1.5, "training.seed: is 1.5, but has to be a whole number."),
        ("training.seed", None, "training.seed: is empty, but has to be a whole number."),
        ("training.learning_rate", float("inf"), "training.learning_rate: is inf, but has to be a"),
        (
            "training.schedule",
            "cosin",
            "training.schedule: there is no value 'cosin'. Did you mean 'cosine'? Known: cosine, "
            "linear, constant.",
        ),
        ("task.type", "nil", "task.type: there is no value 'nil'. Did you mean 'nli'? Known: "),
        ("student", None, "student: is empty, but has to be a section of keys and values."),
        ("evaluation", 7, "evaluation: is 7, but has to be a section of keys and values."),
        ("teacher.top_p", 2, "teacher.top_p: is 2, but has to be less than or equal to 1."),
        ("data.test", {"kind": "file"}, "data.test.path: is missing. Add it: Path or fsspec URL."),
        ("execution.force", "train_student", "execution.force: is 'train_student', but has to be "),
        (
            "data.prompt_template",
            'Answer as {"label": 1}: {text}',
            "data.prompt_template: 'Answer as {\"label\": 1}: {text}' has braces around no column: "
            "'\"label\"'. Write {column} for a column, {{ and }} for braces that are text.",
        ),
        ("data.prompt_template", "hello", "data.prompt_template: 'hello' names no column, so all "),
        ("data.prompt_template", "{text", "data.prompt_template: '{text' cannot be read: "),
        (
            "filters.responses",
            [{"kind": "refusal", "patterns": ["("]}],
            "filters.responses.0.patterns.0: '(' is not a regular expression: missing )",
        ),
        (
            "filters.responses",
            [{"kind": "length", "min_chars": 9, "max_chars": 3}],
            "filters.responses.0: min_chars=9 is above max_chars=3, so every response would be",
        ),
        (
            "task.name",
            "My Task",
            "task.name: 'My Task' does not match '^[a-z0-9]+(-[a-z0-9]+)*$'. Short name: titles",
        ),
        ("training.method.target_modules", 3, "training.method: has no kind. Add 'kind:' with on"),
    ],
)
def test_an_error_names_its_place_the_value_and_what_to_do(
    place: str, value: Any, sentence: str
) -> None:
    assert _only_error(changed(place, value)).startswith(sentence)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (
            "[yes, no]",
            "holds True, False instead of text: YAML reads yes, no, digits and dates as ",
        ),
        ("[yes]", "holds True instead of text: YAML reads yes, no, digits and dates as something "),
        ("[a, 1, 2024-01-01]", "holds 1, datetime.date(2024, 1, 1) instead of text: YAML reads"),
        ("[a, b, a]", "'a' is listed twice. Remove one."),
        ("[a, ' b']", "' b' begins or ends with white space. Remove it."),
        ("[a, '']", "'' begins or ends with white space. Remove it."),
        ("yes", "is True, but has to be a list."),
        ("[a]", "needs at least 2 items, not 1."),
    ],
)
def test_labels_that_cannot_be_used_are_named_in_one_line(labels: str, sentence: str) -> None:
    raw = changed("task.answer_format", yaml.safe_load(f"{{kind: labels, labels: {labels}}}"))
    assert _only_error(raw).startswith(f"task.answer_format.labels: {sentence}")


def test_all_errors_come_at_once_each_with_its_place() -> None:
    raw = changed("training.epochs", "three")
    raw["teacher"] |= {"concurrency": 0, "tempature": 1}
    raw["filters"] = {"responses": [{"kind": "refusl"}, {"kind": "length", "min_chars": -1}]}
    del raw["task"]
    places = [line.split(":")[0].strip() for line in _refusal(raw).split("\n")[1:-1]]
    assert sorted(places) == [
        "filters.responses.0",
        "filters.responses.1.min_chars",
        "task",
        "teacher.concurrency",
        "teacher.tempature",
        "training.epochs",
    ]


def test_an_api_key_in_place_of_a_name_is_not_repeated() -> None:
    message = _only_error(changed("teacher.api_key_env", "sk-123-secret"))
    assert message.startswith("teacher.api_key_env: *** does not match")
    assert "secret" not in message


def test_keys_of_a_sibling_branch_are_dropped_quietly() -> None:
    switched = {**SHORTEST["teacher"], "dtype": "float16", "batch_size": 3}
    recipe = validate_recipe(changed("teacher", switched), Recipe, source="r.yaml")
    assert recipe.teacher == OpenAITeacher(model="m", base_url="http://host/v1")
    assert "dtype" not in recipe.teacher.model_dump()


def test_a_branch_alone_refuses_keys_of_no_branch_and_shows_every_error() -> None:
    with pytest.raises(ValidationError) as caught:
        LoraMethod.model_validate({"r": 0, "alphaa": 1, "rr": 2})
    assert [error["loc"] for error in caught.value.errors()] == [("r",), ("alphaa",), ("rr",)]


def test_a_validated_branch_passes_again() -> None:
    recipe = validate_recipe(SHORTEST, Recipe, source="r.yaml")
    assert validate_recipe(recipe.parameters(), Recipe, source="again") == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def _sections(kind: type[BaseModel]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    return definitions | {kind.__name__: schema}


def _branches(kind: type[Branch] = Branch) -> set[str]:
    return {kind.__name__}.union(*map(_branches, kind.__subclasses__()))


@pytest.mark.parametrize("kind", [Recipe, GenerationRecipe, TeacherTrainingRecipe])
def test_json_schema_forbids_extra_keys_on_sections_only(kind: type[BaseModel]) -> None:
    sections = {
        name: schema.get("additionalProperties")
        for name, schema in _sections(kind).items()
        if schema.get("type") == "object"
    }
    branches = _branches() & set(sections)
    assert len(branches) > 8
    assert {name for name, extra in sections.items() if extra is False} == set(sections) - branches
    assert all(sections[name] is None for name in branches)


def test_every_field_of_the_json_schema_is_described() -> None:
    bare = [
        f"{name}.{field}"
        for name, schema in _sections(Recipe).items()
        if name not in ("Recipe", "ColumnMap")
        for field, about in schema.get("properties", {}).items()
        if "description" not in about
    ]
    assert bare == []


@pytest.fixture
def good_file(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(SHORTEST))
    return path


def test_overrides_are_yaml_and_merged_deeply(good_file: Path) -> None:
    overrides = [
        "training.epochs=1.5",
        "training.learning_rate=1e-3",
        "data.test.columns.id=key",
        "execution.force=[train_student, train_baseline]",
        "training.method={kind: lora, r: 4}",
        "training.method.alpha=8",
        "data.system_prompt=null",
        "data.prompt_template='Say: {text} = {answer}'",
    ]
    recipe = load_recipe(good_file, overrides, Recipe)
    assert (recipe.training.epochs, recipe.training.learning_rate) == (1.5, 1e-3)
    assert recipe.training.method == LoraMethod(r=4, alpha=8)
    assert recipe.data.test is not None
    assert recipe.data.test.columns.id == "key"
    assert recipe.data.test.columns.reference == "answer"
    assert recipe.execution.force == ("train_student", "train_baseline")
    assert recipe.data.prompt_template == "Say: {text} = {answer}"


def test_the_last_override_of_a_key_counts(good_file: Path) -> None:
    recipe = load_recipe(good_file, ["training.seed=1", "training.seed=2"], Recipe)
    assert recipe.training.seed == 2


@pytest.mark.parametrize("override", ["training.epochs", "=3", "training..epochs=3", ".a=1"])
def test_an_override_of_another_form_is_refused(good_file: Path, override: str) -> None:
    with pytest.raises(RecipeError, match=r"not of the form section\.key=value\. Write for exam"):
        load_recipe(good_file, [override], Recipe)


def test_an_override_that_is_no_yaml_is_refused(good_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"is not YAML\. Quote it"):
        load_recipe(good_file, ["data.prompt_template={text"], Recipe)


def test_an_unquoted_template_on_the_command_line_is_to_be_quoted(good_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"prompt_template: is a section, but has to be text\."):
        load_recipe(good_file, ["data.prompt_template={text}"], Recipe)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"- a\n- b\n", "holds list, not sections. Start from"),
        (b"", "holds NoneType, not sections"),
        (b"just words", "holds str, not sections"),
        (b"a: [1\nb: 2", r"is not YAML: (?s:.*)line 2(?s:.*)Correct it\."),
        (b"a: {b: 1}\na: {c: 2}\n", r"is not YAML: the key 'a' occurs twice(?s:.*)line 2"),
        (b"a: \xff\xfe\xfa", "is not YAML"),
        (b"a: !!python/object:os.system {}", "is not YAML"),
    ],
)
def test_a_file_that_holds_no_recipe_is_refused(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=match):
        load_recipe(path, [], Recipe)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml' cannot be read: No such file"):
        load_recipe(tmp_path / "nowhere.yaml", [], Recipe)
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path, [], Recipe)


def test_yaml_anchors_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    text = yaml.safe_dump(SHORTEST) + "filters: {responses: [&r {kind: refusal}, *r]}\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    rules = load_recipe(path, [], Recipe).filters.responses
    assert rules is not None
    assert len(rules) == 2


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/**/*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_of_the_project_parses(path: Path) -> None:
    raw = yaml.safe_load(path.read_text())
    kinds: dict[str, type[BaseModel]] = {
        "output": TeacherTrainingRecipe,
        "sweep": SweepRecipe,
        "student": Recipe,
    }
    load_recipe(path, [], next((kinds[key] for key in kinds if key in raw), GenerationRecipe))


@pytest.mark.parametrize("kind", TaskKind)
def test_every_task_type_has_a_recipe_and_a_smoke_twin_of_the_same_sections(kind: TaskKind) -> None:
    recipe, twin = (
        yaml.safe_load((ROOT / folder / f"{kind}.yaml").read_text())
        for folder in ("recipes", "recipes/smoke")
    )
    assert recipe["task"]["type"] == twin["task"]["type"] == kind
    assert list(recipe) == list(twin)
    assert recipe["data"].keys() == twin["data"].keys()


def test_a_recipe_of_the_spine_is_one_of_generation_and_keeps_its_order_of_sections() -> None:
    assert list(GenerationRecipe.model_fields) == list(Recipe.model_fields)
    assert validate_recipe(SHORTEST, GenerationRecipe, source="r.yaml").student is not None
    alone = {name: SHORTEST[name] for name in ("task", "data", "teacher")}
    assert validate_recipe(alone, GenerationRecipe, source="r.yaml").student is None
    with pytest.raises(RecipeError, match=r"student: is missing\. Add it"):
        validate_recipe(alone, Recipe, source="r.yaml")
    with pytest.raises(RecipeError, match="there is no key 'studnet' here"):
        validate_recipe(alone | {"studnet": {}}, GenerationRecipe, source="r.yaml")
