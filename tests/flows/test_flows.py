"""The whole spine in this process, on a scripted teacher and a tiny student."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distillery.registry import open_registry
from distillery.storage.store import Store
from schemas.errors import DistilleryError, InputDataError, RecipeError, TeacherError
from schemas.execution import StoreSpec
from tests.fixtures_recipe import load, make_recipe, scripted_teacher, write_rows
from tests.stub_endpoint import Reply, StubEndpoint, listing

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def teacher() -> Iterator[StubEndpoint]:
    with StubEndpoint(respond=scripted_teacher) as endpoint:
        yield endpoint


def distil(raw: dict[str, Any]) -> Any:
    from flows.distill_student import distill_student

    recipe = load(raw)
    sections = {name: getattr(recipe, name) for name in type(recipe).model_fields}
    return distill_student(**sections, return_state=True)


def stage_states(state: Any, *, last: str) -> dict[str, str]:
    """Return the state names of the flow's task runs, by task, once that of ``last`` has ended.

    Prefect records them from events, a moment after the run: those of one flow in order.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    give_up_at = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while time.monotonic() < give_up_at:
            runs = client.read_task_runs(flow_run_filter=of_run)
            states = {run.name: run.state for run in runs if run.state}
            if last in states and all(state.is_final() for state in states.values()):
                return {name: str(state.name) for name, state in states.items()}
            time.sleep(0.1)
    raise AssertionError(f"the task run {last!r} was not recorded within 60 s")


def artifact(key: str) -> Any:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        )
    return max(found, key=lambda item: str(item.updated))


def test_a_run_distils_and_the_next_one_asks_and_trains_nothing(
    tmp_path: Path, teacher: StubEndpoint
) -> None:
    raw = make_recipe(
        tmp_path,
        teacher.base_url,
        teacher={"system_prompt": "auto", "examples": {"kind": "nearest", "num_examples": 2}},
        gate={"min_retention": 0.8},  # what 80 test rows can show
    )
    first = distil(raw)
    outcome = first.result()
    assert {len(body["messages"]) for body in teacher.requests} == {1 + 2 * 2 + 1}
    assert {body["messages"][0]["content"][-10:] for body in teacher.requests} == {"\nwarm\ncold"}
    assert outcome.comparison.contestant("teacher").metrics["accuracy"].estimate == 1.0
    assert outcome.comparison.contestant("student").metrics["accuracy"].estimate > 0.9
    assert Store(raw["store"]["root"]).holds(outcome.report)
    rows = {row["model"] for row in json.loads(artifact("comparison-colours").data)}
    assert rows == {"teacher", "baseline", "student"}
    shown = str(artifact("comparison-colours-text").data)
    assert shown.startswith(f"Report: `{raw['store']['root']}/{outcome.report.uri}/report.html`")

    asked = teacher.num_requests
    second = distil(raw)
    again = second.result()
    assert (again.student, again.comparison, again.report) == (
        outcome.student,
        outcome.comparison,
        outcome.report,
    )
    assert again.promotion.previous == outcome.student
    assert teacher.num_requests == asked
    states = stage_states(second, last="publish_student")
    reused = {name for name, state in states.items() if state == "Cached"}
    assert {"look up generate_responses", "look up train_student"} <= reused
    assert not any(name.startswith("train_model") for name in states)


@pytest.mark.slow
def test_a_changed_learning_rate_trains_again_but_asks_no_teacher(
    tmp_path: Path, teacher: StubEndpoint
) -> None:
    raw = make_recipe(tmp_path, teacher.base_url)
    first = distil(raw).result()
    before = len(teacher.requests)
    raw["training"]["learning_rate"] = 0.01
    second = distil(raw).result()
    assert second.student.fingerprint != first.student.fingerprint
    # Speed is measured anew, past the ledger; no training prompt is asked again.
    asked_again = {r["messages"][-1]["content"] for r in teacher.requests[before:]}
    trained = {row["text"] for row in _rows(tmp_path / "train.jsonl")}
    assert not asked_again & trained


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_student_that_fails_the_gate_is_not_published_and_the_run_says_by_how_much(
    tmp_path: Path, teacher: StubEndpoint
) -> None:
    raw = make_recipe(tmp_path, teacher.base_url, gate={"min_retention": 1.5})
    outcome = distil(raw).result()
    assert not outcome.promotion.promoted
    assert "gate.min_retention=1.5" in outcome.promotion.sentence
    with open_registry(StoreSpec.model_validate(raw["store"])) as registry:
        assert registry.champion(raw["task"]["name"], "champion") is None


@pytest.mark.slow
def test_a_wrong_key_costs_one_request_and_keeps_what_is_there(tmp_path: Path) -> None:
    refused = Reply(status=401, error="no such key")
    with StubEndpoint(respond=lambda _: refused) as endpoint:
        state = distil(make_recipe(tmp_path, endpoint.base_url, execution={"chunk_rows": 20}))
        with pytest.raises(TeacherError, match="401"):
            state.result()
        assert endpoint.num_requests == 1


def test_too_many_broken_rows_stop_the_run_before_the_teacher_is_asked(
    tmp_path: Path, teacher: StubEndpoint
) -> None:
    raw = make_recipe(tmp_path, teacher.base_url)
    write_rows(tmp_path / "train.jsonl", [{"id": "same", "text": f"red {i}"} for i in range(50)])
    with pytest.raises(InputDataError, match="duplicate_id 4"):
        distil(raw).result()
    assert teacher.num_requests == 0


def test_a_model_that_the_endpoint_does_not_list_is_refused_before_the_first_request(
    tmp_path: Path,
) -> None:
    with StubEndpoint(respond=scripted_teacher, models=listing("another")) as endpoint:
        with pytest.raises(RecipeError, match=r"does not know teacher\.model 'scripted'"):
            distil(make_recipe(tmp_path, endpoint.base_url)).result()
        assert (endpoint.num_requests, endpoint.gets[0]) == (0, "models")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teacher": {"api_key_env": "NO_SUCH_KEY_VARIABLE"}}, "NO_SUCH_KEY_VARIABLE"),
        ({"data": {"gold": None}}, "data.gold is missing"),
        ({"data": {"train": None}}, "data.train is missing"),
        ({"store": {"root": "s3://bucket/prefix"}}, "store.ledger_url is missing"),
        ({"store": {"ledger_url": "postgresql://me:secret@db/x"}}, "holds a password"),
    ],
)
def test_what_cannot_work_is_refused_up_front(
    tmp_path: Path, teacher: StubEndpoint, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        distil(make_recipe(tmp_path, teacher.base_url, **changes)).result()
    assert teacher.num_requests == 0


@pytest.mark.slow
def test_a_key_is_in_no_file_of_a_run(
    tmp_path: Path, teacher: StubEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-planted-0123456789"
    monkeypatch.setenv("PLANTED_KEY", key)
    raw = make_recipe(tmp_path, teacher.base_url, teacher={"api_key_env": "PLANTED_KEY"})
    distil(raw).result()
    assert any(key in value for headers in teacher.headers for value in headers.values())
    for file in (tmp_path / "store").rglob("*"):
        assert not file.is_file() or key.encode() not in file.read_bytes(), file


def test_every_error_of_ours_survives_pickling() -> None:
    import pickle

    for kind in DistilleryError.__subclasses__():
        error = pickle.loads(pickle.dumps(kind("what. why. do.")))
        assert type(error) is kind and str(error) == "what. why. do."
