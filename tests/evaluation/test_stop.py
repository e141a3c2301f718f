"""A paid teacher is asked no more test rows than its interval needs."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from distillery.evaluation.answers import answer_questions, answers_stage
from distillery.evaluation.comparison import read_answers
from distillery.storage.store import Store
from schemas.contestants import ContestantSpec, PretrainedContestant, TeacherContestant
from schemas.errors import TeacherError
from schemas.evaluation import EvaluationSpec
from schemas.execution import ExecutionSpec, StoreSpec
from schemas.student import PretrainedStudent
from schemas.teacher import OpenAITeacher
from tests.fixtures_comparison import TASK, prompt_frame, seal_prompts
from tests.stub_endpoint import Reply, StubEndpoint

NUM_ROWS = 500


def mostly_right(body: dict[str, Any]) -> Reply:
    """Answer 'yes', the right answer, but for every tenth row."""
    [number] = re.findall(r"alert\((\d+)\)", body["messages"][-1]["content"])
    return Reply(text="no" if int(number) % 10 == 0 else "yes")


@dataclass(frozen=True)
class Asked:
    """A teacher's answers, and what the manifest counts of them."""

    counts: dict[str, int]
    frame: pd.DataFrame


def teacher_of(stub: StubEndpoint) -> TeacherContestant:
    teacher = OpenAITeacher(model="big", base_url=stub.base_url, concurrency=8, max_attempts=1)
    return TeacherContestant(name="teacher", teacher=teacher)


def ask(
    store: StoreSpec, stub: StubEndpoint, width: float, frame: pd.DataFrame | None = None
) -> Asked:
    prompts = seal_prompts(store, prompt_frame(NUM_ROWS) if frame is None else frame)
    evaluation = EvaluationSpec(max_new_tokens=4, bootstrap_samples=500, stop_at_width=width)
    done = answer_questions(teacher_of(stub), prompts, TASK, evaluation, store, ExecutionSpec())
    return Asked(
        dict(done.manifest.counts), read_answers(done.dataset("answers"), Store(store.root))
    )


def test_a_paid_teacher_is_asked_until_its_interval_is_narrow(store: StoreSpec) -> None:
    with StubEndpoint(respond=mostly_right) as stub:
        first = ask(store, stub, 0.1)
        counts, ids = first.counts, first.frame.index
        assert 100 <= counts["rows"] < NUM_ROWS
        assert counts["rows"] == counts["asked"] == stub.num_requests
        assert counts["rows"] + counts["left_out"] == NUM_ROWS
        # A random sample, not the first ones.
        assert max(ids) > "test-450" and min(ids) < "test-050"
        other = StoreSpec(root=f"{store.root}-2")
        assert list(ask(other, stub, 0.1).frame.index) == list(ids)


def test_a_teacher_whose_interval_stays_wide_answers_every_row(store: StoreSpec) -> None:
    with StubEndpoint(respond=mostly_right) as stub:
        counts = ask(store, stub, 0.001).counts
    assert (counts["rows"], counts["left_out"]) == (NUM_ROWS, 0)


def test_answers_that_are_all_alike_do_not_stop_it_at_once(store: StoreSpec) -> None:
    with StubEndpoint(default=Reply(text="yes")) as stub:
        counts = ask(store, stub, 0.02).counts
    assert counts["rows"] == 200  # 1 - 0.025 ** (1 / 200) = 0.018


def test_rows_of_few_clusters_do_not_stop_it(store: StoreSpec) -> None:
    rows = prompt_frame(NUM_ROWS)
    rows["cluster"] = pd.array([f"customer {n % 90}" for n in range(NUM_ROWS)], dtype="str")
    with StubEndpoint(respond=mostly_right) as stub:
        assert ask(store, stub, 0.3, rows).counts["left_out"] == 0


def test_a_run_that_broke_off_asks_for_the_rest_alone(store: StoreSpec) -> None:
    down = {"now": True}

    def respond(body: dict[str, Any]) -> Reply:
        broken = down["now"] and re.search(r"alert\(\d*77\)", body["messages"][-1]["content"])
        return Reply(status=503) if broken else mostly_right(body)

    with StubEndpoint(respond=respond) as stub:
        with pytest.raises(TeacherError):
            ask(store, stub, 0.1)
        down["now"] = False
        counts = ask(store, stub, 0.1).counts
    assert counts["asked"] < counts["rows"] < NUM_ROWS


def test_when_to_stop_is_part_of_a_paid_teachers_answers_and_of_no_others(
    store: StoreSpec, teacher_folder: Path
) -> None:
    student = PretrainedStudent(model=str(teacher_folder))
    prompts = seal_prompts(store, prompt_frame(1))

    def fingerprints(one: ContestantSpec) -> set[str]:
        specs = (EvaluationSpec(stop_at_width=width) for width in (None, 0.1, 0.2))
        return {answers_stage(one, prompts, TASK, spec).fingerprint for spec in specs}

    with StubEndpoint() as stub:
        assert len(fingerprints(teacher_of(stub))) == 3
    assert len(fingerprints(PretrainedContestant(name="baseline", student=student))) == 1
