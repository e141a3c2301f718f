"""What a recipe asks for and cannot have is refused at once, all of it in one error."""

import re
from pathlib import Path
from typing import Any

import pytest

from distillery.preflight.recipe import check_recipe, check_teacher_recipe
from distillery.preflight.slices import slice_problems
from distillery.registry import open_registry
from distillery.task_types import task_type
from schemas.errors import RecipeError
from schemas.recipe import GenerationRecipe, Recipe, TeacherTrainingRecipe, validate_recipe
from schemas.teacher import TransformersTeacher
from tests.fixtures_models import make_tiny_model
from tests.fixtures_recipe import changed, load, make_recipe
from tests.fixtures_registry import entry
from tests.stub_endpoint import StubEndpoint, listing


def check(recipe: Recipe) -> None:
    spine = (recipe.student, recipe.training, recipe.store, recipe.execution)
    check_recipe(recipe.task, recipe.data, recipe.teacher, *spine, recipe.evaluation)


def check_alone(recipe: GenerationRecipe) -> None:
    where = (recipe.store, recipe.execution)
    check_recipe(recipe.task, recipe.data, recipe.teacher, None, None, *where)


def test_the_spine_needs_test_rows_and_generation_alone_does_not() -> None:
    raw = changed("data.test", None)
    raw["teacher"] = raw["teacher"] | {"base_url": "http://host/v1"}
    recipe = validate_recipe(raw, Recipe, source="r.yaml")
    check_alone(recipe)
    with pytest.raises(RecipeError, match=r"data\.test is missing"):
        check(recipe)


def test_a_champion_whose_files_are_gone_is_refused_with_everything_else_that_is_wrong(
    tmp_path: Path,
) -> None:
    raw = make_recipe(tmp_path, "http://host/v1", gate={"alias": "canary"})
    recipe = validate_recipe(raw | {"data": raw["data"] | {"test": None}}, Recipe, source="r.yaml")
    with open_registry(recipe.store) as registry:
        registry.promote(entry("1", task=recipe.task.name, alias="canary"), expected=None)
    with pytest.raises(
        RecipeError, match=r"data\.test is missing(?s:.*)/canary points to, is gone"
    ):
        check_recipe(
            *(recipe.task, recipe.data, recipe.teacher, recipe.student, recipe.training),
            *(recipe.store, recipe.execution, recipe.evaluation, recipe.export, recipe.gate),
        )


def test_filters_that_cannot_run_here_are_refused_with_everything_else_that_is_wrong() -> None:
    raw = changed("data.test", None)
    raw["filters"] = {
        "prompts": [
            {"kind": "diversity", "keep": 9, "embedding": {"model": "no/such/encoder"}},
            {"kind": "language", "languages": ["klingon"]},
        ]
    }
    recipe = validate_recipe(raw, Recipe, source="r.yaml")
    with pytest.raises(RecipeError) as caught:
        check_recipe(
            *(recipe.task, recipe.data, recipe.teacher, recipe.student, recipe.training),
            *(recipe.store, recipe.execution, recipe.evaluation),
            filters=recipe.filters,
        )
    told = str(caught.value)
    assert "embedding 'no/such/encoder' is neither an existing folder nor a hub id" in told
    assert "language knows no language 'klingon'" in told
    assert "data.test is missing" in told


def test_generation_without_prompts_is_refused_with_everything_else_that_is_wrong() -> None:
    raw = changed("data.train", None)
    raw["teacher"] = raw["teacher"] | {"api_key_env": "NO_SUCH_KEY"}
    recipe = validate_recipe(raw, GenerationRecipe, source="r.yaml")
    with pytest.raises(RecipeError, match=r"NO_SUCH_KEY(?s:.*)data\.train is missing"):
        check_alone(recipe)


def test_sections_that_do_not_fit_together_are_refused_before_anything_is_read() -> None:
    raw = changed("teacher.api_key_env", "NO_SUCH_KEY")
    raw["student"] = {
        **{"kind": "from_scratch", "num_layers": 1, "hidden_size": 16, "intermediate_size": 32},
        **{"num_heads": 2, "tokenizer": "o/m"},
    }
    raw["data"] |= {"train": None, "test": {"kind": "file", "path": "b.jsonl"}}
    raw |= {"store": {"root": "s3://bucket/x"}}
    raw["task"] |= {"answer_format": {"kind": "json", "json_schema": {"type": "objct"}}}
    raw["teacher"] |= {"samples": {"num_samples": 3, "choice": {"kind": "label"}}}
    raw["teacher"] |= {"sampling_temperature": 1.0}
    recipe = validate_recipe(raw, Recipe, source="r.yaml")
    with pytest.raises(RecipeError) as caught:
        check(recipe)
    subjects = [" ".join(line.split()[:2]) for line in str(caught.value).split("\n")]
    assert [subject for subject in subjects if not subject.startswith("task.type")] == [
        "task.answer_format.json_schema is",
        "teacher.samples.choice has",
        "the environment",
        "student.tokenizer 'o/m'",
        "data.train is",
        "data.gold is",
        "data.test.columns.reference is",
        "store.root 's3://bucket/x'",
    ]


