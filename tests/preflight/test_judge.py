"""What can be known of a judge before anything is spent."""

import logging
from pathlib import Path
from typing import Any

import pytest

from distillery.preflight.judge import check_judges_endpoint, judge_problems, self_preference
from distillery.task_types import task_type
from schemas.errors import RecipeError, TeacherError
from schemas.execution import ExecutionSpec
from schemas.export import ExportSpec, GgufFormat
from schemas.judge import JudgeSpec
from schemas.student import PretrainedStudent
from schemas.task import TaskSpec
from schemas.teacher import OpenAITeacher
from tests.fixtures_recipe import load, make_recipe, write_rows
from tests.ports import free_port
from tests.stub_endpoint import StubEndpoint, listing

SUPPORT = task_type(TaskSpec.model_validate({"name": "support", "type": "conversation"}))
MODEL = {"kind": "openai", "model": "arbiter", "base_url": "http://127.0.0.1:1/v1"}


def judge(model: dict[str, Any] | None = None, **changes: Any) -> JudgeSpec:
    return JudgeSpec.model_validate({"model": MODEL | (model or {}), **changes})


def problems(spec: JudgeSpec, task_kind: str = "conversation", **export: Any) -> list[str]:
    kind = task_type(TaskSpec.model_validate({"name": "t", "type": task_kind}))
    return judge_problems(spec, kind, ExportSpec(**export))


@pytest.mark.parametrize("kind", ["conversation", "summarization"])
def test_a_judge_of_open_texts_passes(kind: str) -> None:
    assert problems(judge(), kind) == []


@pytest.mark.parametrize("kind", ["classification", "nli", "qa", "math"])
def test_where_answers_are_right_or_wrong_a_judge_is_refused(kind: str) -> None:
    assert problems(judge(), kind) == [
        f"evaluation.judge is set, but answers to task.type {kind!r} are right or wrong, which "
        "needs no opinion. Remove evaluation.judge."
    ]


def test_a_key_that_is_not_set_is_named_as_the_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    assert problems(judge({"api_key_env": "JUDGE_KEY"})) == [
        "the environment variable 'JUDGE_KEY' (evaluation.judge.model.api_key_env) is not set. "
        "Export the key; nothing has been asked yet."
    ]


def test_a_local_judge_that_is_not_there_or_not_pinned_is_refused() -> None:
    (line,) = problems(judge({"kind": "transformers", "model": "./nowhere"}))
    assert line.endswith("Correct evaluation.judge.model.model.")
    (line,) = problems(judge({"kind": "transformers", "model": "o/m"}))
    assert line.endswith("Set evaluation.judge.model.revision to a commit hash.")


@pytest.mark.parametrize(
    "settings",
    [
        {"system_prompt": "auto"},
        {"examples": {"kind": "fixed"}},
        {"samples": {"num_samples": 3}, "sampling_temperature": 1.0},
    ],
)
def test_a_setting_that_a_judge_would_not_read_is_refused(settings: dict[str, Any]) -> None:
    (line,) = problems(judge(settings))
    assert line.startswith(f"evaluation.judge.model.{next(iter(settings))} is set, but a judge")


def test_somebody_unknown_to_be_judged_against_is_refused() -> None:
    spec = judge(against=["teacher", "gguf q8_0", "student", "championn"])
    student, champion = problems(spec, formats=(GgufFormat(),))
    assert student.startswith("evaluation.judge.against names 'student', whom no student can")
    assert "Did you mean 'champion'? Name some of teacher, baseline, champion" in champion
    assert champion.endswith("in-context student, gguf q8_0.")


# -- human preferences -----------------------------------------------------------------------------


GOOD = {"chat": [{"role": "user", "content": "Hi"}], "response_a": "a", "response_b": "b"}


def preferences(folder: Path, *rows: dict[str, Any], **columns: Any) -> JudgeSpec:
    write_rows(folder / "people.jsonl", [*rows])
    columns_of_prompt = {"messages": "chat"}
    path = str(folder / "people.jsonl")
    source = {"kind": "file", "path": path, "columns": columns_of_prompt}
    return judge(preferences={"source": source, **columns})


@pytest.mark.parametrize("said", ["first", "second", "tie", "response_a", "response_b"])
def test_preferences_may_name_the_column_or_its_place(tmp_path: Path, said: str) -> None:
    assert problems(preferences(tmp_path, GOOD | {"preferred": said})) == []


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"preferred": "a"}, "'preferred' is 'a', which prefers none of the two. Write first,"),
        ({"preferred": None}, "'preferred' is None, which prefers none of the two."),
        ({"preferred": ["first"]}, "'preferred' is ['first'], which prefers none of the two."),
        ({"preferred": "tie", "response_b": ""}, "'response_b' is '', not a response."),
        ({"preferred": "tie", "response_a": 3}, "'response_a' is 3, not a response."),
        ({"preferred": "tie", "chat": []}, "messages are list, not a list of turns."),
    ],
)
def test_a_preference_that_cannot_be_used_is_named(
    tmp_path: Path, row: dict[str, Any], why: str
) -> None:
    spec = preferences(tmp_path, GOOD | {"preferred": "first"}, GOOD | row)
    (line,) = problems(spec)
    assert line.startswith(f"row 2 of evaluation.judge.preferences: {why}")


