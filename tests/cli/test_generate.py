"""`distillery generate`: the stage alone, from the command line."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from cli.runs import run_distillation
from distillery.teacher.summary import check_jsonl
from schemas.data import DataSpec, FileSource
from schemas.errors import RecipeError
from tests.fixtures_recipe import label_of, make_recipe, scripted_teacher, write_recipe
from tests.stub_endpoint import Reply, StubEndpoint

NO_SERVER = "http://127.0.0.1:9/api"
SECTIONS = ("task", "data", "teacher", "store", "execution")
PRICE = {"prompt_per_million": 1.0, "completion_per_million": 2.0, "currency": "EUR"}


@pytest.fixture
def teacher() -> Iterator[StubEndpoint]:
    with StubEndpoint(respond=scripted_teacher) as endpoint:
        yield endpoint


def run(*arguments: Any, api: str, verb: str = "generate") -> subprocess.CompletedProcess[str]:
    environment = {"PREFECT_API_URL": api, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "cli", verb, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return the command in this process, whose log and Ctrl-C stay as they are."""
    monkeypatch.setattr("cli.runs.show_only_our_log", lambda: None)
    monkeypatch.setattr("cli.runs.silence_prefect", lambda: None)
    monkeypatch.setattr("cli.runs.signal.signal", lambda *_: None)
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


def printed(done: subprocess.CompletedProcess[str], label: str) -> str:
    """Return the text after ``label`` of the one line that begins with it."""
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    [text] = [line.removeprefix(label).strip() for line in lines if line.startswith(label)]
    return text


@pytest.mark.slow
def test_prompts_are_answered_and_a_second_run_asks_nothing(
    tmp_path: Path, teacher: StubEndpoint, prefect_server: str
) -> None:
    raw = make_recipe(tmp_path, teacher.base_url, teacher={"price": PRICE})
    path = write_recipe(tmp_path, {name: raw[name] for name in SECTIONS})
    out = tmp_path / "responses.jsonl"
    done = run(path, "--jsonl", out, api=prefect_server)

    assert printed(done, "responses") == "240"
    assert printed(done, "ok") == "240"
    assert printed(done, "asked") == "240 requests"
    assert printed(done, "from the ledger") == "0 responses"
    assert printed(done, "tokens") == "1,680 read, 480 written"
    assert printed(done, "cost").startswith("0.00264 EUR")  # (1680 + 2 * 480) / 1e6
    assert "rows/s" in printed(done, "rate")
    assert teacher.num_requests == 240

    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(rows) == 240 and {row["split"] for row in rows} == {"train", "validation"}
    texts = {row["id"]: row["text"] for row in _jsonl(tmp_path / "train.jsonl")}
    assert all(row["response"] == label_of(texts[row["prompt_id"]]) for row in rows)
    assert set(rows[0]) == {
        *("prompt_id", "split", "state", "response", "prompt_tokens", "completion_tokens"),
        *("sample_index", "agreement", "repaired", "teacher", "chosen_because"),
    }
    table = pq.read_table(printed(done, "Parquet:"))
    assert table.column("prompt_id").to_pylist() == [row["prompt_id"] for row in rows]

    again = run(path, api=prefect_server)
    assert printed(again, "reused").startswith("all; asked nothing. Made ")
    assert teacher.num_requests == 240


def _jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.slow
def test_a_recipe_of_the_spine_runs_as_it_is_and_overrides_come_on_either_side(
    tmp_path: Path, teacher: StubEndpoint, prefect_server: str
) -> None:
    path = write_recipe(tmp_path, make_recipe(tmp_path, teacher.base_url))
    out = tmp_path / "r.jsonl"
    overrides = ("data.train.max_rows=60", "teacher.concurrency=2")
    done = run(path, overrides[0], "--jsonl", out, overrides[1], api=prefect_server)
    assert printed(done, "responses") == "60"
    assert printed(done, "cost") == "unknown: set teacher.price"
    assert len(_jsonl(out)) == 60


def test_a_plan_asks_nobody_and_needs_no_server(tmp_path: Path, teacher: StubEndpoint) -> None:
    raw = make_recipe(tmp_path, teacher.base_url, teacher={"price": PRICE})
    path = write_recipe(tmp_path, raw)
    done = run(path, "--plan", api=NO_SERVER, verb="run")
    assert printed(done, "rows").startswith("240, 1 sample each")
    assert printed(done, "to ask") == "240"
    assert printed(done, "cost").startswith("up to about 0.")
    assert "tokens per response: teacher.max_new_tokens" in done.stdout
    assert "evaluate_models asks the teacher up to 80 test rows besides" in done.stdout
    assert teacher.num_requests == 0