def test_a_recipe_without_problems_asks_its_endpoint_nothing_yet(tmp_path: Path) -> None:
    with StubEndpoint(models=listing("another")) as endpoint:
        check(load(make_recipe(tmp_path, endpoint.base_url)))
        assert endpoint.gets == []


def test_what_the_endpoint_says_is_told_along_with_another_problem(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"data": {"gold": None}}
    with StubEndpoint(models=listing("another")) as endpoint:
        recipe = load(make_recipe(tmp_path, endpoint.base_url, **changes))
        with pytest.raises(RecipeError) as caught:
            check(recipe)
    gold, model = str(caught.value).split("\n")
    assert gold.startswith("data.gold is missing")
    assert "does not know teacher.model 'scripted'; it lists 'another'" in model


def _refused(**sections: dict[str, Any]) -> list[str]:
    """Return what a recipe with other sections is refused for, models and endpoint aside."""
    raw = changed("teacher.base_url", "http://127.0.0.1:1/v1")
    for name, fields in sections.items():
        raw[name] = raw[name] | fields
    recipe = validate_recipe(raw, GenerationRecipe, source="r.yaml")
    try:
        check_alone(recipe)
    except RecipeError as error:
        return [line for line in str(error).split("\n") if "127.0.0.1" not in line]
    return []


def _train(**columns: str) -> dict[str, Any]:
    return {"train": {"kind": "file", "path": "a.jsonl", "columns": columns}}


@pytest.mark.parametrize(
    ("kind", "data", "why"),
    [
        (
            "nli",
            _train(premise="s1", question="q"),
            "columns.question is 'q', but task.type 'nli' reads premise and hypothesis",
        ),
        (
            "classification",
            _train(document="body"),
            "columns.document is 'body', but task.type 'classification' reads text",
        ),
        (
            "nli",
            _train(premise="s1", hypothesis="s2") | {"prompt_template": "{premise} ? {body}"},
            "columns.hypothesis is 's2', but data.prompt_template reads premise and body",
        ),
        (
            "classification",
            _train(messages="chat", text="body"),
            "columns.text is 'body', but columns.messages holds the whole prompt",
        ),
    ],
)
def test_a_column_that_would_not_be_read_is_refused(
    kind: str, data: dict[str, Any], why: str
) -> None:
    assert _refused(task={"type": kind}, data=data) == [
        f"data.train.{why}, so that column would be ignored. Remove it, or choose otherwise."
    ]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("nli", _train(premise="s1", hypothesis="s2", id="key", cluster="document")),
        ("nli", _train(question="q") | {"prompt_template": "{question} {body}"}),
        ("classification", _train(messages="chat", reference="ignored")),
    ],
)
def test_columns_that_are_read_are_accepted(kind: str, data: dict[str, Any]) -> None:
    assert _refused(task={"type": kind}, data=data) == []


def test_an_answer_format_that_the_type_cannot_use_is_refused() -> None:
    task = {"type": "nli", "answer_format": {"kind": "regex", "pattern": "e|n|c"}}
    (line,) = _refused(task=task)
    assert line.startswith("task.answer_format has kind='regex', which task.type 'nli' cannot use")
    task = {"type": "nli", "answer_format": {"kind": "labels", "labels": ["yes", "no"]}}
    (line,) = _refused(task=task)
    assert line.startswith("task.answer_format.labels ['yes', 'no'] are not those of")


@pytest.mark.parametrize("kind", ["qa", "math", "summarization", "conversation"])
def test_a_type_that_knows_its_answers_takes_no_answer_format(kind: str) -> None:
    task = {"type": kind, "answer_format": {"kind": "labels", "labels": ["yes", "no"]}}
    messages = _train(messages="chat") if kind == "conversation" else _train()
    test = {"kind": "file", "path": "b.jsonl", "columns": {"messages": "chat"}}
    (line,) = _refused(task=task, data=messages | {"test": test})
    assert line == (
        f"task.answer_format has kind='labels', which task.type {kind!r} cannot use: it says "
        "itself what an answer is. Remove it, or choose task.type 'classification'."
    )


