"""A panel of teachers as a contestant."""

from pathlib import Path
from typing import Any

import pytest

from distillery.evaluation.answers import answer_questions, answers_stage
from distillery.evaluation.contestants import contestant
from distillery.evaluation.cost import Prices, cost_of_panel
from distillery.storage.store import Store
from distillery.teacher.summary import panel_shares
from schemas.contestants import TeacherContestant
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StageName, StoreSpec
from schemas.panel import PanelTeacher
from schemas.refs import DatasetRef
from schemas.task import TaskSpec
from tests.fixtures_generation import write_prompts
from tests.fixtures_models import make_tiny_model
from tests.fixtures_panel import DOUBTFUL, SETTLED, member, panel, says
from tests.stub_endpoint import StubEndpoint

TASK = TaskSpec.model_validate(
    {
        "name": "t",
        "type": "classification",
        "answer_format": {"kind": "labels", "labels": ["yes", "no"]},
    }
)
EVALUATION = EvaluationSpec(max_new_tokens=8)
PRICE = {"prompt_per_million": 1e6, "completion_per_million": 0.0, "currency": "USD"}
CASCADE = {"kind": "cascade", "min_log_probability": -0.1}


@pytest.fixture
def store(tmp_path: Path) -> StoreSpec:
    return StoreSpec(root=str(tmp_path / "store"))


@pytest.fixture
def prompts(store: StoreSpec) -> DatasetRef:
    return write_prompts(store, [("test", f"q{n}", "yes") for n in range(4)])


def cascade(small: StubEndpoint, big: StubEndpoint) -> PanelTeacher:
    return panel(CASCADE, member("small", small, price=PRICE), member("big", big, price=PRICE))


def small_stub() -> StubEndpoint:
    unsure = says(lambda _: "no", lambda asked: DOUBTFUL if asked == "q3" else SETTLED)
    return StubEndpoint(respond=unsure)


def big_stub() -> StubEndpoint:
    return StubEndpoint(respond=says(lambda _: "yes", lambda _: SETTLED))


def test_a_panel_answers_the_test_rows_by_its_policy(store: StoreSpec, prompts: DatasetRef) -> None:
    with small_stub() as small, big_stub() as big:
        teachers = cascade(small, big)
        spec = TeacherContestant(name="teacher", teacher=teachers)
        asked = (spec, prompts, TASK, EVALUATION, store)
        made = answer_questions(*asked, ExecutionSpec())
        assert (small.num_requests, big.num_requests) == (4, 1)
        answer_questions(*asked, ExecutionSpec(force=(StageName.ANSWER_TEST_PROMPTS,)))
        assert (small.num_requests, big.num_requests) == (4, 1)
    batches = Store(store.root).batches(made.dataset("answers"))
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert [row["response"] for row in rows] == ["no", "no", "no", "yes"]
    shares = panel_shares(made.manifest)
    assert shares is not None
    assert [(each.name, each.rows, each.asked) for each in shares.teachers] == [
        ("small", 3, 4),
        ("big", 1, 1),
    ]
    cost = cost_of_panel(teachers, shares)
    assert cost is not None
    assert cost.per_1000 == 1000 * 5 * 7 / 4  # five requests of 7 tokens for four rows
    assert Prices.of(teachers, None, shares).panel == cost


def test_other_thresholds_are_other_answers_and_other_addresses_are_not(
    prompts: DatasetRef,
) -> None:
    def fingerprint(*members: dict[str, Any], **policy: Any) -> str:
        teachers = panel(CASCADE | policy, *members)
        spec = TeacherContestant(name="teacher", teacher=teachers)
        return answers_stage(spec, prompts, TASK, EVALUATION).fingerprint

    here = fingerprint(member("a"), member("b"))
    elsewhere: dict[str, Any] = {"base_url": "http://127.0.0.1:8/v1", "concurrency": 7}
    assert fingerprint(member("a", **elsewhere), member("b")) == here
    assert fingerprint(member("a"), member("b"), min_log_probability=-0.2) != here
    assert fingerprint(member("b"), member("a")) != here
    assert fingerprint(member("a", system_prompt="Be brief."), member("b")) != here


def test_for_the_clock_the_policy_runs_past_the_ledger(
    store: StoreSpec, prompts: DatasetRef
) -> None:
    with small_stub() as small, big_stub() as big:
        spec = TeacherContestant(name="teacher", teacher=cascade(small, big))
        timed = contestant(spec, prompts, TASK, EVALUATION, store)
        assert timed.model == "cascade of small, big"
        with timed.opened(Store(store.root)) as opened:
            conversations: Any = [[{"role": "user", "content": f"q{n}"}] for n in (0, 3)]
            answers = opened.answer(conversations, 2)
            opened.answer(conversations, 2)
        assert opened.is_served and opened.max_concurrency == 2 and opened.size is None
        assert (small.num_requests, big.num_requests) == (4, 2)
    assert [answer.response for answer in answers] == ["no", "yes"]
    assert [answer.prompt_tokens for answer in answers] == [7, 14]  # of all who were asked


def test_local_members_are_in_memory_together_and_their_sizes_add_up(
    store: StoreSpec, prompts: DatasetRef, tmp_path: Path
) -> None:
    models = [make_tiny_model(tmp_path / name, num_layers=n) for n, name in ((1, "a"), (2, "b"))]
    members = [
        {
            "name": path.name,
            "teacher": {"kind": "transformers", "model": str(path), "dtype": "float32"},
        }
        for path in models
    ]
    spec = TeacherContestant(name="teacher", teacher=panel({"kind": "vote"}, *members))
    timed = contestant(spec, prompts, TASK, EVALUATION, store)
    alone = [
        contestant(
            TeacherContestant(name="teacher", teacher=each.teacher),
            prompts,
            TASK,
            EVALUATION,
            store,
        )
        for each in panel({"kind": "vote"}, *members).teachers
    ]
    sizes = []
    for one in alone:
        with one.opened(Store(store.root)) as opened:
            assert opened.size is not None
            sizes.append(opened.size.num_parameters)
    with timed.opened(Store(store.root)) as opened:
        assert opened.size is not None and not opened.is_served
        assert opened.size.num_parameters == sum(sizes)
        [answer] = opened.answer([[{"role": "user", "content": "q"}]], 1)
    assert answer.new_tokens is not None and answer.new_tokens > 0