def test_preferences_for_one_side_alone_cannot_show_a_liking_for_it(tmp_path: Path) -> None:
    rows = [GOOD | {"preferred": "first"}] * 3
    (line,) = problems(preferences(tmp_path, *rows, student_first=True))
    assert "people say 'win' of the student on every row" in line
    assert problems(preferences(tmp_path, *rows)) == []
    assert problems(preferences(tmp_path, *rows, rows[0] | {"preferred": "tie"})) == []


def test_columns_that_preferences_lack_are_named(tmp_path: Path) -> None:
    row = GOOD | {"preferred": "first"}
    (line,) = problems(preferences(tmp_path, row, preferred="better"))
    assert "has no column 'better'; it has 'chat', 'response_a', 'response_b', 'preferred'" in line
    (line,) = problems(preferences(tmp_path, row, first="chosen"))
    assert "has no column 'chosen'" in line
    assert line.startswith("evaluation.judge.preferences: ")


def test_preferences_on_conversations_need_messages(tmp_path: Path) -> None:
    spec = judge(preferences={"source": {"kind": "file", "path": str(tmp_path / "x.jsonl")}})
    assert problems(spec) == [
        "evaluation.judge.preferences.source.columns.messages is missing, and task.type "
        "'conversation' reads nothing else. Name the column with the conversations."
    ]
    (line,) = problems(spec, "summarization")
    assert "does not exist" in line


# -- the endpoint ----------------------------------------------------------------------------------


def test_a_judge_whom_nobody_serves_is_refused_under_its_own_name() -> None:
    gone = judge({"base_url": f"http://127.0.0.1:{free_port()}/v1"})
    with pytest.raises(TeacherError, match=r"or correct evaluation\.judge\.model\.base_url"):
        check_judges_endpoint(gone, SUPPORT, ExecutionSpec())
    with StubEndpoint(models=listing("another")) as endpoint:
        served = judge({"base_url": endpoint.base_url})
        with pytest.raises(RecipeError, match=r"does not know evaluation\.judge\.model\.model"):
            check_judges_endpoint(served, SUPPORT, ExecutionSpec())
        assert endpoint.num_requests == 0


def test_a_judge_who_is_served_passes_and_is_asked_nothing() -> None:
    with StubEndpoint(models=listing("arbiter")) as endpoint:
        served = judge({"base_url": endpoint.base_url, "provider": "openai"})
        assert check_judges_endpoint(served, SUPPORT, ExecutionSpec()) == []
        assert (endpoint.gets, endpoint.num_requests) == (["models"], 0)


# -- self-preference -------------------------------------------------------------------------------


def test_a_judge_of_its_own_responses_is_warned_of() -> None:
    own = OpenAITeacher(model="arbiter", base_url="http://elsewhere/v1")
    another = OpenAITeacher(model="another", base_url="http://elsewhere/v1")
    student = PretrainedStudent(model="arbiter")
    (warning,) = self_preference(judge(), own, None)
    assert "'arbiter' is the teacher's model too" in warning
    (warning,) = self_preference(judge(), another, student)
    assert "'arbiter' is the student's model too" in warning
    assert [*self_preference(judge(against=["baseline"]), own, None)] == []
    assert [*self_preference(judge(), another, None)] == []


def test_the_recipe_is_refused_for_its_judge_along_with_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from distillery.preflight.recipe import check_recipe

    with StubEndpoint(models=listing("scripted")) as endpoint:
        model = MODEL | {"model": "scripted", "api_key_env": "NO_SUCH_KEY"}
        recipe = load(
            make_recipe(tmp_path, endpoint.base_url, evaluation={"judge": {"model": model}})
        )
        with (
            caplog.at_level(logging.WARNING, "distillery.run"),
            pytest.raises(RecipeError) as caught,
        ):
            check_recipe(
                recipe.task,
                recipe.data,
                recipe.teacher,
                recipe.student,
                recipe.training,
                recipe.store,
                recipe.execution,
                recipe.evaluation,
            )
        assert endpoint.num_requests == 0
    wrong_type, key = str(caught.value).split("\n")
    assert wrong_type.startswith("evaluation.judge is set, but answers to task.type")
    assert "(evaluation.judge.model.api_key_env) is not set" in key
    assert "is the teacher's model too" in caplog.text