def test_a_label_map_that_leads_to_no_label_is_refused() -> None:
    test = {"kind": "file", "path": "b.jsonl", "columns": {"reference": "y"}}
    test |= {"label_map": {"0": "entails", "1": "maybe"}}
    assert _refused(task={"type": "nli"}, data={"test": test}) == [
        "data.test.label_map makes '1' 'maybe', which is none of the labels 'entailment', "
        "'neutral', 'contradiction'. Correct it."
    ]


def test_what_the_teachers_prompt_lacks_is_told_before_anything_is_read() -> None:
    raw = changed("teacher.system_prompt", "One of: {labels}")
    raw["teacher"] |= {"base_url": "http://127.0.0.1:1/v1", "examples": {"kind": "nearest"}}
    raw["student"] = {
        **{"kind": "from_scratch", "num_layers": 1, "hidden_size": 16, "intermediate_size": 32},
        **{"num_heads": 2},
    }
    raw["evaluation"] = {"in_context_student": True}
    with pytest.raises(RecipeError) as caught:
        check(validate_recipe(raw, Recipe, source="r.yaml"))
    told = str(caught.value)
    for problem in (
        "teacher.system_prompt holds '{labels}', but the task has none.",
        "data.gold is missing, so teacher.examples has no rows to show.",
        "evaluation.in_context_student is set, but a student from scratch knows nothing",
    ):
        assert problem in told


PRUNED = {"kind": "pruned", "model": "./nowhere", "num_layers": 2}


def test_a_pruned_student_does_not_answer_untrained_and_its_model_has_to_be_there() -> None:
    raw = changed("evaluation.in_context_student", True) | {"student": PRUNED}
    raw["teacher"] |= {"base_url": "http://127.0.0.1:1/v1"}
    with pytest.raises(RecipeError) as caught:
        check(validate_recipe(raw, Recipe, source="r.yaml"))
    told = str(caught.value)
    assert "student './nowhere' is neither an existing folder nor a hub id" in told
    assert "is set, but a pruned student understands no instructions before it is tr" in told


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_layers": 3}, "student.num_layers=3 is more than the 2 layers"),
        ({"layers": (0, 2)}, "student.layers names layer 2, but"),
        ({"num_layers": 2}, "keeps all 2 layers of .* so nothing is pruned"),
        ({"intermediate_size": 32}, "student.intermediate_size=32 is not smaller than the 32"),
        ({"num_layers": 1, "intermediate_size": 31}, None),
    ],
)
def test_what_cannot_be_kept_of_a_model_is_told_by_every_run(
    settings: dict[str, Any], reason: str | None, tmp_path: Path
) -> None:
    """Though all prompts are answered: the next stage may score the answers for hours."""
    folder = str(make_tiny_model(tmp_path / "tiny", num_layers=2))
    raw = make_recipe(tmp_path, "http://127.0.0.1:1/v1")
    raw["student"] = {"kind": "pruned", "model": folder, **settings}
    recipe = load(raw)
    if reason is None:
        check(recipe)
        return
    with pytest.raises(RecipeError, match=reason):
        check(recipe)


def test_a_teacher_is_not_trained_pruned() -> None:
    raw = changed("student", PRUNED)
    teacher = {name: raw[name] for name in ("task", "data", "student")} | {"output": "teacher"}
    recipe = validate_recipe(teacher, TeacherTrainingRecipe, source="t.yaml")
    with pytest.raises(RecipeError, match="is 'pruned', but a teacher is trained whole"):
        check_teacher_recipe(recipe.task, recipe.data, recipe.student, recipe.training)


def test_prices_in_two_currencies_are_refused() -> None:
    price = {"prompt_per_million": 1.0, "completion_per_million": 2.0}
    machine = {"per_hour": 1.0, "currency": "EUR", "source": "a bill"}
    raw = changed("teacher.price", price)
    raw["teacher"]["base_url"] = "http://127.0.0.1:1/v1"
    raw["evaluation"] = {"machine_price": machine}
    with pytest.raises(RecipeError, match=r"teacher.price is in 'USD' and .* in 'EUR'"):
        check(validate_recipe(raw, Recipe, source="r.yaml"))


def test_a_conversation_needs_messages_in_every_split() -> None:
    raw = changed("task.type", "conversation")
    raw["data"]["prompt_template"] = "{question}"
    raw["data"]["gold"] = {"kind": "file", "path": "c.jsonl", "columns": {"messages": "turns"}}
    recipe = validate_recipe(raw, Recipe, source="r.yaml")
    with pytest.raises(RecipeError) as caught:
        check(recipe)
    for split in ("train", "test"):
        assert (
            f"data.{split}.columns.messages is missing, and task.type 'conversation' reads "
            "nothing else. Name the column with the conversations."
        ) in str(caught.value)
    assert "data.gold" not in str(caught.value)


