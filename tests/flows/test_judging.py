"""A judge in the spine: what it says is in the report, and it is paid for once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distillery.evaluation.tables import further_tables
from distillery.storage.store import Store
from schemas.comparison import Judgement
from schemas.errors import RecipeError
from tests.fixtures_recipe import label_of, load, make_recipe, texts, write_rows
from tests.ports import free_port
from tests.stub_endpoint import Reply, StubEndpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


def reply_to(question: str) -> str:
    return f"That is a {label_of(question)} colour."


@pytest.fixture
def teacher() -> Iterator[StubEndpoint]:
    def respond(body: dict[str, Any]) -> Reply:
        return Reply(text=reply_to(body["messages"][-1]["content"]))

    with StubEndpoint(respond=respond) as endpoint:
        yield endpoint


@pytest.fixture
def judging() -> Iterator[StubEndpoint]:
    """A judge to whom the teacher's reply is the better one, wherever it stands."""

    def respond(body: dict[str, Any]) -> Reply:
        first, _, second = body["messages"][0]["content"].partition("<response_B>")
        knows_first, knows_second = ("colour." in text for text in (first, second))
        better = "tie" if knows_first == knows_second else "A" if knows_first else "B"
        return Reply(text=json.dumps({"better": better}))

    with StubEndpoint(respond=respond) as endpoint:
        yield endpoint


def recipe(folder: Path, teacher: StubEndpoint, judging: StubEndpoint) -> dict[str, Any]:
    """Return a recipe on short conversations whose student learns next to nothing."""
    judge = {"model": {"kind": "openai", "model": "arbiter", "base_url": judging.base_url}}
    raw = make_recipe(
        folder,
        teacher.base_url,
        task={"name": "support", "type": "conversation", "answer_format": None},
        training={"epochs": 1, "evaluations": 1},
        evaluation={"judge": judge},
        gate={"min_retention": 0.0},
    )
    asked = texts()
    rows = {"train": asked[:64], "gold": asked[264:280], "test": asked[280:300]}
    for name, questions in rows.items():
        turns = [
            [
                {"role": "user", "content": text},
                {"role": "assistant", "content": reply_to(text)},
            ]
            for text in questions
        ]
        write_rows(folder / f"{name}.jsonl", [{"messages": turn} for turn in turns])
        raw["data"][name]["columns"] = {"messages": "messages"}
    return raw


def distil(raw: dict[str, Any]) -> Any:
    from flows.distill_student import distill_student

    made = load(raw)
    return distill_student(**{name: getattr(made, name) for name in type(made).model_fields})


def test_the_report_says_what_the_judge_said_and_nobody_is_asked_twice(
    tmp_path: Path, teacher: StubEndpoint, judging: StubEndpoint
) -> None:
    raw = recipe(tmp_path, teacher, judging)
    outcome = distil(raw)
    judgement = outcome.comparison.judgement
    assert isinstance(judgement, Judgement)
    beside_teacher, beside_baseline = judgement.pairs
    assert (beside_teacher.against, beside_baseline.against) == ("teacher", "baseline")
    assert (beside_teacher.losses, beside_teacher.unscored) == (20, 0)
    assert beside_teacher.win_rate is not None and beside_teacher.win_rate.estimate == 0.0
    assert (judgement.model, judgement.order_decided) == ("arbiter", 0.0)

    store = Store(raw["store"]["root"])
    for page in ("comparison.md", "report.html"):
        text = store.read_bytes(f"{outcome.report.uri}/{page}")
        assert text is not None and b"Nobody has checked this judge against people." in text
    assert "What the judge says" in further_tables(outcome.comparison)

    asked, before = judging.num_requests, teacher.num_requests
    assert distil(raw).comparison == outcome.comparison
    assert judging.num_requests == asked

    raw["evaluation"]["judge"]["rubric"] = "Prefer the friendlier response."
    assert distil(raw).comparison.judgement.rubric == "Prefer the friendlier response."
    assert judging.num_requests == 2 * asked
    assert teacher.num_requests == before


def test_a_judge_whom_nobody_serves_ends_the_run_before_the_teacher_is_asked(
    tmp_path: Path, teacher: StubEndpoint, judging: StubEndpoint
) -> None:
    raw = recipe(tmp_path, teacher, judging)
    raw["evaluation"]["judge"]["model"]["base_url"] = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(RecipeError, match=r"or correct evaluation\.judge\.model\.base_url"):
        distil(raw)
    assert (teacher.num_requests, judging.num_requests) == (0, 0)
