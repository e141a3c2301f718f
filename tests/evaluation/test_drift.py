"""Teacher drift: a model that changes behind its name is found, one that only wavers is not."""

import datetime
import itertools
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from distillery.evaluation.drift import drift_sentence, watch_teacher
from distillery.storage.store import Store
from schemas.drift import Drift
from schemas.errors import TeacherError
from schemas.evaluation import EvaluationSpec
from schemas.execution import StoreSpec
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from schemas.teacher import OpenAITeacher
from tests.fixtures_comparison import prompt_frame, seal_prompts
from tests.stub_endpoint import Reply, StubEndpoint

LABELS = ["yes", "no", "maybe"]
TASK = TaskSpec.model_validate(
    {
        "name": "tickets",
        "type": "classification",
        "answer_format": {"kind": "labels", "labels": LABELS},
    }
)
EVALUATION = EvaluationSpec(canaries=20, bootstrap_samples=500)

Respond = Callable[[str], str]


@pytest.fixture
def store(tmp_path: Path) -> StoreSpec:
    return StoreSpec(root=str(tmp_path / "store"))


@pytest.fixture
def prompts(store: StoreSpec) -> DatasetRef:
    frame: pd.DataFrame = prompt_frame(40).assign(split="train")
    frame["content_hash"] = [f"{(n * 7919) % 40:064d}" for n in range(40)]
    return seal_prompts(store, frame)


def watched(
    store: StoreSpec, prompts: DatasetRef, respond: Respond, *, model: str | None = None
) -> tuple[Drift, int]:
    """Return the drift of an endpoint that answers by ``respond``, and its number of requests."""

    def reply(body: dict[str, list[dict[str, str]]]) -> Reply:
        return Reply(text=respond(body["messages"][-1]["content"]), model=model)

    with StubEndpoint(respond=reply) as stub:
        teacher = OpenAITeacher(model="big", base_url=stub.base_url, max_attempts=1)
        return watch_teacher(prompts, teacher, TASK, EVALUATION, store), len(stub.requests)


def steady(prompt: str) -> str:
    return LABELS[len(prompt) % 2]


def wavering() -> Respond:
    """Return a model that gives another answer every seventh time."""
    turns = itertools.count()
    return lambda prompt: "maybe" if next(turns) % 7 == 0 else "no"


def test_the_first_run_pins_canaries_and_later_ones_ask_each_once(
    store: StoreSpec, prompts: DatasetRef
) -> None:
    first, num_first = watched(store, prompts, steady)
    again, num_again = watched(store, prompts, steady)
    assert (num_first, num_again) == (40, 20)
    assert "20 canaries pinned" in drift_sentence(first)
    assert again.same and again.same.estimate == 1.0 and not again.has_drifted
    assert again.pinned_at == first.asked_at < again.asked_at
    assert "no drift seen" in drift_sentence(again)


def test_a_model_that_has_changed_is_found_and_named(store: StoreSpec, prompts: DatasetRef) -> None:
    watched(store, prompts, steady, model="big-0613")
    drift, _ = watched(store, prompts, lambda _: "maybe", model="big-1106")
    assert drift.has_drifted and len(drift.changed) == 20
    told = drift_sentence(drift)
    assert "0.0 % accuracy" in told and "'big-1106', and 'big-0613' then" in told


def test_a_model_that_wavers_as_it_always_did_has_not_changed(
    store: StoreSpec, prompts: DatasetRef
) -> None:
    respond = wavering()
    first, _ = watched(store, prompts, respond)
    assert first.expected and first.expected.estimate < 1
    again, _ = watched(store, prompts, respond)
    assert not again.has_drifted


def test_canaries_stay_the_same_when_training_prompts_come_and_go(
    store: StoreSpec, prompts: DatasetRef
) -> None:
    watched(store, prompts, steady)
    fewer: pd.DataFrame = prompt_frame(5).assign(split="train")
    _, num_requests = watched(store, seal_prompts(store, fewer), steady)
    assert num_requests == 20
    [folder] = Store(store.root).list_folders("canaries")
    assert folder


def test_an_endpoint_that_fails_is_an_error_and_pins_nothing(
    store: StoreSpec, prompts: DatasetRef
) -> None:
    with StubEndpoint(default=Reply(status=401)) as stub:
        teacher = OpenAITeacher(model="big", base_url=stub.base_url)
        with pytest.raises(TeacherError):
            watch_teacher(prompts, teacher, TASK, EVALUATION, store)
    assert Store(store.root).list_folders("canaries") == []


def test_a_shutdown_date_is_kept(store: StoreSpec, prompts: DatasetRef) -> None:
    date = datetime.date(2027, 1, 14)
    with StubEndpoint(default=Reply(text="no")) as stub:
        teacher = OpenAITeacher(model="big", base_url=stub.base_url)
        drift = watch_teacher(prompts, teacher, TASK, EVALUATION, store, date)
    assert drift.shutdown_date == date