def test_a_plan_of_the_answers_alone_is_the_same_without_the_evaluation(
    tmp_path: Path, teacher: StubEndpoint, here: Callable[..., Result]
) -> None:
    raw = make_recipe(tmp_path, teacher.base_url, teacher={"price": PRICE})
    done = here("generate", write_recipe(tmp_path, raw), "--plan")
    assert done.exit_code == 0
    assert re.search(r"^rows +240, 1 sample each", done.stdout, re.MULTILINE)
    assert re.search(r"^to ask +240$", done.stdout, re.MULTILINE)
    assert re.search(r"^cost +up to about 0\.", done.stdout, re.MULTILINE)
    assert "evaluate_models" not in done.stdout
    assert teacher.num_requests == 0


def test_a_plan_refuses_an_objective_that_the_run_would_refuse(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, "http://127.0.0.1:9/v1")
    recipe["training"] |= {"objective": {"kind": "hidden_states"}}
    with pytest.raises(RecipeError, match="'hidden_states', but an endpoint does not show"):
        run_distillation(str(write_recipe(tmp_path, recipe)), [], plan=True)


@pytest.mark.slow
def test_what_a_plan_says_after_a_run_is_that_nothing_is_left(
    tmp_path: Path, teacher: StubEndpoint, prefect_server: str
) -> None:
    path = write_recipe(tmp_path, make_recipe(tmp_path, teacher.base_url))
    assert run(path, "data.train.max_rows=60", api=prefect_server).returncode == 0
    done = run(path, "data.train.max_rows=60", "--plan", api=NO_SERVER)
    assert (printed(done, "in the ledger"), printed(done, "to ask")) == ("60", "0")
    assert "it has these responses, so the run asks nothing at all" in done.stdout
    # More rows of the same file: the averages of these plan for the others.
    more = run(path, "--plan", api=NO_SERVER)
    assert printed(more, "completion tokens") == "about 360"  # 180 x 2


@pytest.mark.slow
def test_a_cap_ends_the_run_with_one_message_and_a_higher_one_goes_on(
    tmp_path: Path, teacher: StubEndpoint, prefect_server: str
) -> None:
    raw = make_recipe(tmp_path, teacher.base_url, teacher={"budget": {"max_tokens": 900}})
    path = write_recipe(tmp_path, raw)
    stopped = run(path, api=prefect_server)
    assert stopped.returncode == 1
    assert stopped.stderr.splitlines()[-1].startswith("BudgetError: ")
    assert "teacher.budget.max_tokens" in stopped.stderr and "Traceback" not in stopped.stderr
    asked = teacher.num_requests
    assert 0 < asked < 240

    done = run(path, "teacher.budget.max_tokens=100000", api=prefect_server)
    assert printed(done, "ok") == "240"
    assert teacher.num_requests == 240


@pytest.mark.slow
def test_a_teacher_that_refuses_ends_with_one_message(tmp_path: Path, prefect_server: str) -> None:
    with StubEndpoint(default=Reply(status=401, error="no such key")) as refusing:
        path = write_recipe(tmp_path, make_recipe(tmp_path, refusing.base_url))
        done = run(path, api=prefect_server)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("TeacherError: ")
    assert "401" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--jsonl", "no/such/folder/r.jsonl"],
            "StoreError: cannot write 'no/such/folder/r.jsonl'",
        ),
        (["teacher.modle=x"], "RecipeError: recipe"),
        (["data.train=null"], "RecipeError: data.train is missing"),
    ],
)
@pytest.mark.slow
def test_what_cannot_work_is_refused_before_anything_is_asked(
    tmp_path: Path,
    teacher: StubEndpoint,
    prefect_server: str,
    here: Callable[..., Result],
    arguments: list[str],
    told: str,
) -> None:
    path = write_recipe(tmp_path, make_recipe(tmp_path, teacher.base_url))
    done = here("generate", path, *arguments)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert told in done.stderr and "Traceback" not in done.stderr
    assert teacher.num_requests == 0


def test_a_file_that_the_recipe_reads_is_not_written_over(tmp_path: Path) -> None:
    prompts = tmp_path / "train.jsonl"
    prompts.touch()
    data = DataSpec(train=FileSource(path=str(prompts)))
    with pytest.raises(RecipeError, match="is a file that the recipe reads"):
        check_jsonl(tmp_path / "." / "train.jsonl", data)
    check_jsonl(tmp_path / "responses.jsonl", data)