def test_one_reference_for_every_turn_of_a_conversation_is_refused() -> None:
    raw = changed("data.turns", "every")
    raw["data"]["test"]["columns"] = {"messages": "turns", "reference": "answer"}
    recipe = validate_recipe(raw, Recipe, source="r.yaml")
    with pytest.raises(RecipeError, match=r"data\.test\.columns\.reference names one answer"):
        check(recipe)


@pytest.mark.parametrize(
    ("task", "columns", "slices", "why"),
    [
        ("classification", [], ["label", "lenght"], "names 'lenght'.* Did you mean 'length'"),
        ("classification", [], ["language"], "neither 'label' nor 'length' nor one of"),
        ("classification", ["language"], None, "evaluation.slices does not, so nothing"),
        ("classification", ["label"], ["label"], "stands for the right answer. Rename"),
        ("qa", [], ["label"], "'qa' are not labels here"),
        ("classification", ["language"], ["label", "language"], None),
        ("qa", [], None, None),
    ],
)
def test_slices_that_the_test_rows_cannot_be_divided_into_are_refused(
    task: str, columns: list[str], slices: list[str] | None, why: str | None
) -> None:
    raw = changed("teacher.base_url", "http://127.0.0.1:1/v1")
    raw["task"] = {"name": "t", "type": task}
    raw["data"]["test"] = raw["data"]["test"] | {
        "columns": {"reference": "answer", "slices": columns}
    }
    raw["evaluation"] = {} if slices is None else {"slices": slices}
    recipe = validate_recipe(raw, Recipe, source="r.yaml")
    lines = slice_problems(task_type(recipe.task), recipe.data, recipe.evaluation)
    assert bool(lines) == (why is not None)
    if why is not None:
        assert re.search(why, "\n".join(lines))


def test_a_local_teacher_is_not_stopped() -> None:
    recipe = validate_recipe(changed("evaluation", {"stop_at_width": 0.1}), Recipe, source="r.yaml")
    told = "evaluation.stop_at_width is 0.1, but the teacher is loaded here"
    with pytest.raises(RecipeError) as caught:
        check(recipe.model_copy(update={"teacher": TransformersTeacher(model="m")}))
    assert told in str(caught.value)
    with pytest.raises(RecipeError) as caught:  # nobody is at the address of the example
        check(recipe)
    assert told not in str(caught.value)


def test_the_teachers_of_a_panel_are_checked_as_the_recipes_is() -> None:
    panel = [
        {"name": "gone", "teacher": {"kind": "transformers", "model": "no/such/folder"}},
        {
            "name": "keyless",
            "teacher": {
                "kind": "openai",
                "model": "m",
                "base_url": "http://127.0.0.1:1/v1",
                "api_key_env": "NO_SUCH_KEY",
                "examples": {"kind": "fixed", "num_examples": 2},
            },
        },
        {
            "name": "down",
            "teacher": {"kind": "openai", "model": "n", "base_url": "http://127.0.0.1:1/v1"},
        },
    ]
    raw = changed("data.gold", None)
    raw["training"] = {"objective": {"kind": "soft_targets", "panel": panel}}
    recipe = validate_recipe(raw, Recipe, source="r.yaml")
    with pytest.raises(RecipeError) as caught:
        check(recipe)
    told = str(caught.value)
    assert "training.objective.panel[0].teacher 'no/such/folder' is neither" in told
    assert "NO_SUCH_KEY" in told
    assert "data.gold is missing, so teacher.examples has no rows to show" in told
    assert "does not answer" in told and "127.0.0.1:1" in told


def test_what_cannot_wait_for_a_batch_is_refused(tmp_path: Path) -> None:
    raw = make_recipe(
        tmp_path,
        "http://host/v1",
        teacher={"batch": True},
        execution={"mode": "deployment"},
        evaluation={"stop_at_width": 0.1},
    )
    with pytest.raises(RecipeError) as caught:
        check(validate_recipe(raw, Recipe, source="r.yaml"))
    assert "execution.child_timeout_s is 86,400, but teacher.batch" in str(caught.value)
    assert "evaluation.stop_at_width is 0.1, so the teacher would be asked" in str(caught.value)


def test_ray_needs_a_common_ledger_and_somebody_elses_endpoint(tmp_path: Path) -> None:
    raw = make_recipe(tmp_path, "http://127.0.0.1:9/v1", execution={"ray": {}})
    with pytest.raises(
        RecipeError, match=r"execution\.ray is set but store\.ledger_url is missing"
    ):
        check(validate_recipe(raw, Recipe, source="r.yaml"))
    raw["teacher"] = {"kind": "transformers", "model": "recipes/demo/teacher"}
    with pytest.raises(RecipeError, match=r"execution\.ray is set, but the teacher runs here"):
        check(validate_recipe(raw, Recipe, source="r.yaml"))
